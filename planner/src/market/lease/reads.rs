//! What a reconcile must read before it can decide. The operator and the simulator use the same rules.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use leasehold_crds::{
    ANNOTATION_KNOWN, FINALIZER_MARKET, GpuAllocation, GpuLease,
    lease::{GpuLeaseStatus, IntentAction},
    market::allocation::AllocationPhase,
};

use super::{
    ROUNDS_MAX,
    check::{AccountState, account_state},
    matching::first_saturated_provider,
    unstarted::unstarted,
    world::World,
};
use crate::{
    escrow::{AccountAt, AccountRead},
    observed::Observed,
};

/// The payer's key is read only when a round could begin or a stored intent needs it. Of the world, what takes no asking
/// must be there already.
#[must_use]
pub fn needs_wallet(world: &World) -> bool {
    let lease = &world.lease;
    let nothing = GpuLeaseStatus::default();
    let status = lease.status.as_ref().unwrap_or(&nothing);
    let ends = world.deletion.ends_lease() || status.close_reason.is_some();
    let intends = || {
        let intent = status.intent.as_ref();
        intent.is_some_and(|i| matches!(i.action, IntentAction::Open | IntentAction::Fund))
    };
    !status.phase.is_over()
        && !ends
        && match status.escrow {
            Some(_) => intends(),
            None => could_begin(world),
        }
}

/// Whether the cause of a deletion must be known: where money serves, and nothing has begun to end the lease.
#[must_use]
pub fn needs_deletion_cause(lease: &GpuLease) -> bool {
    let deleting = lease.metadata.deletion_timestamp.is_some();
    let status = lease.status.as_ref();
    deleting && status.is_some_and(|s| s.phase.is_paid() && s.close_reason.is_none())
}

/// Whether offers match whose providers have capacity for another allocation, on a PaymentNetwork that agrees with its chain.
fn could_begin(world: &World) -> bool {
    let refused = || world.network().is_ok_and(|network| network.refusal.is_some());
    world.parsed.placement.as_ref().is_some_and(|placed| {
        !refused() && !placed.choices.is_empty() && first_saturated_provider(world, &placed.choices).is_none()
    })
}

/// Whether the chain is read: until the lease is over, and then until the end of its account is final.
#[must_use]
pub fn needs_chain(lease: &GpuLease) -> bool {
    let status = lease.status.as_ref();
    let over = status.is_some_and(|s| s.phase.is_over());
    !over || (has_finalizer(lease) && status.is_some_and(|s| s.escrow.is_some()))
}

/// What could lead to something destructive is read twice.
#[must_use]
pub fn wants_second(lease: &GpuLease, read: &Observed<AccountAt>) -> bool {
    let over = lease.status.as_ref().is_some_and(|s| s.phase.is_over());
    match read.known().map(|at| &at.read) {
        Some(AccountRead::Present(account)) => {
            over || account.closed || account.running == 0 || account.ended != 0 || unstarted(account) != 0
        }
        Some(AccountRead::Absent | AccountRead::Mismatch) => true,
        None => false,
    }
}

/// Whether the account is also read at the block level at which its end is final.
#[must_use]
pub fn wants_final(read: &Observed<AccountAt>) -> bool {
    read.known()
        .and_then(AccountAt::present)
        .is_some_and(|a| a.closed)
}

/// Whether an account and allocations that the lease had before its status was lost are to be searched, on the chain and
/// in the API server instead of the cache: the market has managed the lease before, and its status does not show it.
#[must_use]
pub fn seeks_prior(lease: &GpuLease) -> bool {
    let nothing = GpuLeaseStatus::default();
    let status = lease.status.as_ref().unwrap_or(&nothing);
    let annotations = lease.metadata.annotations.as_ref();
    let known = has_finalizer(lease) || annotations.is_some_and(|a| a.contains_key(ANNOTATION_KNOWN));
    known
        && !status.recovery_checked
        && status.escrow.is_none()
        && !status.phase.is_over()
        && status.round == 0
}

/// Whether the account of a later round must be searched on the chain before anything is done: the status was lost, a round or
/// an account is about to be opened, or the account is closed and nothing shows why. In these cases the status can have been
/// restored from a backup, and the account of a round that it does not show may be charged.
#[must_use]
pub fn needs_prior(world: &World) -> bool {
    let nothing = GpuLeaseStatus::default();
    let status = world.lease.status.as_ref().unwrap_or(&nothing);
    let ends = world.deletion.ends_lease() || status.close_reason.is_some();
    seeks_prior(&world.lease)
        || is_closed_without_reason(world, status)
        || (status.phase.is_unpaid()
            && !ends
            && match &status.escrow {
                None => could_begin(world),
                Some(escrow) => {
                    let accepted = world.allocations.iter().filter(|a| a.signed).count();
                    status.intent.is_some() || accepted >= escrow.legs.len()
                }
            })
}

/// Whether the account in the status is closed, and the status has no reason for the end of the lease.
pub(super) fn is_closed_without_reason(world: &World, status: &GpuLeaseStatus) -> bool {
    status.close_reason.is_none() && account_state(world, status) == AccountState::Closed
}

/// The rounds in which it is searched: those that the status does not show.
#[must_use]
pub fn prior_rounds(lease: &GpuLease) -> RangeInclusive<u64> {
    let round = lease.status.as_ref().map_or(0, |s| s.round);
    let first = u64::try_from(round).unwrap_or(0).saturating_add(1);
    first..=first.saturating_add(ROUNDS_MAX - 1)
}

/// Whether an allocation of a lease whose status names no account matters to it. One that was released belongs to a round that
/// is over, unless the status was lost: the market deletes it when its provider has stopped. The next round waits for a provider
/// that may run containers, until the leg cannot be started any more.
#[must_use]
pub fn concerns(lease: &GpuLease, allocation: &GpuAllocation, now: Timestamp) -> bool {
    let may_run = is_served(allocation) && now.as_second() <= allocation.spec.escrow.start_by;
    !allocation.spec.release || seeks_prior(lease) || may_run
}

/// Whether the provider of an allocation may run containers for it.
pub(super) fn is_served(allocation: &GpuAllocation) -> bool {
    let status = allocation.status.as_ref();
    status.is_some_and(|s| !s.phase.is_unpaid() && s.phase != AllocationPhase::Stopped)
}

/// Whether our finalizer is on the lease.
#[must_use]
pub fn has_finalizer(lease: &GpuLease) -> bool {
    let finalizers = lease.metadata.finalizers.as_ref();
    finalizers.is_some_and(|f| f.iter().any(|x| x == FINALIZER_MARKET))
}
