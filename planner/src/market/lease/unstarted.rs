//! Legs that their providers do not start. A lease is all or nothing: a round of which one leg is not started ends, whoever
//! else has started, so that nobody pays on for a workload that cannot be complete.
//!
//! Before its leg has run, a provider is believed only what costs it the lease: that it declines, that it stops, or that its
//! job has failed without ever having run. A result of its job is none.

use leasehold_crds::{
    lease::{GpuLeaseStatus, IntentAction},
    market::allocation::{AllocationPhase, GpuAllocationStatus},
    provider::reservation::ReservationCondition,
    shared::conditions::{ConditionStatus, find},
};

use super::{
    check::{is_at_the_end, second},
    world::{AllocationSeen, World},
};
use crate::escrow::{Account, LegState};

/// A leg starts within this time after its job has failed, or it was never run.
const FAILED_SECONDS: i64 = 60;
/// Maximum number of characters of what a provider reports in a message of the lease.
const WORDS_MAX: usize = 300;

/// Whether the leg of that number runs or has run.
pub(super) fn has_run(account: &Account, leg: usize) -> bool {
    let served = |l: &LegState| l.served_seconds != 0 || l.credited_seconds != 0;
    account.running & bit(leg) != 0 || account.legs.get(leg).is_some_and(served)
}

/// Bitmap of the legs that have never run.
pub(super) fn unstarted(account: &Account) -> u16 {
    let legs = (0..account.legs.len()).filter(|leg| !has_run(account, *leg));
    legs.fold(0, |map, leg| map | bit(leg))
}

/// The bit of a leg; an account has at most 16.
pub(super) const fn bit(leg: usize) -> u16 {
    1 << if leg < 15 { leg } else { 15 }
}

/// Number of the leg of an allocation.
pub(super) fn leg_of(allocation: &AllocationSeen) -> usize {
    usize::try_from(allocation.object.spec.leg).unwrap_or_default()
}

/// Whether the round is lost: by two reads a leg has not run, and it was not started in time, its provider gave it up, or
/// this was so before and the account is being closed for it.
pub(super) fn is_lost(world: &World, status: &GpuLeaseStatus, account: &Account) -> bool {
    let escrow = status.escrow.as_ref();
    let start_by = escrow.and_then(|e| u64::try_from(e.terms.start_by).ok());
    let (Some(start_by), Some(second)) = (start_by, second(world)) else {
        return false;
    };
    let missing = unstarted(account) & unstarted(second);
    if missing == 0 {
        return false;
    }
    let ends = status.intends(IntentAction::Close);
    let late = account.block_time > start_by && second.block_time > start_by;
    if account.closed && second.closed {
        // Anybody may close an account that nobody started in time. One that was started is closed for this lease, or by its
        // payer, who wants no other round.
        let nobody = |a: &Account| a.started_at == 0 && a.paid_seconds == 0;
        return ends || late && nobody(account) && nobody(second);
    }
    let given_up = || {
        let mut missing = world.allocations.iter().filter(|a| missing & bit(leg_of(a)) != 0);
        !is_at_the_end(world, account) && missing.any(|a| gave_up(a, status, account.block_time))
    };
    late || ends || given_up()
}

/// Whether the provider of a leg that has not run says that it does not start it.
fn gave_up(allocation: &AllocationSeen, status: &GpuLeaseStatus, block_time: u64) -> bool {
    let mut legs = status.escrow.iter().flat_map(|e| e.legs.get(leg_of(allocation)));
    let block_time = i64::try_from(block_time).unwrap_or(i64::MAX);
    let waited = |since: i64| block_time.saturating_sub(since) > FAILED_SECONDS;
    let failed = has_failed(allocation) && legs.any(|leg| leg.failed_since.is_some_and(waited));
    failed || allocation.object.status.as_ref().is_some_and(is_over)
}

/// Whether the provider of an allocation reports that its job has failed.
fn has_failed(allocation: &AllocationSeen) -> bool {
    let job = allocation.object.status.as_ref().and_then(|s| s.job.as_ref());
    job.is_some_and(|job| job.exit_code != 0)
}

/// Stores since when legs have not been started although their jobs have failed, by the clock of the chain.
pub(super) fn record_failures(world: &World, status: &mut GpuLeaseStatus, account: &Account) {
    let block_time = i64::try_from(account.block_time).unwrap_or(i64::MAX);
    let legs = status.escrow.iter_mut().flat_map(|e| e.legs.iter_mut());
    for (index, leg) in legs.enumerate() {
        let mut allocations = world.allocations.iter().filter(|a| leg_of(a) == index);
        if !has_run(account, index) && allocations.any(has_failed) {
            leg.failed_since.get_or_insert(block_time);
        } else {
            leg.failed_since = None;
        }
    }
}

/// Whether a provider reports that it stops, has stopped, or declines.
pub(super) fn is_over(status: &GpuAllocationStatus) -> bool {
    status.phase.is_over() || status.phase == AllocationPhase::Declined || status.declined.is_some()
}

/// Who has not started which part of the lease, and what the first of them reports of it, for a person.
pub(super) fn explanation(world: &World, status: &GpuLeaseStatus) -> String {
    let legs = || status.escrow.iter().flat_map(|e| e.legs.iter().enumerate());
    let unstarted = || legs().filter(|(_, leg)| !leg.started);
    let mut missing: Vec<&str> = unstarted().map(|(_, leg)| leg.provider.as_str()).collect();
    missing.dedup();
    let part = match missing.len() {
        _ if legs().all(|(_, leg)| !leg.started) => "the lease",
        1 => "its part of the lease",
        _ => "their parts of the lease",
    };
    let mut reports = unstarted().filter_map(|(index, _)| {
        let allocation = world.allocations.iter().find(|a| leg_of(a) == index)?;
        words(allocation.object.status.as_ref()?)
    });
    let words = reports
        .next()
        .map(|words| format!(" ({words})"))
        .unwrap_or_default();
    format!("{} did not start {part} in time{words}", missing.join(", "))
}

/// What a provider reports of a leg that it has not started.
fn words(status: &GpuAllocationStatus) -> Option<String> {
    let provisioned = find(&status.conditions, ReservationCondition::Provisioned)
        .filter(|c| c.status != ConditionStatus::True.as_str() && !c.message.is_empty());
    let words = match (&status.job, &status.declined, provisioned) {
        (Some(job), ..) => format!(
            "its job ended with exit code {} before it was started",
            job.exit_code
        ),
        (None, Some(declined), _) => format!("{}: {}", declined.reason, declined.message),
        (None, None, Some(condition)) => condition.message.clone(),
        (None, None, None) => return None,
    };
    Some(words.chars().take(WORDS_MAX).collect())
}
