//! When the market deletes an allocation: after the provider reports that it stopped, or when it must have stopped by
//! itself.

use jiff::Timestamp;
use leasehold_crds::{GpuAllocation, GpuLease};

/// Both clocks may be off by so much: a provider that can't be heard has stopped by `notAfter` and twice this.
pub const SKEW_SECONDS: i64 = 60;

/// What is to be done with an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Check again after this many seconds.
    Keep {
        /// At least 2, at most 300.
        seconds: u64,
    },
    /// Take off our finalizer and delete.
    Remove,
}

/// Decides. `lease` is the lease that the allocation names, if it is there.
#[must_use]
pub fn decide(allocation: &GpuAllocation, lease: Option<&GpuLease>, now: Timestamp) -> Plan {
    if !may_go(allocation, lease, now) {
        let end = if has_stopped(allocation) {
            allocation.spec.open_by.saturating_add(SKEW_SECONDS)
        } else {
            allocation.spec.not_after.saturating_add(2 * SKEW_SECONDS)
        };
        return Plan::Keep {
            seconds: u64::try_from((end - now.as_second()).clamp(5, 300)).unwrap_or(300),
        };
    }
    // The job's result is on the lease before the allocation goes.
    if lease.is_some_and(|lease| is_awaited(lease, allocation)) {
        return Plan::Keep { seconds: 2 };
    }
    Plan::Remove
}

/// Whether its provider reports that no pod runs, or never will.
pub(crate) fn has_stopped(allocation: &GpuAllocation) -> bool {
    let status = allocation.status.as_ref();
    status.is_some_and(|s| s.stopped_at.is_some() || s.declined.is_some())
}

/// Released and stopped; or stopped, and its lease is gone or has forgotten it, when it can't be paid any more; or
/// past the time at which it stops in any case.
fn may_go(allocation: &GpuAllocation, lease: Option<&GpuLease>, now: Timestamp) -> bool {
    let stopped = has_stopped(allocation);
    let unpayable = now.as_second() > allocation.spec.open_by.saturating_add(SKEW_SECONDS);
    let forgotten = unpayable && lease.is_none_or(|l| !is_awaited(l, allocation));
    let over = now.as_second() > allocation.spec.not_after.saturating_add(2 * SKEW_SECONDS);
    let leaving = allocation.spec.release || allocation.metadata.deletion_timestamp.is_some();
    (stopped && (leaving || forgotten)) || over
}

/// Whether the lease still has to read this allocation.
fn is_awaited(lease: &GpuLease, allocation: &GpuAllocation) -> bool {
    let same = lease.metadata.uid.as_deref() == Some(&allocation.spec.lease.uid);
    same && lease.status.as_ref().is_some_and(|s| {
        !s.phase.is_over()
            && s.escrow
                .as_ref()
                .is_some_and(|e| e.terms.id == allocation.spec.escrow.id)
    })
}
