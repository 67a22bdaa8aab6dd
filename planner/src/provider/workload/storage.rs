//! Volumes: a claim for each node. A StatefulSet makes its own from a template; those of a job are made by name.

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use leasehold_crds::GpuReservation;

use super::{labels, meta, numbered};

/// Name of the volume in a pod, and of its claim.
pub(super) const VOLUME: &str = "data";

/// Name of the claim of one node of a job, by the node's number in the reservation.
pub(super) fn claim_name(index: i64) -> String {
    numbered(VOLUME, index)
}

/// The claim of a node, without a namespace: as a StatefulSet's template has it.
pub(super) fn claim(reservation: &GpuReservation, size: &str) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME.into()),
            labels: Some(labels(&reservation.spec)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: reservation.spec.hosting.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(size.into()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The claims of a job, one for each node.
pub(super) fn job_volumes(reservation: &GpuReservation) -> Vec<PersistentVolumeClaim> {
    let spec = &reservation.spec.allocation;
    let Some(storage) = spec.storage.as_ref().filter(|_| spec.workload.job.is_some()) else {
        return Vec::new();
    };
    let volume = |index| PersistentVolumeClaim {
        metadata: meta(reservation, &claim_name(index)),
        ..claim(reservation, &storage.size)
    };
    (0..spec.nodes).map(volume).collect()
}
