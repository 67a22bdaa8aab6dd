//! What a lease shows of its providers: which of them started what they had accepted.
//!
//! A lease that no provider starts shows nothing: its image may not exist. A provider is to blame if another one started the
//! same lease.

use leasehold_crds::lease::{CloseReason, GpuLeaseStatus, Phase};

use crate::escrow::{Account, LegState};

/// What a provider did with what it had accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its leg was started.
    InTime,
    /// It was not, and another provider started the same lease.
    Missed,
}

/// What follows from a change of the status, each time once, by the names of providers.
pub(super) fn of(
    before: Option<&GpuLeaseStatus>,
    after: &GpuLeaseStatus,
    account: Option<&Account>,
) -> Vec<(String, Start)> {
    let (Some(escrow), Some(account)) = (&after.escrow, account) else {
        return Vec::new();
    };
    let was = before.map_or(Phase::Pending, |s| s.phase);
    let legs = || escrow.legs.iter().zip(0u16..);
    let runs = |leg: u16| account.running & (1 << leg.min(15)) != 0;
    if was.is_unstarted() && after.phase == Phase::Active {
        let running = legs().filter(|(_, index)| runs(*index));
        let started = running.map(|(leg, _)| (leg.provider.clone(), Start::InTime));
        let missed = after.excluded_providers.iter().cloned();
        return started.chain(missed.map(|name| (name, Start::Missed))).collect();
    }
    // Another leg has started: the lease ends because one of its providers gives up.
    let stops = after.close_reason == Some(CloseReason::ProviderStopped)
        && before.is_none_or(|s| s.close_reason.is_none());
    let late = u64::try_from(escrow.terms.start_by).is_ok_and(|by| account.block_time > by);
    if !stops || !late || account.started_at == 0 {
        return Vec::new();
    }
    let served = |l: &LegState| l.served_seconds != 0 || l.credited_seconds != 0;
    let has_served = |leg: u16| account.legs.get(usize::from(leg)).is_some_and(served);
    let missed = legs().filter(|(_, index)| !runs(*index) && !has_served(*index));
    missed
        .map(|(leg, _)| (leg.provider.clone(), Start::Missed))
        .collect()
}
