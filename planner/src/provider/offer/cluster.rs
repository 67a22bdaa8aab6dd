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

/// Labels that GPU feature discovery and GKE set on nodes whose device plugin shares GPUs.
const SHARING_STRATEGY: [&str; 2] = [
    "nvidia.com/gpu.sharing-strategy",
    "cloud.google.com/gke-gpu-sharing-strategy",
];
const REPLICAS: &str = "nvidia.com/gpu.replicas";
const PRODUCT: &str = "nvidia.com/gpu.product";
/// End of the product's name in the label, and of the resource's name, if the device plugin renames what it shares.
const SHARED_PRODUCT: &str = "-SHARED";
const SHARED_RESOURCE: &str = ".shared";
/// Resources of NVIDIA's device plugin.
const RESOURCES: &str = "nvidia.com/";

/// What a Node says of time-slicing or MPS: the label or the resource by which several containers can get one GPU.
#[must_use]
pub fn sharing(node: &Node) -> Option<String> {
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let named = |key: &str, shares: fn(&str) -> bool| {
        let value = labels.get(key).filter(|value| shares(value))?;
        Some(format!("the Node has the label {key}={value}"))
    };
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    SHARING_STRATEGY
        .into_iter()
        .find_map(|key| named(key, |strategy| !matches!(strategy, "" | "none")))
        .or_else(|| named(REPLICAS, |count| count.parse::<u64>().is_ok_and(|n| n > 1)))
        .or_else(|| named(PRODUCT, |product| product.ends_with(SHARED_PRODUCT)))
        .or_else(|| {
            let is_shared = |name: &str| name.starts_with(RESOURCES) && name.ends_with(SHARED_RESOURCE);
            let (name, quantity) = allocatable?
                .iter()
                .find(|(name, q)| is_shared(name) && quantity::bytes(&q.0).is_ok_and(|count| count > 0))?;
            Some(format!("the node allocates {name}: {}", quantity.0))
        })
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

/// Label of GPU feature discovery: memory of a GPU in MiB.
const GPU_MEMORY: &str = "nvidia.com/gpu.memory";

/// Memory of a GPU that NVML does not report, in bytes: as in the class that the administrator set, or as in the label of
/// the Node. 0 if neither states it.
fn stated_memory(class: Option<&str>, labels: &BTreeMap<String, String>) -> u64 {
    let gibibytes = |part: &str| part.strip_suffix('g')?.parse::<u64>().ok();
    let in_class = class.and_then(|class| class.split('-').skip(1).find_map(gibibytes));
    let in_label = || labels.get(GPU_MEMORY)?.parse::<u64>().ok();
    let bytes = in_class
        .map(|gib| gib.saturating_mul(1 << 30))
        .or_else(|| in_label().map(|mib| mib.saturating_mul(1 << 20)));
    bytes.unwrap_or(0)
}

/// The GPUs of a node, as its agent reports them. `labels` are those of the Node.
#[must_use]
pub fn gpus_seen(node: &GpuNode, labels: &BTreeMap<String, String>, alive: bool) -> GpusSeen {
    let nothing = GpuNodeStatus::default();
    let status = node.status.as_ref().unwrap_or(&nothing);
    let lowest = |f: fn(&GpuDevice) -> Version| status.devices.iter().map(f).min().unwrap_or_default();
    let uuids = |of: fn(&GpuDevice) -> bool| {
        let devices = status.devices.iter().filter(|d| of(d));
        devices.map(|d| d.uuid.clone()).collect()
    };
    let stated = stated_memory(node.spec.class_override.as_deref(), labels);
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
            .map(|reported| if reported > 0 { reported } else { stated })
            .min()
            .unwrap_or(0),
        compute_capability: lowest(|d| Version::parse(&d.compute_capability).unwrap_or_default()),
        cuda: Version::parse(&status.cuda_version).unwrap_or_default(),
        healthy,
        reason,
        message,
        claims: claims(status),
        shared: uuids(|d| d.shared),
        mig: uuids(|d| d.mig_enabled == Some(true)),
        alive,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn memory_that_nvml_does_not_report_is_taken_from_the_class_override_or_the_label() {
        let seen = |reported: i64, class: Option<&str>, label: Option<&str>| {
            let mut node = GpuNode::default();
            node.spec.class_override = class.map(str::to_owned);
            node.status = Some(GpuNodeStatus {
                class: "gb10".into(),
                devices: vec![GpuDevice {
                    memory_nominal_bytes: reported,
                    ..GpuDevice::default()
                }],
                ..GpuNodeStatus::default()
            });
            let labels = label.map(|mib| (GPU_MEMORY.to_owned(), mib.to_owned()));
            gpus_seen(&node, &labels.into_iter().collect(), true).memory
        };
        assert_eq!(seen(0, None, None), 0);
        assert_eq!(seen(0, Some("gb10-128g"), Some("1024")), 128 << 30);
        assert_eq!(seen(0, Some("gb10"), Some("122570")), 122_570 << 20);
        assert_eq!(
            seen(80 << 30, Some("h100-500g"), Some("1024")),
            80 << 30,
            "NVML counts"
        );
    }

    #[test]
    fn time_slicing_and_mps_are_recognised_by_labels_and_resources() {
        let said = |labels: serde_json::Value, allocatable: serde_json::Value| {
            let node = json!({"metadata": {"labels": labels}, "status": {"allocatable": allocatable}});
            sharing(&serde_json::from_value(node).unwrap())
        };
        let whole = json!({"nvidia.com/gpu": "4", "cpu": "8"});
        let alone = json!({
            "nvidia.com/gpu.sharing-strategy": "none", "nvidia.com/gpu.replicas": "1",
            "nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/mps.capable": "false",
        });
        assert_eq!(said(alone, whole.clone()), None);
        for (key, value) in [
            ("nvidia.com/gpu.sharing-strategy", "time-slicing"),
            ("nvidia.com/gpu.sharing-strategy", "mps"),
            ("cloud.google.com/gke-gpu-sharing-strategy", "time-sharing"),
            ("nvidia.com/gpu.replicas", "4"),
            ("nvidia.com/gpu.product", "Tesla-T4-SHARED"),
        ] {
            let said = said(json!({key: value}), whole.clone());
            assert_eq!(said, Some(format!("the Node has the label {key}={value}")));
        }
        let renamed = said(
            json!({}),
            json!({"nvidia.com/gpu": "0", "nvidia.com/gpu.shared": "8"}),
        );
        assert_eq!(
            renamed.as_deref(),
            Some("the node allocates nvidia.com/gpu.shared: 8")
        );
        assert_eq!(said(json!({}), json!({"nvidia.com/gpu.shared": "0"})), None);
    }
}
