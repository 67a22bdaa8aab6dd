//! A lease without an account: the quote first, then the payer's means, then a round.

use std::collections::BTreeSet;

use jiff::Timestamp;
use leasehold_crds::{
    lease::{Blocker, GpuLeaseStatus, LeaseEscrow, LeaseLeg, Quote, QuotedOffer},
    payment::money::Rate,
    shared::duration,
};

use super::{
    OPEN_WITHIN_SECONDS, UNANSWERED_PER_PROVIDER_MAX, UNFUNDED_PER_NAMESPACE_MAX,
    closing::delete_all,
    decide::Step,
    phase::Fact,
    plan::{Plan, in_seconds},
    recover::providers_text,
    world::{Network, Wallet, World},
};
use crate::{
    escrow::{Address, Leg, RoundKey, Terms, allocation_name},
    observed::Observed,
    placement::Choice,
    ports::Head,
    request::Request,
};

/// A queued lease is enqueued when the provider has capacity for it; this is the fallback.
const QUEUED_LOOK_SECONDS: u64 = 300;
pub(super) fn match_offers(world: &World, now: Timestamp, plan: &mut Plan) -> Step {
    if !world.allocations.is_empty() {
        delete_all(world, plan);
        plan.wake = in_seconds(now, 1);
        return Step::at(Fact::Unmatched);
    }
    let request = match &world.parsed.request {
        Ok(request) => request,
        Err(error) => {
            plan.wake = in_seconds(now, 3600);
            return unmatched(Blocker::InvalidSpec, error.to_string());
        }
    };
    let network = match world.network() {
        Ok(network) => network,
        Err((blocker, message)) => {
            plan.wake = in_seconds(now, 10);
            return unmatched(blocker, message);
        }
    };
    if let Some((blocker, message)) = &network.refusal {
        plan.wake = in_seconds(now, 10);
        return unmatched(*blocker, message.clone());
    }
    if let Some(until) = retry_after(&plan.status)
        && until > now
    {
        plan.wake = until;
        return Step::at(Fact::Unmatched);
    }
    plan.wake = in_seconds(now, 30);
    let Some(placed) = &world.parsed.placement else {
        return Step::at(Fact::Unmatched);
    };
    if placed.choices.is_empty() {
        plan.status.quote = Some(placed.quote.clone());
        return unmatched(Blocker::NoOffer, placed.problem.clone());
    }
    if !same_offers(plan.status.quote.as_ref(), &placed.quote) {
        plan.status.quote = Some(Quote {
            misses: Vec::new(),
            ..placed.quote.clone()
        });
    }
    if let Some(step) = wait_for_others(world, &placed.choices, now, plan) {
        return step;
    }
    let payer = match payer(world, &placed.choices, request, network) {
        Ok(payer) => payer,
        Err((blocker, message)) => {
            plan.wake = in_seconds(now, 10);
            return unmatched(blocker, message);
        }
    };
    let Observed::Known(head) = &world.head else {
        plan.wake = in_seconds(now, 3);
        return Step::at(Fact::Unmatched);
    };
    begin_round(world, request, network, payer, head, &placed.choices, plan);
    plan.wake = now;
    Step::at(Fact::AwaitingReservations)
}

/// The step of a lease that cannot begin a round yet because of other leases; `None` if it can.
fn wait_for_others(world: &World, choices: &[Choice], now: Timestamp, plan: &mut Plan) -> Option<Step> {
    if world.unfunded_in_namespace >= UNFUNDED_PER_NAMESPACE_MAX {
        plan.wake = in_seconds(now, 5);
        return Some(unmatched(
            Blocker::TooManyUnfunded,
            format!(
                "{} leases of this namespace wait for their deposit; this one is matched when one of them is funded",
                world.unfunded_in_namespace
            ),
        ));
    }
    if let Some(provider) = first_saturated_provider(world, choices) {
        plan.wake = in_seconds(now, QUEUED_LOOK_SECONDS);
        plan.queued_at = Some(provider.to_owned());
        return Some(unmatched(
            Blocker::Queued,
            format!(
                "{provider} has {UNANSWERED_PER_PROVIDER_MAX} unanswered allocations; leases are queued, oldest first"
            ),
        ));
    }
    if world.wallet == Observed::Known(Wallet::NotRead) {
        // The provider had no capacity when this reconcile began to read, and has some now.
        plan.wake = now;
        return Some(Step::at(Fact::Unmatched));
    }
    None
}

/// The lease is not matched.
fn unmatched(blocker: Blocker, message: impl Into<String>) -> Step {
    Step::blocked(Some(Fact::Unmatched), blocker, message)
}

/// When the next round may begin, if one ended without a deposit.
fn retry_after(status: &GpuLeaseStatus) -> Option<Timestamp> {
    status.retry_after.as_deref()?.parse().ok()
}

