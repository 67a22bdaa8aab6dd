//! What the supply needs of a cluster's Nodes, GpuNodes and reservations.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{core::v1::Node, node::v1::RuntimeClass},
    apimachinery::pkg::api::resource::Quantity,
};
use leasehold_crds::{
    GPU_RESOURCE, GpuNode, GpuReservation,
    market::allocation::AllocationPhase,
    provider::node::{GpuDevice, GpuNodeStatus, GpuSlice},
    shared::{architecture::Architecture, quantity, text},
};

use super::supply::{GpusSeen, Hold, PoolRuntime, Taint};
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
            shape: pod_shape(reservation)?,
            nodes,
            name,
        })
    };
    reservations.into_iter().filter_map(hold).collect()
}

/// What each pod of a reservation takes: its container and the overhead of its RuntimeClass.
pub(super) fn pod_shape(reservation: &GpuReservation) -> Option<Shape> {
    let spec = &reservation.spec;
    let container = Shape::from_wire(&spec.allocation.per_node).ok()?;
    let overhead = spec
        .hosting
        .overhead
        .as_ref()
        .map_or_else(Shape::default, |o| Shape {
            gpus: 0,
            millicores: quantity::millicores(&o.cpu).unwrap_or(0),
            memory: quantity::bytes(&o.memory).unwrap_or(0),
            scratch: quantity::bytes(&o.ephemeral_storage).unwrap_or(0),
        });
    Some(container.plus(&overhead))
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
        // A pause keeps the storage only. Once its nodes have room again, it is not promised to others.
        AllocationPhase::Suspended => status.holds_room,
        AllocationPhase::Declined | AllocationPhase::Stopping | AllocationPhase::Stopped => false,
    };
    may_run && !has_ended
}

/// Prefix of the resources of slices, with the strategy `mixed` of the device plugin.
const SLICE_RESOURCES: &str = "nvidia.com/mig-";

/// A resource of MIG slices that a node allocates.
#[must_use]
pub fn slice_resource(node: &Node) -> Option<String> {
    let (name, _) = allocated(node, |name| name.starts_with(SLICE_RESOURCES))?;
    Some(name.clone())
}

/// A resource with such a name of which a node allocates at least one.
fn allocated(node: &Node, has_name: impl Fn(&str) -> bool) -> Option<(&String, &Quantity)> {
    let allocatable = node.status.as_ref()?.allocatable.as_ref()?;
    allocatable
        .iter()
        .find(|(name, q)| has_name(name) && quantity::bytes(&q.0).is_ok_and(|count| count > 0))
}

/// Whether a node is Ready and not cordoned.
#[must_use]
pub fn is_schedulable(node: &Node) -> bool {
    let cordoned = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    ready && !cordoned
}

/// Taints of a node that keep pods away. The GPU taint that installers of device plugins set is tolerated by every
/// workload, with any effect. The taint of a cordoned node is part of [`is_schedulable`].
#[must_use]
pub fn taints(node: &Node) -> Vec<Taint> {
    let all = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let keeps_away = |taint: &&k8s_openapi::api::core::v1::Taint| {
        taint.effect != "PreferNoSchedule" && taint.key != GPU_RESOURCE
    };
    all.into_iter()
        .flatten()
        .filter(keeps_away)
        .map(|taint| Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: taint.effect.clone(),
        })
        .collect()
}

/// Label of every Node that kubelets set.
const ARCHITECTURE: &str = "kubernetes.io/arch";

/// Architecture of a node, if it is one for which leases can ask.
#[must_use]
pub fn architecture(node: &Node) -> Option<Architecture> {
    Architecture::parse(node.metadata.labels.as_ref()?.get(ARCHITECTURE)?)
}

/// Handlers of the runtime of a node, and whether each has user namespaces.
#[must_use]
pub fn handlers(node: &Node) -> BTreeMap<String, bool> {
    let handlers = node.status.as_ref().and_then(|s| s.runtime_handlers.as_ref());
    handlers
        .into_iter()
        .flatten()
        .map(|handler| {
            let features = handler.features.as_ref();
            let has = features.is_some_and(|f| f.user_namespaces == Some(true));
            (handler.name.clone().unwrap_or_default(), has)
        })
        .collect()
}

/// Longest part of [`software`], in characters.
const SOFTWARE_MAX: usize = 48;

