//! Random nodes, and random pods that are bound to them, in every form in which a pod can request resources.

use leasehold_crds::{
    GpuPool,
    provider::pool::{GpuPoolSpec, PoolToleration},
};
use leasehold_planner::provider::offer::{
    pod_requests::{FullPod, pod_requests},
    supply::GpusSeen,
};
use leasehold_simulator::random::Random;
use serde_json::{Map, Value, json};

pub(crate) const GPU: &str = "nvidia.com/gpu";
const HUGE_PAGES: &str = "hugepages-2Mi";
const HUGE_PAGE: u64 = 2 << 20;

/// One node with its pods, and the pool that sells it.
pub(crate) struct Situation {
    /// Name of the node.
    pub(crate) name: String,
    /// The Node.
    pub(crate) node: Value,
    /// The pods that are bound to it.
    pub(crate) pods: Vec<BoundPod>,
    /// The pool.
    pub(crate) pool: GpuPool,
    /// What the agent of the node reports.
    pub(crate) gpus: GpusSeen,
}

/// A pod that is bound to the node.
pub(crate) struct BoundPod {
    /// The Pod.
    pub(crate) object: Value,
    /// Its status, as a kubelet would write it.
    pub(crate) status: Value,
    /// Whether it is deleted, and has not ended.
    pub(crate) is_terminating: bool,
}

/// The RuntimeClasses of the cluster.
pub(crate) fn runtime_classes() -> [Value; 4] {
    let class = |name: &str, overhead: Value, labels: Value| {
        json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": "runc",
            "overhead": {"podFixed": overhead}, "scheduling": {"nodeSelector": labels},
        })
    };
    [
        class("plain", json!({}), json!({})),
        class("sandbox", json!({"cpu": "250m", "memory": "120Mi"}), json!({})),
        class(
            "disk",
            json!({"memory": "1234567", "ephemeral-storage": "3G"}),
            json!({}),
        ),
        class("labelled", json!({"cpu": "1m"}), json!({"sandbox": "true"})),
    ]
}

/// Name of a RuntimeClass, or none.
fn runtime_class(random: &mut Random) -> Option<String> {
    let names = [
        None,
        None,
        None,
        Some("plain"),
        Some("sandbox"),
        Some("disk"),
        Some("labelled"),
    ];
    random.pick(&names).copied().flatten().map(str::to_owned)
}

/// What is left of a node for further pods, so that not every node is full.
struct Budget {
    millicores: u64,
    memory: u64,
    scratch: u64,
    gpus: u64,
    huge_pages: u64,
}

impl Budget {
    /// A share of the budget, which is taken from it. Sometimes more than is left.
    fn take(of: &mut u64, random: &mut Random) -> u64 {
        if random.per_mille(15) {
            return *of + random.between(1, 5);
        }
        let share = random.below(*of / 2 + 1);
        *of -= share;
        share
    }
}

impl Situation {
    /// The situation of that name.
    pub(crate) fn random(name: String, random: &mut Random) -> Self {
        let gpus = random.between(1, 8);
        let mut budget = Budget {
            millicores: random.between(500, 96_000),
            memory: random.between(1 << 20, 900 << 20) << 10,
            scratch: random.between(1 << 30, 2 << 40),
            gpus,
            huge_pages: random.below(2) * random.between(8, 512),
        };
        let pods_max = if random.per_mille(250) {
            random.between(1, 6)
        } else {
            110
        };
        let node = node(&name, &budget, pods_max, random);
        let pods = (0..random.below(7))
            .map(|n| bound_pod(&format!("{name}-{n}"), &name, &mut budget, random))
            .collect();
        let uuids: Vec<String> = (0..gpus).map(|gpu| format!("GPU-{name}-{gpu}")).collect();
        Self {
            node,
            pods,
            pool: pool(random),
            gpus: GpusSeen {
                sell: true,
                class: "h100-80g".into(),
                memory: 80 << 30,
                healthy: true,
                alive: true,
                claims: uuids.clone(),
                units: uuids,
                ..GpusSeen::default()
            },
            name,
        }
    }
}

