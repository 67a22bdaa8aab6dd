//! The fields of an allocation that can still change once it is reserved, some hundred bytes: its reservation repeats the
//! rest, and a provider keeps thousands of both in memory.

use kube::{Resource, api::ObjectMeta};
use leasehold_crds::{
    GpuAllocation, GpuReservation,
    market::allocation::{Acceptance, Declined, GpuAllocationSpec, GpuAllocationStatus},
};
use serde::Deserialize;

use crate::provider::digest::Digest;

/// An allocation.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "GpuAllocation")]
#[serde(from = "GpuAllocation")]
pub(crate) struct AllocationSeen {
    /// Name, namespace, uid, generation and version; nothing else.
    metadata: ObjectMeta,
    open_by: i64,
    not_after: i64,
    release: bool,
    drop_results: bool,
    acceptance: Option<Acceptance>,
    declined: Option<Declined>,
    /// Digest of its status.
    published: Option<Digest>,
}

impl AllocationSeen {
    /// Whether that reservation was made for it, and not for an earlier one of its name.
    pub(crate) fn has(&self, reservation: &GpuReservation) -> bool {
        self.metadata.uid.as_ref() == Some(&reservation.spec.allocation_uid)
    }

    /// The allocation as decisions need it, from the reservation that was made for it. Its status has only what no
    /// reservation contains.
    pub(crate) fn reserved(&self, reservation: &GpuReservation) -> GpuAllocation {
        GpuAllocation {
            metadata: self.metadata.clone(),
            spec: GpuAllocationSpec {
                open_by: self.open_by,
                not_after: self.not_after,
                release: self.release,
                drop_results: self.drop_results,
                ..reservation.spec.allocation.clone()
            },
            status: Some(GpuAllocationStatus {
                acceptance: self.acceptance.clone(),
                declined: self.declined.clone(),
                ..GpuAllocationStatus::default()
            }),
        }
    }

    /// Digest of its status.
    pub(crate) const fn published(&self) -> Option<Digest> {
        self.published
    }
}

impl From<GpuAllocation> for AllocationSeen {
    fn from(allocation: GpuAllocation) -> Self {
        let GpuAllocation {
            metadata,
            spec,
            status,
        } = allocation;
        let published = status.as_ref().map(Digest::of);
        let status = status.unwrap_or_default();
        Self {
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                generation: metadata.generation,
                resource_version: metadata.resource_version,
                ..ObjectMeta::default()
            },
            open_by: spec.open_by,
            not_after: spec.not_after,
            release: spec.release,
            drop_results: spec.drop_results,
            acceptance: status.acceptance,
            declined: status.declined,
            published,
        }
    }
}

#[cfg(test)]
mod tests {
    use leasehold_crds::{market::allocation::StopReason, provider::reservation::GpuReservationSpec};

    use super::*;

    fn allocation() -> GpuAllocation {
        let mut allocation = GpuAllocation::new(
            "lease-x-0",
            GpuAllocationSpec {
                open_by: 5,
                not_after: 7,
                nodes: 2,
                ..GpuAllocationSpec::default()
            },
        );
        allocation.metadata.uid = Some("u".into());
        allocation.metadata.namespace = Some("provider-p".into());
        allocation.metadata.generation = Some(3);
        allocation.metadata.resource_version = Some("9".into());
        allocation
    }

    #[test]
    fn with_its_reservation_it_equals_the_allocation() {
        let mut allocation = allocation();
        allocation.status = Some(GpuAllocationStatus {
            acceptance: Some(Acceptance {
                signature: "0x1".into(),
                ..Acceptance::default()
            }),
            ..GpuAllocationStatus::default()
        });
        let spec = GpuReservationSpec {
            allocation_uid: "u".into(),
            allocation: allocation.spec.clone(),
            ..GpuReservationSpec::default()
        };
        let mut reservation = GpuReservation::new("lease-x-0", spec);
        assert_eq!(
            AllocationSeen::from(allocation.clone()).reserved(&reservation),
            allocation
        );

        // Later changes by the market are in the allocation, not in the reservation.
        allocation.spec.not_after = 8;
        allocation.spec.release = true;
        allocation.spec.drop_results = true;
        let seen = AllocationSeen::from(allocation.clone());
        assert_eq!(seen.reserved(&reservation), allocation);

        assert!(seen.has(&reservation));
        reservation.spec.allocation_uid = "of an earlier one".into();
        assert!(!seen.has(&reservation));
    }

    #[test]
    fn its_status_is_compared_by_digest() {
        let (mut allocation, nothing) = (allocation(), GpuAllocationStatus::default());
        assert_eq!(AllocationSeen::from(allocation.clone()).published(), None);
        allocation.status = Some(nothing.clone());
        let published = AllocationSeen::from(allocation.clone()).published();
        assert_eq!(published, Some(Digest::of(&nothing)));
        allocation.status = Some(GpuAllocationStatus {
            stop_reason: Some(StopReason::Released),
            ..nothing
        });
        assert_ne!(AllocationSeen::from(allocation).published(), published);
    }
}
