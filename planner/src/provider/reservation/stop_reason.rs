//! Why a reservation stops for good, if it does: by its spec, by its account, or by the stop rule.

use jiff::Timestamp;
use leasehold_crds::{
    lease::OnFundsEnd,
    market::allocation::{AllocationPhase, StopReason},
    payment::escrow::EscrowSnapshot,
    provider::reservation::GpuReservationStatus,
};

use super::{
    is_spent, later, leg,
    plan::Plan,
    present,
    serving::suspend,
    snapshot::snapshot,
    stop::{self, FreshReads, OFFSET_MAX_SECONDS, StopCause, Verdict},
    unix, wire,
    world::World,
};
use crate::{
    escrow::{Account, AccountAt, AccountRead, Terms},
    observed::Observed,
};

/// An unpaid reservation whose allocation was deleted is given up after this many seconds.
const ALLOCATION_GONE_SECONDS: i64 = 5;
/// An unpaid reservation on a chain that cannot be read is given up this many seconds after its deadline.
const UNKNOWN_PAYMENT_SECONDS: i64 = 600;
/// For so many served seconds a leg may take one more second to be started again.
const SERVED_PER_RESUMED: u64 = 4;

/// Why the reservation stops for good, if it does.
pub(super) fn stop_reason(
    world: &World<'_>,
    terms: &Terms,
    before: Option<&EscrowSnapshot>,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<StopReason> {
    by_account(world, terms, before, now, plan)
        .or_else(|| never_started(world, terms, now, plan))
        .or_else(|| not_resumed(world, terms, now, plan))
        .or_else(|| {
            // Whatever is known of the account: no state of it serves longer.
            let over = now.as_second() >= world.reservation.spec.allocation.not_after;
            over.then_some(StopReason::NotAfter)
        })
}

/// By the spec and by what is read of the account.
fn by_account(
    world: &World<'_>,
    terms: &Terms,
    before: Option<&EscrowSnapshot>,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<StopReason> {
    let spec = &world.reservation.spec;
    if spec.release {
        return Some(StopReason::Released);
    }
    if world.reservation.metadata.deletion_timestamp.is_some() {
        return Some(StopReason::ReservationDeleted);
    }
    // A feature gate or a webhook drops the field without an error. A container that is root would be root on the node.
    if world
        .running
        .known()
        .is_some_and(|running| !running.without_isolation.is_empty())
    {
        return Some(StopReason::IsolationDropped);
    }
    match world.account.known().map(|at| &at.read) {
        Some(AccountRead::Present(account)) if account.closed => {
            return present(&world.second)
                .is_some_and(|a| a.closed)
                .then_some(StopReason::AccountClosed);
        }
        Some(AccountRead::Present(_)) => {}
        Some(AccountRead::Mismatch) => {
            let agreed = world
                .second
                .known()
                .is_some_and(|at| at.read == AccountRead::Mismatch);
            return agreed.then_some(StopReason::AccountMismatch);
        }
        Some(AccountRead::Absent) => {
            // An absence tells nothing of later blocks.
            let past = |read: &Observed<AccountAt>| {
                let block = read.known().map(|at| at.block);
                block.is_some_and(|block| wire(block.time) > spec.allocation.open_by)
            };
            let past = past(&world.account) && past(&world.second);
            let agreed = world
                .second
                .known()
                .is_some_and(|at| at.read == AccountRead::Absent);
            if agreed && before.is_none() && is_given_up(world, &plan.status, now) {
                return Some(StopReason::AllocationGone);
            }
            return (past && agreed && now.as_second() > spec.deadline).then_some(StopReason::Unpaid);
        }
        None if before.is_none() && plan.status.phase.is_unpaid() => {
            let waited = now.as_second() > spec.deadline + UNKNOWN_PAYMENT_SECONDS;
            return waited.then_some(StopReason::PaymentUnknown);
        }
        None => {}
    }
    by_stop_rule(world, terms, now, plan)
}

/// A leg that has never run stops at `startBy`: by the time of the chain, and where that cannot be read or stands still,
/// by the own clock after one grace. It holds its nodes without payment.
fn never_started(world: &World<'_>, terms: &Terms, now: Timestamp, plan: &mut Plan) -> Option<StopReason> {
    let has_run = match plan.status.phase {
        AllocationPhase::Requested
        | AllocationPhase::Declined
        | AllocationPhase::Reserved
        | AllocationPhase::Provisioning => false,
        AllocationPhase::Active
        | AllocationPhase::Suspended
        | AllocationPhase::Stopping
        | AllocationPhase::Stopped => true,
    };
    // A reorganisation may remove a start that was seen.
    let unstarted = |a: &Account| a.started_at == 0 || !has_run && leg::has_never_run(world, a);
    let local = terms
        .start_by
        .saturating_add(OFFSET_MAX_SECONDS)
        .saturating_add(world.grace_seconds);
    let overdue = unix(now) > local;
    let by = if unix(now) > terms.start_by {
        local
    } else {
        terms.start_by
    };
    let wake = later(now, by.saturating_sub(unix(now)).saturating_add(1));
    let is_late = |a: &Account| a.block_time > terms.start_by;
    let (first, second) = (present(&world.account), present(&world.second));
    let (shown, reason) = match (first, second) {
        (Some(first), Some(second)) => {
            let late = overdue || is_late(first) && is_late(second);
            let shown = unstarted(first) && unstarted(second);
            (shown, late.then_some(StopReason::NeverStarted))
        }
        (first, None) => {
            let unreadable = first.map_or(world.account.known().is_none(), unstarted);
            let shown = unreadable && !has_run && !plan.status.phase.is_unpaid();
            (shown, overdue.then_some(StopReason::StartUnknown))
        }
        (None, Some(_)) => return None,
    };
    if shown {
        plan.wake = plan.wake.min(wake);
    }
    reason.filter(|_| shown)
}

/// A leg that is to run again, after a pause or because pods were missing, has as long as at first, by the own clock: its nodes
/// are held without payment, and those of its pods that are there compute. All its resumptions together have in addition
/// a share of what it has served, so that nobody gains by causing one after another.
fn not_resumed(world: &World<'_>, terms: &Terms, now: Timestamp, plan: &mut Plan) -> Option<StopReason> {
    let open_by = u64::try_from(world.reservation.spec.allocation.open_by).unwrap_or_default();
    let since = u64::try_from(plan.status.resuming_since?).unwrap_or_default();
    let (Some(first), Some(second)) = (present(&world.account), present(&world.second)) else {
        // Nothing is stopped for what is not known. The end of the paid time is known.
        return None;
    };
    let served = leg::served_seconds(world, first).min(leg::served_seconds(world, second));
    let window = terms.start_by.saturating_sub(open_by);
    let resumed = u64::try_from(plan.status.resumed_seconds).unwrap_or_default();
    let left = window
        .saturating_add(served / SERVED_PER_RESUMED)
        .saturating_sub(resumed);
    let until = since.saturating_add(left.min(window));
    plan.wake = plan
        .wake
        .min(later(now, until.saturating_sub(unix(now)).saturating_add(1)));
    let runs = leg::runs(world, first) || leg::runs(world, second);
    (unix(now) > until && !runs).then_some(StopReason::NotResumed)
}

/// The stop rule, for an account that was started and is paid as far as is known.
fn by_stop_rule(world: &World<'_>, terms: &Terms, now: Timestamp, plan: &mut Plan) -> Option<StopReason> {
    let spec = &world.reservation.spec;
    let last = plan.status.escrow.as_ref().and_then(snapshot)?;
    let spent = |read: &Observed<AccountAt>| present(read).map(|a| is_spent(a, terms));
    let reads = match (spent(&world.account), spent(&world.second)) {
        (Some(true), Some(true)) => FreshReads::Spent,
        (None, _) => FreshReads::Unreadable {
            since: plan
                .status
                .chain_unreadable_since
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or_else(|| unix(now)),
        },
        _ => FreshReads::Paid,
    };
    let not_after = u64::try_from(spec.allocation.not_after).unwrap_or_default();
    let verdict = stop::verdict(
        unix(now),
        not_after,
        last,
        reads,
        world.grace_seconds,
        plan.status.grace_used,
    );
    match verdict {
        Verdict::ServeUntil(until) => {
            plan.wake = plan.wake.min(later(now, until.saturating_sub(unix(now)).max(1)));
            None
        }
        Verdict::ServeOnGrace(until) => {
            plan.wake = plan.wake.min(later(now, until.saturating_sub(unix(now)).max(1)));
            None
        }
        Verdict::Stop(StopCause::FundsSpent) => match spec.allocation.on_funds_end {
            OnFundsEnd::Close => Some(StopReason::FundsSpent),
            OnFundsEnd::Pause => {
                let waited = |a: &Account| a.block_time >= a.exhausted_at + u64::from(terms.pause_for);
                let over = |read| present(read).is_some_and(waited);
                plan.wake = plan.wake.min(later(now, 5));
                (over(&world.account) && over(&world.second)).then_some(StopReason::PauseOver)
            }
        },
        Verdict::Stop(StopCause::NotAfter) => Some(StopReason::NotAfter),
        Verdict::Stop(StopCause::FundsUnknown) => match spec.allocation.on_funds_end {
            OnFundsEnd::Close => Some(StopReason::FundsUnknown),
            OnFundsEnd::Pause => {
                // Its storage is kept, as after any end of the funds; the chain decides for how long.
                suspend(world, now, plan);
                plan.status.grace_used = true;
                None
            }
        },
    }
}

/// Whether the market deleted the allocation of a reservation that was never seen paid. Capacity is not held for it any
/// longer; a payment after all would be refunded whole, because nothing starts its leg.
fn is_given_up(world: &World<'_>, status: &GpuReservationStatus, now: Timestamp) -> bool {
    let since = status.allocation_gone_since;
    world.allocation_exists == Observed::Known(false)
        && since.is_some_and(|since| now.as_second() - since >= ALLOCATION_GONE_SECONDS)
}