/// The boot and the versions of a node by which its pods run, for a person. `None` if the node or its agent does not report
/// them, as before the first report.
#[must_use]
pub fn software(node: &Node, driver: &str) -> Option<String> {
    let info = node.status.as_ref()?.node_info.as_ref()?;
    if driver.is_empty() || info.kubelet_version.is_empty() {
        return None;
    }
    let parts = [
        ("boot", &*info.boot_id),
        ("kubelet", &*info.kubelet_version),
        ("runtime", &*info.container_runtime_version),
        ("kernel", &*info.kernel_version),
        ("driver", driver),
    ];
    let text = |(what, value): (&str, &str)| {
        let value = text::printable(value);
        format!("{what} {}", value.chars().take(SOFTWARE_MAX).collect::<String>())
    };
    Some(parts.map(text).join(", "))
}

/// How the pods of a pool with this RuntimeClass run.
#[must_use]
pub fn pool_runtime(class: &RuntimeClass) -> PoolRuntime {
    let overhead = class.overhead.as_ref().and_then(|o| o.pod_fixed.as_ref());
    let scheduling = class.scheduling.as_ref();
    PoolRuntime {
        handler: class.handler.clone(),
        overhead: overhead.map(shape).unwrap_or_default(),
        node_selector: scheduling
            .and_then(|s| s.node_selector.clone())
            .unwrap_or_default(),
    }
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
    SHARING_STRATEGY
        .into_iter()
        .find_map(|key| named(key, |strategy| !matches!(strategy, "" | "none")))
        .or_else(|| named(REPLICAS, |count| count.parse::<u64>().is_ok_and(|n| n > 1)))
        .or_else(|| named(PRODUCT, |product| product.ends_with(SHARED_PRODUCT)))
        .or_else(|| {
            let is_shared = |name: &str| name.starts_with(RESOURCES) && name.ends_with(SHARED_RESOURCE);
            let (name, quantity) = allocated(node, is_shared)?;
            Some(format!("the node allocates {name}: {}", quantity.0))
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
    let is_sliced: fn(&GpuDevice) -> bool = |d| d.mig_enabled == Some(true);
    let slices: Vec<&GpuSlice> = status.devices.iter().flat_map(|d| &d.slices).collect();
    let one_class = slices.iter().all(|slice| slice.class == slices[0].class);
    let by_slice = !slices.is_empty() && one_class && status.devices.iter().all(is_sliced);
    // The memory in the class of a slice is that of its whole GPU.
    let stated_class = node.spec.class_override.as_deref().filter(|_| !by_slice);
    let stated = stated_memory(stated_class, labels);
    let memory: Vec<i64> = if by_slice {
        slices.iter().map(|slice| slice.memory_bytes).collect()
    } else {
        status.devices.iter().map(|d| d.memory_nominal_bytes).collect()
    };
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
        memory: memory
            .into_iter()
            .map(|bytes| u64::try_from(bytes).unwrap_or(0))
            .map(|reported| if reported > 0 { reported } else { stated })
            .min()
            .unwrap_or(0),
        compute_capability: lowest(|d| Version::parse(&d.compute_capability).unwrap_or_default()),
        cuda: Version::parse(&status.cuda_version).unwrap_or_default(),
        driver: status.driver_version.clone(),
        healthy,
        reason,
        message,
        claims: claims(status),
        shared: uuids(|d| d.shared),
        units: if by_slice {
            slices.iter().map(|slice| slice.uuid.clone()).collect()
        } else {
            claims(status)
        },
        mig: if by_slice { Vec::new() } else { uuids(is_sliced) },
        alive,
    }
}

#[cfg(test)]
mod tests {
    use leasehold_crds::provider::reservation::{GpuReservationSpec, GpuReservationStatus};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_taint_of_gpus_is_tolerated_with_any_effect() {
        let node = json!({"spec": {"taints": [
            {"key": "nvidia.com/gpu", "value": "present", "effect": "NoExecute"},
            {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
            {"key": "spot", "value": "true", "effect": "PreferNoSchedule"},
            {"key": "sku", "value": "gpu", "effect": "NoSchedule"},
        ]}});
        let taints = taints(&serde_json::from_value(node).unwrap());
        let texts: Vec<_> = taints.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["sku=gpu:NoSchedule"]);
    }

    #[test]
    fn the_runtime_and_the_architecture_of_a_node_are_read() {
        let node = json!({
            "metadata": {"labels": {"kubernetes.io/arch": "arm64"}},
            "status": {"runtimeHandlers": [
                {"name": "", "features": {"userNamespaces": true}},
                {"name": "nvidia", "features": {"userNamespaces": false}},
                {"name": "old"},
            ]},
        });
        let node: Node = serde_json::from_value(node).unwrap();
        assert_eq!(architecture(&node), Some(Architecture::Arm64));
        let expected = [("", true), ("nvidia", false), ("old", false)];
        assert_eq!(
            handlers(&node),
            expected.map(|(name, has)| (name.to_owned(), has)).into()
        );
        let class = json!({
            "metadata": {"name": "kata"}, "handler": "kata-qemu",
            "overhead": {"podFixed": {"cpu": "250m", "memory": "1Mi"}},
            "scheduling": {"nodeSelector": {"sandbox": "true"}},
        });
        let runtime = pool_runtime(&serde_json::from_value(class).unwrap());
        assert_eq!(runtime.handler, "kata-qemu");
        assert_eq!(
            (runtime.overhead.millicores, runtime.overhead.memory),
            (250, 1 << 20)
        );
        assert_eq!(runtime.node_selector.len(), 1);
    }

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
    fn slices_of_one_profile_are_sold_by_the_slice_with_their_own_memory() {
        let device = |gpu: usize, classes: &[&str]| GpuDevice {
            uuid: format!("GPU-{gpu}"),
            memory_nominal_bytes: 80 << 30,
            mig_enabled: Some(!classes.is_empty()),
            slices: classes
                .iter()
                .enumerate()
                .map(|(n, class)| GpuSlice {
                    uuid: format!("MIG-{gpu}-{n}"),
                    class: (*class).to_owned(),
                    memory_bytes: 9_728 << 20,
                })
                .collect(),
            ..GpuDevice::default()
        };
        let node = |devices: Vec<GpuDevice>| GpuNode {
            status: Some(GpuNodeStatus {
                devices,
                ..GpuNodeStatus::default()
            }),
            ..GpuNode::default()
        };
        let seen = |devices: Vec<GpuDevice>| gpus_seen(&node(devices), &BTreeMap::new(), true);
        let small = "a100-80g-pcie-mig-1g-10gb";
        let equal = seen(vec![device(0, &[small, small]), device(1, &[small])]);
        assert_eq!(equal.units, ["MIG-0-0", "MIG-0-1", "MIG-1-0"]);
        assert_eq!((equal.distinct(), equal.memory), (3, 9_728 << 20));
        assert!(equal.mig.is_empty());
        assert_eq!(equal.claims, ["GPU-0", "GPU-1"]);
        let unequal = seen(vec![device(0, &[small, "a100-80g-pcie-mig-2g-20gb"])]);
        assert_eq!(
            (unequal.mig, unequal.units),
            (vec!["GPU-0".to_owned()], vec!["GPU-0".to_owned()])
        );
        let beside_whole = seen(vec![device(0, &[small]), device(1, &[])]);
        assert_eq!(beside_whole.mig, ["GPU-0"]);
        let mut unreported = device(0, &[small]);
        unreported.slices[0].memory_bytes = 0;
        let mut unreported = node(vec![unreported]);
        unreported.spec.class_override = Some(small.to_owned());
        assert_eq!(
            gpus_seen(&unreported, &BTreeMap::new(), true).memory,
            0,
            "80g is the memory of the whole GPU"
        );
        let node = json!({"status": {"allocatable": {"nvidia.com/mig-1g.10gb": "7", "nvidia.com/gpu": "0"}}});
        let mixed = slice_resource(&serde_json::from_value(node).unwrap());
        assert_eq!(mixed.as_deref(), Some("nvidia.com/mig-1g.10gb"));
    }

    #[test]
    fn a_reservation_that_resumes_holds_room_until_its_pods_are_there() {
        let held = |holds_room: bool, pods: &[(&str, &str)]| {
            let mut object = GpuReservation::new("lease-a", GpuReservationSpec::default());
            object.spec.nodes = vec!["n1".into()];
            let shape = json!({"cpu": "1", "memory": "1Gi", "gpus": 1});
            object.spec.allocation.per_node = serde_json::from_value(shape).unwrap();
            let overhead = json!({"cpu": "250m", "memory": "0", "ephemeralStorage": "0"});
            object.spec.hosting.overhead = serde_json::from_value(overhead).unwrap();
            object.status = Some(GpuReservationStatus {
                phase: AllocationPhase::Suspended,
                holds_room,
                ..GpuReservationStatus::default()
            });
            holds([&object], pods.iter().copied())
        };
        assert!(held(false, &[]).is_empty(), "paused");
        let resumes = held(true, &[]);
        assert_eq!(resumes[0].nodes, ["n1"]);
        assert_eq!(resumes[0].shape.millicores, 1_250, "with the overhead of its pod");
        assert!(held(true, &[("lease-a", "n1")]).is_empty());
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
