//! The last snapshot of the account in the status, by which the stop rule decides while the chain cannot be read.

use jiff::Timestamp;
use leasehold_crds::{
    market::allocation::AllocationPhase, payment::escrow::EscrowSnapshot,
    provider::reservation::GpuReservationStatus,
};

use super::{
    present,
    stop::{CHAIN_OUTAGE_SECONDS_MIN, Snapshot},
    unix, wire,
    world::World,
};
use crate::{escrow::Account, observed::Observed};

/// Two reads of one reconcile are at most a few blocks apart.
const BLOCK_SECONDS: u64 = 15;

/// Records the last snapshot, and since when the chain cannot be read. An equal snapshot keeps its old times, so that
/// the status does not change with every block.
pub(super) fn record_chain(world: &World<'_>, now: Timestamp, status: &mut GpuReservationStatus) {
    match &world.account {
        Observed::Unknown(_) => {
            status.chain_unreadable_since.get_or_insert(now.as_second());
        }
        Observed::Known(read) => {
            if let (Some(since), Some(old)) = (
                status.chain_unreadable_since.take(),
                status.escrow.as_ref().and_then(snapshot),
            ) && unix(now) >= old.paid_until_local() + CHAIN_OUTAGE_SECONDS_MIN
                && now.as_second() >= since + wire(CHAIN_OUTAGE_SECONDS_MIN)
                && status.phase == AllocationPhase::Active
            {
                status.grace_used = true;
            }
            if let Some(account) = read.present() {
                let next = snapshot_of(account, now);
                // One read may be wrong, including its time, and only the snapshot shows when the paid time ends while
                // the chain cannot be read.
                let agreed = present(&world.second).is_some_and(|a| {
                    let second = snapshot_of(a, now);
                    same_money(&second, &next) && second.block_time.abs_diff(next.block_time) <= BLOCK_SECONDS
                });
                if agreed && !status.escrow.as_ref().is_some_and(|old| same_money(old, &next)) {
                    status.escrow = Some(next);
                }
            }
        }
    }
}

/// Whether two snapshots differ only in their times.
pub(super) fn same_money(a: &EscrowSnapshot, b: &EscrowSnapshot) -> bool {
    (&a.deposited, a.paid_until, a.running, a.closed) == (&b.deposited, b.paid_until, b.running, b.closed)
}

/// The snapshot of an account that was read at `now`.
pub(super) fn snapshot_of(account: &Account, now: Timestamp) -> EscrowSnapshot {
    EscrowSnapshot {
        deposited: account.deposited.to_string(),
        paid_until: wire(account.paid_until),
        paid_seconds: wire(account.paid_seconds),
        running: account.running != 0,
        closed: account.closed,
        block_time: wire(account.block_time),
        read_at: now.as_second(),
    }
}

/// A stored snapshot, as the stop rule takes it.
pub(super) fn snapshot(wire: &EscrowSnapshot) -> Option<Snapshot> {
    (wire.paid_until > 0).then(|| Snapshot {
        paid_until: u64::try_from(wire.paid_until).unwrap_or_default(),
        block_time: u64::try_from(wire.block_time).unwrap_or_default(),
        read_at: u64::try_from(wire.read_at).unwrap_or_default(),
    })
}
