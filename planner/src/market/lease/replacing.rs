//! A round of which a leg was not started in time: its account is closed, what nobody earned is refunded, and the next round
//! begins without the providers that did not start. A provider that accepts and then stalls holds a lease once, for
//! `startWithin`.

use jiff::Timestamp;
use leasehold_crds::{
    lease::{Blocker, GpuLeaseStatus, conditions::LeaseCondition},
    payment::money::TokenAmount,
};

use super::{
    check::{AccountState, Checked, finality_lag, is_final},
    closing::{close, releases},
    decide::Step,
    opening::forget_account,
    phase::Fact,
    plan::{Plan, in_seconds},
    summary::earned,
    unstarted::{explanation, has_run, leg_of},
    world::{AllocationSeen, World},
};
use crate::{
    escrow::Account,
    market::allocation::release::{SKEW_SECONDS, has_stopped},
};

/// Ends the round. Its account leaves the status when it is closed, its allocations are released, and the providers that
/// served it have stopped: the market deletes the allocations of others when they have. The close of an account that has paid
/// must be final. If a reorganisation drops the close of another one, the search for orphans closes it again.
pub(super) fn end_round(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    plan.wake = in_seconds(now, 3);
    plan.allocations = releases(world, true);
    match checked.account_state {
        AccountState::Closed if plan.allocations.is_empty() => {}
        AccountState::Present => {
            close(world, now, plan);
            return Step::unchanged();
        }
        AccountState::Closed
        | AccountState::NoTerms
        | AccountState::Unknown
        | AccountState::Absent
        | AccountState::NeverOpened
        | AccountState::Mismatch => return Step::unchanged(),
    }
    let (Some(account), Ok(network)) = (&checked.account, world.network()) else {
        return Step::unchanged();
    };
    if world.allocations.iter().any(|a| may_serve(a, account, now)) {
        return Step::unchanged();
    }
    let has_paid = account.paid_seconds != 0 || (0..account.legs.len()).any(|leg| has_run(account, leg));
    if has_paid && !is_final(world) {
        plan.wake = in_seconds(now, finality_lag(world).unwrap_or_default().clamp(3, 60));
        return Step::unchanged();
    }
    let spent = earned(account);
    let refund = if spent == TokenAmount(0) {
        "its deposit is refunded".to_owned()
    } else {
        let (spent, symbol) = (spent.to_tokens(network.decimals), &network.symbol);
        format!("the others earned {spent} {symbol} in this round, and the rest of its deposit is refunded")
    };
    let why = explanation(world, &plan.status);
    add_spent(&mut plan.status, spent, network.decimals);
    leave(&mut plan.status);
    forget_account(now, plan);
    let message = format!("{why}; {refund}; the next round begins elsewhere");
    Step::blocked(Some(Fact::NotStarted), Blocker::NeverStarted, message)
}

/// Whether the provider of a leg that has run may still serve it: it has not reported its stop, and may be unable to.
fn may_serve(allocation: &AllocationSeen, account: &Account, now: Timestamp) -> bool {
    let over = allocation.object.spec.not_after.saturating_add(2 * SKEW_SECONDS);
    has_run(account, leg_of(allocation)) && !has_stopped(&allocation.object) && now.as_second() <= over
}

/// What was earned in earlier rounds.
pub(super) fn spent_earlier(status: &GpuLeaseStatus, decimals: u32) -> TokenAmount {
    let spent = status.spent_earlier.as_deref();
    let spent = spent.and_then(|text| TokenAmount::parse_tokens(text, decimals).ok());
    spent.unwrap_or_default()
}

/// Adds what was earned in the round to what was in earlier ones.
fn add_spent(status: &mut GpuLeaseStatus, spent: TokenAmount, decimals: u32) {
    let before = spent_earlier(status, decimals);
    let total = TokenAmount(before.0.saturating_add(spent.0));
    if total != TokenAmount(0) {
        status.spent_earlier = Some(total.to_tokens(decimals));
    }
}

/// Excludes the providers that did not start the round, and drops what the status shows of it.
fn leave(status: &mut GpuLeaseStatus) {
    let legs = status.escrow.take().map(|e| e.legs).unwrap_or_default();
    let any = legs.iter().any(|leg| leg.started);
    let unstarted = legs
        .into_iter()
        .filter(|leg| !leg.started)
        .map(|leg| leg.provider);
    for provider in unstarted {
        if !any {
            status.suspected_providers.push(provider.clone());
        }
        status.excluded_providers.push(provider);
    }
    for providers in [&mut status.excluded_providers, &mut status.suspected_providers] {
        providers.sort();
        providers.dedup();
    }
    status.unstarted_rounds += 1;
    (status.money, status.job) = (None, None);
    let closed = LeaseCondition::Settled.as_str();
    status.conditions.retain(|c| c.type_ != closed);
}