/// A quantity in one of the notations in which people write it.
fn written(bytes: u64, random: &mut Random) -> String {
    match random.below(6) {
        0 => leasehold_crds::shared::quantity::bytes_text(bytes),
        1 => format!("{}Ki", bytes >> 10),
        2 => format!("{}M", bytes / 1_000_000),
        3 => format!("{}.5Gi", bytes >> 30),
        4 => format!("{}e3", bytes / 1000),
        _ => bytes.to_string(),
    }
}

/// CPU in one of its notations.
fn cpu_written(millicores: u64, random: &mut Random) -> String {
    match random.below(3) {
        0 => format!("{}.{:03}", millicores / 1000, millicores % 1000),
        1 => (millicores / 1000).to_string(),
        _ => format!("{millicores}m"),
    }
}

fn node(name: &str, room: &Budget, pods_max: u64, random: &mut Random) -> Value {
    let allocatable = json!({
        "cpu": format!("{}m", room.millicores),
        "memory": if random.per_mille(500) { format!("{}Ki", room.memory >> 10) } else { room.memory.to_string() },
        "ephemeral-storage": room.scratch.to_string(),
        GPU: room.gpus.to_string(),
        "pods": pods_max.to_string(),
        HUGE_PAGES: (room.huge_pages * HUGE_PAGE).to_string(),
        "example.com/fpga": "2",
    });
    let mut labels = json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
    });
    if random.per_mille(500) {
        labels["sandbox"] = json!("true");
    }
    let taint = |key: &str, value: &str, effect: &str| json!({"key": key, "value": value, "effect": effect});
    let mut taints = Vec::new();
    if random.per_mille(300) {
        let effect = *random
            .pick(&["NoSchedule", "NoExecute"])
            .expect("it has elements");
        taints.push(taint(GPU, "present", effect));
    }
    if random.per_mille(150) {
        let effect = ["NoSchedule", "NoExecute", "PreferNoSchedule"];
        let effect = *random.pick(&effect).expect("it has elements");
        taints.push(taint("sku", "gpu", effect));
    }
    // What the node controller would set.
    let (cordoned, ready) = (random.per_mille(60), !random.per_mille(60));
    if cordoned {
        taints.push(taint("node.kubernetes.io/unschedulable", "", "NoSchedule"));
    }
    if !ready {
        taints.push(taint("node.kubernetes.io/not-ready", "", "NoSchedule"));
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "spec": {"unschedulable": cordoned, "taints": taints},
        "status": {
            "capacity": allocatable, "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    })
}

fn pool(random: &mut Random) -> GpuPool {
    let tolerations = [
        ("sku", Some("gpu"), None),
        ("sku", None, Some("NoSchedule")),
        ("sku", Some("cpu"), None),
        ("other", None, None),
    ];
    let tolerations = tolerations.into_iter().filter(|_| random.per_mille(250));
    let tolerations = tolerations.map(|(key, value, effect)| PoolToleration {
        key: key.into(),
        value: value.map(str::to_owned),
        effect: effect.map(str::to_owned),
    });
    let tolerations = tolerations.collect();
    GpuPool::new(
        "pool",
        GpuPoolSpec {
            price_per_gpu_hour: "1".into(),
            max_duration: "1h".into(),
            max_pause: "0s".into(),
            runtime_class_name: runtime_class(random),
            tolerations,
            ..GpuPoolSpec::default()
        },
    )
}

fn bound_pod(name: &str, node: &str, budget: &mut Budget, random: &mut Random) -> BoundPod {
    let containers: Vec<Value> = (0..random.between(1, 3))
        .map(|n| container(&format!("c{n}"), budget, random))
        .collect();
    let init: Vec<Value> = (0..random.below(4))
        .map(|n| {
            let mut container = container(&format!("i{n}"), budget, random);
            if random.per_mille(500) {
                container["restartPolicy"] = json!("Always");
            }
            container
        })
        .collect();
    let class = runtime_class(random).filter(|class| class != "labelled");
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"of": "situation"}},
        "spec": {
            "nodeName": node, "containers": containers, "initContainers": init, "runtimeClassName": class,
            "tolerations": [{"operator": "Exists"}],
        },
    });
    let of_pod = pod_level(&object, budget, random);
    if let Some(resources) = &of_pod {
        object["spec"]["resources"] = resources.clone();
    }
    let phases = ["Running", "Running", "Running", "Pending", "Succeeded", "Failed"];
    let phase = *random.pick(&phases).expect("it has elements");
    let mut status = json!({"phase": phase});
    if random.per_mille(300) {
        resized(&mut status, &containers, "containerStatuses", budget, random);
        resized(&mut status, &init, "initContainerStatuses", budget, random);
        if random.per_mille(500) {
            let reason = *random.pick(&["Infeasible", "Deferred"]).expect("it has elements");
            status["conditions"] = json!([{"type": "PodResizePending", "status": "True", "reason": reason}]);
        }
        if of_pod.is_some() && random.per_mille(700) {
            status["resources"] = json!({"requests": basic(budget, random)});
            status["allocatedResources"] = basic(budget, random);
        }
    }
    BoundPod {
        is_terminating: !matches!(phase, "Succeeded" | "Failed") && random.per_mille(200),
        object,
        status,
    }
}

