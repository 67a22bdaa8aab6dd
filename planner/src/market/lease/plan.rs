//! The plan of a reconcile: the writes to the chain, to allocations and to the status, and when to reconcile again.

use jiff::{SignedDuration, Timestamp};
use leasehold_crds::{
    lease::GpuLeaseStatus, market::allocation::GpuAllocationSpec, payment::money::TokenAmount,
};

use super::{starts::Start, world::AllocationSeen};
use crate::escrow::{Hash, Terms};

/// A write to the chain that a stored intent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainCall {
    /// Open the account with that deposit; refused after `valid_until` (Unix seconds).
    Open {
        terms: Terms,
        deposit: TokenAmount,
        valid_until: u64,
    },
    /// Fill it up to that total.
    Fund { terms: Terms, total: TokenAmount },
    /// Close it and pay out the legs in the bitmap.
    Close { terms: Terms, payouts: u16 },
}

/// A write to an allocation.
#[derive(Clone, Debug, PartialEq)]
pub enum AllocationWrite {
    /// Ask a provider to host it.
    Create {
        namespace: String,
        name: String,
        /// Id of the account that pays for it.
        escrow_id: Hash,
        spec: Box<GpuAllocationSpec>,
    },
    /// Ask the provider to stop.
    Release {
        namespace: String,
        name: String,
        /// Whether what its job left behind goes too.
        drop_results: bool,
    },
    /// Let the provider serve longer.
    Prolong {
        namespace: String,
        name: String,
        not_after: i64,
    },
    /// Nothing was ever paid: delete the allocation.
    Delete { namespace: String, name: String },
}

/// The writes of a reconcile, and when to reconcile again.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Whether the finalizer is to be held; `None` leaves it as it is.
    pub finalizer: Option<bool>,
    /// Writes to allocations, in this order.
    pub allocations: Vec<AllocationWrite>,
    /// The write to the chain that an intent stored earlier asks for.
    pub call: Option<ChainCall>,
    /// The status to be reported.
    pub status: GpuLeaseStatus,
    /// What this reconcile shows of the starts of providers, by name. It counts once the status is stored.
    pub starts: Vec<(String, Start)>,
    /// The provider whose answers to other leases are awaited. The lease is enqueued when it has answered one.
    pub queued_at: Option<String>,
    /// When to reconcile again at the latest.
    pub wake: Timestamp,
}

impl Plan {
    /// The status to report if not every write to an allocation succeeded: a lease is not closed before its allocations are
    /// withdrawn, because they would not be withdrawn afterwards.
    #[must_use]
    pub fn status_if_incomplete(&self, before: &GpuLeaseStatus) -> GpuLeaseStatus {
        if self.status.phase.is_over() {
            before.clone()
        } else {
            self.status.clone()
        }
    }

    /// The allocations of a round that begins with this plan: the provider and the name of each.
    pub fn new_allocations(&self, before: &GpuLeaseStatus) -> impl Iterator<Item = (&str, &str)> {
        let begins = round_of(before) != round_of(&self.status);
        let escrow = self.status.escrow.as_ref().filter(|_| begins);
        let legs = escrow.into_iter().flat_map(|e| &e.legs);
        legs.map(|leg| (leg.provider.as_str(), leg.namespace.as_str()))
    }

    /// Whether the status must be written before anything else, because a round or an intent begins (M2), or because
    /// there is no status: the finalizer of a lease without a status means that its status was lost, and that the chain
    /// must be read before the lease can end. It is therefore added to a lease that has a status.
    #[must_use]
    pub fn must_persist_first(&self, before: Option<&GpuLeaseStatus>) -> bool {
        let after = &self.status;
        let Some(before) = before else {
            return !after.phase.is_over();
        };
        round_of(before) != round_of(after) || (after.intent.is_some() && before.intent != after.intent)
    }
}

/// The round of a status, and the id of its account.
fn round_of(status: &GpuLeaseStatus) -> (i64, Option<&str>) {
    let id = status.escrow.as_ref().map(|e| e.terms.id.as_str());
    (status.round, id)
}

/// The time this many seconds after `now`.
pub(super) fn in_seconds(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX / 4).min(1 << 33);
    now.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

/// Namespace and name of an allocation.
pub(super) fn keys(seen: &AllocationSeen) -> (String, String) {
    let meta = &seen.object.metadata;
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}
