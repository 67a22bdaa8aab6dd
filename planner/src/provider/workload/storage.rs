//! Volumes: a claim for each node, which outlives its pods.

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use leasehold_crds::GpuReservation;

use super::{meta, numbered};

/// Name of the volume in a pod, and of its claim.
pub(super) const VOLUME: &str = "data";

/// Name of the claim of a node, by the index of the node in the reservation.
pub(super) fn claim_name(index: i64) -> String {
    numbered(VOLUME, index)
}

/// The claims, one for each node.
pub(super) fn volumes(reservation: &GpuReservation) -> Vec<PersistentVolumeClaim> {
    let spec = &reservation.spec.allocation;
    let Some(storage) = &spec.storage else {
        return Vec::new();
    };
    let volume = |index| PersistentVolumeClaim {
        metadata: meta(reservation, &claim_name(index)),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: reservation.spec.hosting.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(storage.size.clone()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    };
    (0..spec.nodes).map(volume).collect()
}
