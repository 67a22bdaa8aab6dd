//! What keeps administrators and autoscalers from removing the pods of a lease while it is paid for. Whoever must remove
//! them nevertheless deletes them instead of evicting them, and the time without pods is credited to the tenant.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use leasehold_crds::GpuReservation;

use super::{NAME, labels, meta, results_server};

/// Annotations of each pod: neither the Kubernetes cluster autoscaler nor Karpenter removes its node.
const KEPT: [(&str, &str); 2] = [
    ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
    ("karpenter.sh/do-not-disrupt", "true"),
];

/// Annotations of the pods of the workload.
pub(super) fn annotations() -> BTreeMap<String, String> {
    KEPT.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Permits no eviction of a pod of the workload. `maxUnavailable: 0` would require a controller with a number of replicas.
pub(super) fn budget(reservation: &GpuReservation) -> PodDisruptionBudget {
    let nodes = i32::try_from(reservation.spec.allocation.nodes).unwrap_or(i32::MAX);
    PodDisruptionBudget {
        metadata: meta(reservation, NAME),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(nodes)),
            selector: Some(LabelSelector {
                match_labels: Some(labels(&reservation.spec)),
                ..results_server::selector("DoesNotExist")
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
