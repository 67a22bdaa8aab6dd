//! What the supply needs of a cluster's Nodes, GpuNodes and reservations.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::api::resource::Quantity};
use leasehold_crds::{
    GPU_RESOURCE, GpuNode, GpuReservation,
    market::allocation::AllocationPhase,
    provider::node::{GpuDevice, GpuNodeStatus},
    shared::quantity,
};

use super::supply::{GpusSeen, Hold};
use crate::{
    provider::health::{claims, unfit},
    request::{Shape, Version},
};

/// Capacity that reservations hold and no pod requests yet. `pods` are the namespaces and nodes of pods that have not
/// ended.
pub fn holds<'a>(
    reservations: impl IntoIterator<Item = &'a GpuReservation>,
    pods: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<Hold> {
    let mut requested: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (namespace, node) in pods {
        requested.entry(namespace).or_default().insert(node);
    }
    let hold = |reservation: &GpuReservation| {
        let name = reservation.metadata.name.clone().unwrap_or_default();
        let requested = requested.get(name.as_str());
        let waits = |n: &&String| requested.is_none_or(|nodes| !nodes.contains(n.as_str()));
        let nodes: Vec<_> = reservation.spec.nodes.iter().filter(waits).cloned().collect();
        if nodes.is_empty() || !holds_capacity(reservation) {
            return None;
        }
        Some(Hold {
            shape: Shape::from_wire(&reservation.spec.allocation.per_node).ok()?,
            nodes,
            name,
        })
    };
    reservations.into_iter().filter_map(hold).collect()
}

/// Whether a reservation's pods run or may still come.
fn holds_capacity(reservation: &GpuReservation) -> bool {
    let Some(status) = &reservation.status else {
        return true;
    };
    let has_ended = status.job.is_some() || status.stop_reason.is_some();
    let may_run = match status.phase {
        AllocationPhase::Requested
        | AllocationPhase::Reserved
        | AllocationPhase::Provisioning
        | AllocationPhase::Active => true,
        AllocationPhase::Declined
        | AllocationPhase::Suspended
        | AllocationPhase::Stopping
        | AllocationPhase::Stopped => false,
    };
    may_run && !has_ended
}

/// Whether pods can be scheduled to a node: it is Ready, not cordoned, and has no taint but that of GPUs.
#[must_use]
pub fn is_schedulable(node: &Node) -> bool {
    let cordoned = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    let tainted = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.as_ref())
        .is_some_and(|taints| {
            // Workloads tolerate the GPU taint that device plugins' installers set, and no other.
            taints
                .iter()
                .any(|t| t.effect != "PreferNoSchedule" && t.key != GPU_RESOURCE)
        });
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    ready && !cordoned && !tainted
}

/// Whether a runtime of the node supports user namespaces.
#[must_use]
pub fn has_user_namespaces(node: &Node) -> bool {
    let handlers = node.status.as_ref().and_then(|s| s.runtime_handlers.as_ref());
    handlers.is_some_and(|h| {
        h.iter().any(|h| {
            h.features
                .as_ref()
                .is_some_and(|f| f.user_namespaces == Some(true))
        })
    })
}

/// A list of resources as a shape; what it does not name is 0.
#[must_use]
pub fn shape(resources: &BTreeMap<String, Quantity>) -> Shape {
    let of = |key: &str| resources.get(key).map_or("0", |q| q.0.as_str());
    Shape {
        gpus: quantity::bytes(of(GPU_RESOURCE)).unwrap_or(0),
        millicores: quantity::millicores(of("cpu")).unwrap_or(0),
        memory: quantity::bytes(of("memory")).unwrap_or(0),
        scratch: quantity::bytes(of("ephemeral-storage")).unwrap_or(0),
    }
}

/// The GPUs of a node, as its agent reports them.
#[must_use]
pub fn gpus_seen(node: &GpuNode, alive: bool) -> GpusSeen {
    let nothing = GpuNodeStatus::default();
    let status = node.status.as_ref().unwrap_or(&nothing);
    let lowest = |f: fn(&GpuDevice) -> Version| status.devices.iter().map(f).min().unwrap_or_default();
    let (healthy, (reason, message)) = match unfit(status) {
        None => (true, Default::default()),
        Some(why) => (false, why),
    };
    GpusSeen {
        sell: node.spec.sell,
        class: node
            .spec
            .class_override
            .clone()
            .unwrap_or_else(|| status.class.clone()),
        memory: status
            .devices
            .iter()
            .map(|d| u64::try_from(d.memory_nominal_bytes).unwrap_or(0))
            .min()
            .unwrap_or(0),
        compute_capability: lowest(|d| Version::parse(&d.compute_capability).unwrap_or_default()),
        cuda: Version::parse(&status.cuda_version).unwrap_or_default(),
        healthy,
        reason,
        message,
        claims: claims(status),
        alive,
    }
}
