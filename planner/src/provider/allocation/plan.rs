//! What is to be done about an allocation.

use leasehold_crds::{
    GpuAllocation, GpuReservation,
    market::allocation::{AllocationPhase, DeclineReason, Declined, GpuAllocationStatus},
    provider::reservation::GpuReservationSpec,
};

use crate::ports::AcceptanceMessage;

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The reservation to be created, or updated with a later `notAfter` or a release.
    pub reserve: Option<Box<GpuReservationSpec>>,
    /// An acceptance to be signed into the status, once the reservation is stored.
    pub accept: Option<AcceptanceMessage>,
    /// The status to be reported.
    pub status: GpuAllocationStatus,
}

impl Plan {
    /// A plan that only reports.
    pub(super) const fn report(status: GpuAllocationStatus) -> Self {
        Self {
            reserve: None,
            accept: None,
            status,
        }
    }

    /// The new reservation whose pods the cluster must admit before the acceptance is signed. A paid lease that the cluster
    /// refuses would be refunded after `startWithin`; a declined one is placed elsewhere at once.
    #[must_use]
    pub fn to_admit(&self, reservation: Option<&GpuReservation>) -> Option<&GpuReservationSpec> {
        let is_new = reservation.is_none() && self.accept.is_some();
        self.reserve.as_deref().filter(|_| is_new)
    }

    /// The answer if the cluster refuses the pods, in its own words.
    #[must_use]
    pub fn refused(self, words: &str) -> Self {
        let message = format!("the cluster refuses the pods of the lease: {words}");
        Self::declined(self.status, DeclineReason::PodsRefused, &message)
    }

    /// A plan that declines.
    pub(super) fn declined(mut status: GpuAllocationStatus, reason: DeclineReason, message: &str) -> Self {
        status.phase = AllocationPhase::Declined;
        status.not_after = None;
        status.declined = Some(Declined {
            reason: reason.to_string(),
            message: message.chars().take(1000).collect(),
        });
        Self::report(status)
    }

    /// Whether it declines an allocation that was not declined before.
    #[must_use]
    pub fn declines(&self, allocation: &GpuAllocation) -> bool {
        let before = allocation.status.as_ref().and_then(|s| s.declined.as_ref());
        self.status.declined.is_some() && before != self.status.declined.as_ref()
    }
}
