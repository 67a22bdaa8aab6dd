//! A round before its account is open: providers reserve, then the intent is stored, then the account is opened.

use jiff::Timestamp;
use leasehold_crds::{
    PROVIDER_NAMESPACE_PREFIX,
    lease::{Blocker, Intent, IntentAction, LeaseEscrow, LeaseLeg},
    market::allocation::{Declined, GpuAllocationSpec, LeaseReference},
    payment::money::TokenAmount,
};

use super::{
    BACKOFF_SECONDS_MAX, OPEN_MARGIN_SECONDS,
    check::may_be_under_way,
    decide::Step,
    phase::Fact,
    plan::{AllocationWrite, ChainCall, Plan, in_seconds},
    recover::provider_of,
    serving::other_wallet,
    world::{AllocationSeen, World},
};
use crate::{
    escrow::{SETTLE_SECONDS, Terms, allocation_name},
    observed::Observed,
    request::Request,
};
/// Providers reserve before anybody pays; then the intent is stored; then the account is opened.
pub(super) fn ask_and_open(world: &World, now: Timestamp, plan: &mut Plan) -> Step {
    let (Some(escrow), Some(Ok(terms)), Ok(request)) = (
        plan.status.escrow.clone(),
        &world.parsed.terms,
        &world.parsed.request,
    ) else {
        return lapse("the terms in the status cannot be read", now, plan);
    };
    let Observed::Known(head) = &world.head else {
        plan.wake = in_seconds(now, 3);
        return Step::at(Fact::AwaitingReservations);
    };
    let open_by = u64::try_from(escrow.open_by).unwrap_or_default();
    plan.wake = in_seconds(now, 2);
    if matches!(world.prior, Observed::Unknown(_)) {
        // An account of a later round may be open: this one is not opened beside it.
        return Step::at(Fact::AwaitingReservations);
    }
    if let Some(intent) = &plan.status.intent {
        // Too late to send: wait until the chain is past `open_by`, then the round lapses.
        if let Some(why) = other_wallet(world, terms) {
            return Step::blocked(Some(Fact::AwaitingReservations), Blocker::OtherWallet, why);
        }
        if head.time + OPEN_MARGIN_SECONDS / 2 < open_by {
            plan.call = open_call(intent, terms, open_by);
        }
        return Step::at(Fact::AwaitingReservations);
    }
    if !plan.status.phase.is_unpaid() {
        // The account was open before: its block was replaced, and the next one may contain it again.
        return Step::unchanged();
    }
    if let Some((provider, declined)) = declined(world, &escrow) {
        let why = format!("{provider} declined: {} ({})", declined.message, declined.reason);
        return lapse(&why, now, plan);
    }
    if head.time + OPEN_MARGIN_SECONDS > open_by {
        if may_be_under_way(&plan.status) {
            return Step::at(Fact::AwaitingReservations);
        }
        return lapse("not every provider reserved in time", now, plan);
    }
    let deposit = terms.rate().cost_ceil(request.term_seconds);
    let all_accepted = ask(world, request, &escrow, terms, deposit, plan);
    if let (true, Some(deposit)) = (all_accepted, deposit) {
        plan.status.intent = Some(Intent {
            action: IntentAction::Open,
            total: Some(deposit.to_string()),
            written_at: now.to_string(),
        });
        plan.wake = now;
    }
    Step::at(Fact::AwaitingReservations)
}

/// The call that a stored intent to open asks for.
fn open_call(intent: &Intent, terms: &Terms, valid_until: u64) -> Option<ChainCall> {
    let total = intent.total.as_deref().and_then(|t| TokenAmount::parse(t).ok());
    match intent.action {
        IntentAction::Open => total.map(|deposit| ChainCall::Open {
            terms: terms.clone(),
            deposit,
            valid_until,
        }),
        IntentAction::Fund | IntentAction::Close => None,
    }
}

/// The first provider that declined, and why.
fn declined(world: &World, escrow: &LeaseEscrow) -> Option<(String, Declined)> {
    world.allocations.iter().find_map(|a| {
        let status = a.object.status.as_ref()?;
        (a.object.spec.escrow.id == escrow.terms.id).then_some(())?;
        Some((provider_of(a), status.declined.clone()?))
    })
}

