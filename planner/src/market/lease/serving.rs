//! A lease whose account is open: it is provisioned, served and funded.

use jiff::Timestamp;
use leasehold_crds::{
    lease::{Blocker, Intent, IntentAction},
    payment::money::TokenAmount,
};

use super::{
    LAG_SECONDS,
    check::Checked,
    decide::Step,
    opening::create_missing,
    phase::Fact,
    plan::{AllocationWrite, ChainCall, Plan, in_seconds, keys},
    replacing::spent_earlier,
    unstarted::{bit, unstarted},
    world::{Wallet, World},
};
use crate::{
    escrow::{Account, SETTLE_SECONDS, Terms},
    observed::Observed,
    request::Request,
};

/// The account is open: provision, serve, fund.
pub(super) fn serve(
    world: &World,
    checked: &Checked,
    account: &Account,
    terms: &Terms,
    now: Timestamp,
    plan: &mut Plan,
) -> Step {
    // What it opened is open. A round that was to be closed because a leg had not run goes on if all have.
    let ends_round = plan.status.intends(IntentAction::Close) && unstarted(account) != 0;
    if !plan.status.intends(IntentAction::Fund) && !ends_round {
        plan.status.intent = None;
    }
    let seconds_left = account.paid_until.saturating_sub(account.block_time);
    let due = seconds_until_due(world, seconds_left).min(seconds_until_late(account, terms));
    plan.wake = in_seconds(now, if account.running == 0 { 5 } else { due.clamp(1, 60) });
    if let Ok(request) = &world.parsed.request {
        fund(world, request, account, checked.exhausted, terms, now, plan);
        prolong(world, request, account, plan);
        restore(world, request, account, terms, plan);
    }
    let fact = fact(world, checked, account);
    let funds = plan.status.intends(IntentAction::Fund);
    match other_wallet(world, terms).filter(|_| funds) {
        Some(why) => Step::blocked(fact, Blocker::OtherWallet, why),
        None => fact.map_or_else(Step::unchanged, Step::at),
    }
}

/// What is true of a lease whose account is open.
fn fact(world: &World, checked: &Checked, account: &Account) -> Option<Fact> {
    if account.running != 0 {
        return Some(Fact::Serving);
    }
    if account.started_at != 0 {
        // The clock may run while every leg is paused: paid time passes, and no provider serves. A status that was lost does
        // not show yet that it was paid.
        return Some(if checked.exhausted {
            Fact::OutOfFunds
        } else {
            Fact::Open
        });
    }
    let provisioning = world
        .allocations
        .iter()
        .any(|a| a.object.status.as_ref().is_some_and(|s| s.phase.is_running()));
    Some(if provisioning {
        Fact::Provisioning
    } else {
        Fact::Open
    })
}

/// Seconds until a leg that has not run is not started in time.
fn seconds_until_late(account: &Account, terms: &Terms) -> u64 {
    if unstarted(account) == 0 {
        return u64::MAX;
    }
    terms
        .start_by
        .saturating_add(1)
        .saturating_sub(account.block_time)
}

/// Seconds until the funds are spent, or until fewer are left than the lease's rule for top-ups permits.
fn seconds_until_due(world: &World, left: u64) -> u64 {
    let request = world.parsed.request.as_ref().ok();
    match request.and_then(|request| request.top_up.as_ref()) {
        Some(rule) if left >= rule.when_below_seconds => left - rule.when_below_seconds + 1,
        _ => left,
    }
}

/// Why the wallet does not pay into the account: its refund would be paid to somebody else. `None` if it opened the
/// account, or has not been read.
pub(super) fn other_wallet(world: &World, terms: &Terms) -> Option<String> {
    match &world.wallet {
        Observed::Known(Wallet::Ready(address)) if *address != terms.payer => Some(format!(
            "the wallet is {address}, but the account was opened by {}: only that wallet can pay into it",
            terms.payer
        )),
        _ => None,
    }
}