/// CPU and memory of which each may be absent.
fn basic(budget: &mut Budget, random: &mut Random) -> Value {
    let mut requests = Map::new();
    if random.per_mille(700) {
        let cpu = Budget::take(&mut budget.millicores, random);
        requests.insert("cpu".into(), json!(cpu_written(cpu, random)));
    }
    if random.per_mille(700) {
        let memory = Budget::take(&mut budget.memory, random);
        requests.insert("memory".into(), json!(written(memory, random)));
    }
    Value::Object(requests)
}

/// A container. A limit without a request is one: the API server copies it.
fn container(name: &str, budget: &mut Budget, random: &mut Random) -> Value {
    let mut requests = basic(budget, random);
    let mut limits = json!({});
    if random.per_mille(300) {
        let scratch = Budget::take(&mut budget.scratch, random);
        requests["ephemeral-storage"] = json!(written(scratch, random));
    }
    if random.per_mille(200) {
        limits[GPU] = json!(Budget::take(&mut budget.gpus, random).to_string());
    }
    if random.per_mille(100) {
        limits["example.com/fpga"] = json!("1");
    }
    // Only beside a request of CPU or memory.
    if budget.huge_pages > 0 && requests.get("cpu").is_some() && random.per_mille(200) {
        let pages = Budget::take(&mut budget.huge_pages, random);
        limits[HUGE_PAGES] = json!((pages * HUGE_PAGE).to_string());
    }
    if requests.get("memory").is_none() && random.per_mille(200) {
        let memory = Budget::take(&mut budget.memory, random);
        limits["memory"] = json!(written(memory, random));
    }
    json!({"name": name, "image": "none", "resources": {"requests": requests, "limits": limits}})
}

/// Requests or limits of a whole pod. The API server accepts none that are less than those of its containers.
fn pod_level(pod: &Value, budget: &mut Budget, random: &mut Random) -> Option<Value> {
    let mut defaulted = pod.clone();
    for list in ["containers", "initContainers"] {
        for container in defaulted["spec"][list].as_array_mut()? {
            let limits = container["resources"]["limits"].as_object().cloned()?;
            container["resources"]["requests"].as_object_mut()?.extend(limits);
        }
    }
    let least = pod_requests(&serde_json::from_value::<FullPod>(defaulted).ok()?);
    let cpu = format!(
        "{}m",
        least.millicores + Budget::take(&mut budget.millicores, random)
    );
    let memory = (least.memory + Budget::take(&mut budget.memory, random)).to_string();
    let both = json!({"cpu": cpu, "memory": memory});
    match random.below(8) {
        0 => Some(json!({"requests": {"cpu": cpu}})),
        1 => Some(json!({"requests": {"memory": memory}})),
        2 => Some(json!({"limits": both})),
        3 => Some(json!({"requests": both, "limits": both})),
        _ => None,
    }
}

/// The state of containers that are being resized: what is allocated and what is in effect.
fn resized(status: &mut Value, containers: &[Value], field: &str, budget: &mut Budget, random: &mut Random) {
    let statuses = containers.iter().filter_map(|container| {
        if random.per_mille(300) {
            return None;
        }
        let mut status = json!({
            "name": container["name"], "image": "none", "imageID": "", "ready": true, "restartCount": 0,
        });
        if random.per_mille(800) {
            status["resources"] = json!({"requests": basic(budget, random)});
        }
        if random.per_mille(800) {
            status["allocatedResources"] = basic(budget, random);
        }
        Some(status)
    });
    status[field] = statuses.collect();
}