/// Whether an earlier quote has the same pools at the same prices. The number of their free nodes is ignored: it
/// changes with every lease of any tenant, and writing it to each pending lease would overload the API server.
fn same_offers(before: Option<&Quote>, now: &Quote) -> bool {
    let offers = |quote: &Quote| -> BTreeSet<[String; 4]> {
        let row = |o: &QuotedOffer| {
            let o = o.clone();
            [o.provider, o.pool, o.class, o.price_per_gpu_hour]
        };
        quote.offers.iter().map(row).collect()
    };
    before.is_some_and(|before| before.misses.is_empty() && offers(before) == offers(now))
}

/// The payer, if its key can be read and it has the deposit and gas.
fn payer(
    world: &World,
    choices: &[Choice],
    request: &Request,
    network: &Network,
) -> Result<Address, (Blocker, String)> {
    let address = match &world.wallet {
        Observed::Known(Wallet::Ready(address)) => *address,
        Observed::Known(Wallet::NotRead) => {
            return Err((Blocker::WalletUnknown, "the wallet has not been read yet".into()));
        }
        Observed::Known(Wallet::NotReadable(message)) => {
            return Err((Blocker::WalletNotReadable, message.clone()));
        }
        Observed::Known(Wallet::Malformed(message)) => {
            return Err((Blocker::WalletMalformed, message.clone()));
        }
        Observed::Unknown(why) => return Err((Blocker::WalletUnknown, why.clone())),
    };
    let balances = match &world.balances {
        Some(Observed::Known(balances)) => balances,
        Some(Observed::Unknown(why)) => return Err((Blocker::ChainUnreachable, why.clone())),
        None => {
            return Err((
                Blocker::ChainUnreachable,
                "the payer's balance has not been read yet".into(),
            ));
        }
    };
    let deposit = total_rate(choices)
        .and_then(|r| r.cost_ceil(request.term_seconds))
        .ok_or_else(|| {
            (
                Blocker::PriceOutOfRange,
                "the price of this lease exceeds the range of the calculation".to_owned(),
            )
        })?;
    if balances.token < deposit {
        return Err((
            Blocker::InsufficientFunds,
            format!(
                "{address} holds {} {symbol}, the deposit for {} is {} {symbol}: send it the difference",
                balances.token.to_tokens(network.decimals),
                duration::text(request.term_seconds),
                deposit.to_tokens(network.decimals),
                symbol = network.symbol,
            ),
        ));
    }
    if balances.gas_wei == 0 {
        return Err((
            Blocker::InsufficientGas,
            format!("{address} holds no native token to pay for gas: send it some"),
        ));
    }
    Ok(address)
}

/// The first of these providers that has as many unanswered allocations as it may have.
pub(super) fn first_saturated_provider<'a>(world: &'a World, choices: &[Choice]) -> Option<&'a str> {
    let name = |choice: &Choice| world.providers[choice.provider].name.as_str();
    let full = |provider: &&str| {
        let unanswered = world.unanswered.get(*provider).copied().unwrap_or_default();
        unanswered >= UNANSWERED_PER_PROVIDER_MAX
    };
    choices.iter().map(name).find(full)
}

fn total_rate(choices: &[Choice]) -> Option<Rate> {
    choices.iter().try_fold(Rate(0), |sum, c| sum.checked_add(c.rate))
}

fn begin_round(
    world: &World,
    request: &Request,
    network: &Network,
    payer: Address,
    head: &Head,
    choices: &[Choice],
    plan: &mut Plan,
) {
    let round = plan.status.round.max(0) + 1;
    let uid = world.lease.metadata.uid.clone().unwrap_or_default();
    let key = RoundKey::new(network.market_id, &uid, u64::try_from(round).unwrap_or_default());
    let open_by = head.time + OPEN_WITHIN_SECONDS;
    let terms = Terms {
        payer,
        market: network.market_id,
        token: network.currency.token,
        closer: network.closer,
        salt: network.secret.salt(key, payer),
        start_by: open_by + request.start_within_seconds,
        notice_seconds: 0,
        pause_for: u32::try_from(request.pause_seconds).unwrap_or(u32::MAX),
        legs: choices
            .iter()
            .map(|c| Leg {
                payee: world.providers[c.provider].payee,
                controller: world.providers[c.provider].controller,
                rate: c.rate,
            })
            .collect(),
    };
    plan.status.round = round;
    plan.status.retry_after = None;
    plan.status.intent = None;
    plan.status.results = Vec::new();
    plan.status.escrow = Some(LeaseEscrow {
        terms: terms.to_wire(network.currency.chain_id, network.currency.escrow),
        open_by: i64::try_from(open_by).unwrap_or(i64::MAX),
        legs: choices
            .iter()
            .enumerate()
            .map(|(index, c)| LeaseLeg {
                provider: world.providers[c.provider].name.clone(),
                pool: c.pool.clone(),
                class: c.class.clone(),
                namespace: allocation_name(terms.id(), index),
                nodes: i64::try_from(c.nodes).unwrap_or(i64::MAX),
                price_per_gpu_hour: c.price.to_string(),
                started: false,
                failed_since: None,
            })
            .collect(),
    });
    plan.status.providers = providers_text(plan.status.escrow.as_ref());
}