/// Creates the allocations that are missing, and returns whether every provider has accepted.
fn ask(
    world: &World,
    request: &Request,
    escrow: &LeaseEscrow,
    terms: &Terms,
    deposit: Option<TokenAmount>,
    plan: &mut Plan,
) -> bool {
    create_missing(world, request, escrow, terms, deposit, plan, |_, _| true);
    let accepted = |index| named(world, &allocation_name(terms.id(), index)).is_some_and(|a| a.signed);
    (0..escrow.legs.len()).all(accepted)
}

fn named<'a>(world: &'a World, name: &str) -> Option<&'a AllocationSeen> {
    let is_it = |a: &&AllocationSeen| a.object.metadata.name.as_deref() == Some(name);
    world.allocations.iter().find(is_it)
}

/// Creates the allocations that are missing of the legs of which `is_wanted` is true.
pub(super) fn create_missing(
    world: &World,
    request: &Request,
    escrow: &LeaseEscrow,
    terms: &Terms,
    deposit: Option<TokenAmount>,
    plan: &mut Plan,
    is_wanted: impl Fn(usize, &LeaseLeg) -> bool,
) {
    let mut first_rank = 0;
    for (index, leg) in escrow.legs.iter().enumerate() {
        let name = allocation_name(terms.id(), index);
        if named(world, &name).is_none() && is_wanted(index, leg) {
            plan.allocations.push(AllocationWrite::Create {
                namespace: format!("{PROVIDER_NAMESPACE_PREFIX}{}", leg.provider),
                escrow_id: terms.id(),
                spec: Box::new(allocation_spec(
                    world,
                    request,
                    escrow,
                    index,
                    leg,
                    first_rank,
                    deposit.unwrap_or_default(),
                    plan.status.round,
                )),
                name,
            });
        }
        first_rank += leg.nodes;
    }
}

#[expect(clippy::too_many_arguments, reason = "one constructor of one object")]
fn allocation_spec(
    world: &World,
    request: &Request,
    escrow: &LeaseEscrow,
    index: usize,
    leg: &LeaseLeg,
    first_rank: i64,
    deposit: TokenAmount,
    round: i64,
) -> GpuAllocationSpec {
    let spec = &world.lease.spec;
    let meta = &world.lease.metadata;
    let served = request.term_seconds + request.pause_seconds + request.start_within_seconds + SETTLE_SECONDS;
    GpuAllocationSpec {
        lease: LeaseReference {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        },
        round,
        escrow: escrow.terms.clone(),
        leg: i64::try_from(index).unwrap_or(i64::MAX),
        deposit: deposit.to_string(),
        open_by: escrow.open_by,
        pool: leg.pool.clone(),
        class: leg.class.clone(),
        price_per_gpu_hour: leg.price_per_gpu_hour.clone(),
        nodes: leg.nodes,
        first_rank,
        per_node: spec.per_node.clone(),
        storage: spec.storage.clone(),
        workload: spec.workload.clone(),
        subjects: spec
            .access
            .as_ref()
            .map(|a| a.subjects.clone())
            .unwrap_or_default(),
        on_funds_end: spec.payment.on_funds_end,
        not_after: escrow
            .open_by
            .saturating_add(i64::try_from(served).unwrap_or(i64::MAX / 2)),
        release: false,
        drop_results: false,
    }
}

/// The status names no account any more, and the next round begins after a back-off.
pub(super) fn forget_account(now: Timestamp, plan: &mut Plan) {
    plan.status.escrow = None;
    plan.status.intent = None;
    plan.status.providers = String::new();
    plan.wake = in_seconds(now, 1);
    let backoff = 1u64 << plan.status.round.clamp(0, 9).unsigned_abs();
    plan.status.retry_after = Some(in_seconds(now, backoff.min(BACKOFF_SECONDS_MAX)).to_string());
}

/// The round ends without a deposit: that is stored first, then its allocations are deleted, and the next round begins
/// after a back-off.
pub(super) fn lapse(why: &str, now: Timestamp, plan: &mut Plan) -> Step {
    forget_account(now, plan);
    Step::blocked(
        Some(Fact::Unmatched),
        Blocker::ReservationLapsed,
        format!("{why}; the next round begins automatically"),
    )
}