/// Funds the account when the term grew or the runway is short: stores the intent, or carries out the stored one.
fn fund(
    world: &World,
    request: &Request,
    account: &Account,
    exhausted: bool,
    terms: &Terms,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Some(intent) = plan.status.intent.clone() {
        let total = intent.total.as_deref().and_then(|t| TokenAmount::parse(t).ok());
        match (intent.action, total) {
            (IntentAction::Fund, Some(total)) if account.deposited < total => {
                plan.call = other_wallet(world, terms).is_none().then(|| ChainCall::Fund {
                    terms: terms.clone(),
                    total,
                });
                plan.wake = in_seconds(now, 5);
                return;
            }
            (IntentAction::Fund, _) => plan.status.intent = None,
            (IntentAction::Open | IntentAction::Close, _) => return,
        }
    }
    let Some(total) = wanted_total(world, request, account, exhausted, terms) else {
        return;
    };
    if total > account.deposited {
        plan.status.intent = Some(Intent {
            action: IntentAction::Fund,
            total: Some(total.to_string()),
            written_at: now.to_string(),
        });
        plan.wake = now;
    }
}

/// What the account should hold in all: the term's cost, or more by the top-up policy.
fn wanted_total(
    world: &World,
    request: &Request,
    account: &Account,
    exhausted: bool,
    terms: &Terms,
) -> Option<TokenAmount> {
    let rate = terms.rate();
    let term = rate.cost_ceil(request.term_seconds)?;
    let Some(rule) = &request.top_up else {
        return Some(term);
    };
    let Ok(network) = world.network() else {
        return Some(term);
    };
    // It holds for the lease: what earlier rounds have cost is spent.
    let status = world.lease.status.as_ref();
    let earlier = status.map_or(TokenAmount(0), |s| spent_earlier(s, network.decimals));
    let cap = TokenAmount(rule.cap(network.decimals).ok()?.0.saturating_sub(earlier.0));
    let runway = match account.paid_until {
        0 => return Some(term),
        _ if exhausted => 0,
        _ if account.exhausted_at != 0 => return Some(term),
        until => until.saturating_sub(account.block_time),
    };
    if runway >= rule.when_below_seconds {
        return Some(term);
    }
    let topped = account
        .deposited
        .checked_add(rate.cost_ceil(rule.extend_seconds)?)?;
    Some(if topped <= cap { topped.max(term) } else { term })
}

/// Somebody deleted an allocation together with its finalizer, or a backup was restored that does not contain it. It is created
/// again: a provider that serves its leg goes on (U5), and one that does not declines, so that the lease ends. All allocations
/// were there before the account was opened, so that a cache that is some seconds behind shows them later than `openBy`.
fn restore(world: &World, request: &Request, account: &Account, terms: &Terms, plan: &mut Plan) {
    let Some(escrow) = plan.status.escrow.clone() else {
        return;
    };
    let time = i64::try_from(account.block_time).unwrap_or(i64::MAX);
    if account.closed || time <= escrow.open_by.saturating_add(LAG_SECONDS) {
        return;
    }
    let deposit = terms.rate().cost_ceil(request.term_seconds);
    create_missing(world, request, &escrow, terms, deposit, plan, |index, leg| {
        account.ended & bit(index) == 0 && is_provider(world, &leg.provider)
    });
}

/// Whether this market has a provider of that name.
pub(super) fn is_provider(world: &World, name: &str) -> bool {
    world.providers.iter().any(|p| p.name == name)
}

/// `notAfter` follows the paid time upwards.
fn prolong(world: &World, request: &Request, account: &Account, plan: &mut Plan) {
    if account.paid_until == 0 {
        return;
    }
    let wanted = account.paid_until + request.pause_seconds + SETTLE_SECONDS;
    let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
    plan.allocations.extend(
        world
            .allocations
            .iter()
            .filter(|a| a.object.spec.not_after < wanted && !a.object.spec.release)
            .map(|a| {
                let (namespace, name) = keys(a);
                AllocationWrite::Prolong {
                    namespace,
                    name,
                    not_after: wanted,
                }
            }),
    );
}
