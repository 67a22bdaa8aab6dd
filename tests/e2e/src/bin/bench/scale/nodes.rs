//! GPUs of nodes that run nothing. This program writes what agents would report.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::SignedDuration;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease as Liveness, LeaseSpec},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event},
};
use leasehold_crds::{
    GpuNode, GpuOffer, GpuPool, LABEL_LEASE, PROVIDER_NAMESPACE_PREFIX,
    lease::workload::NodeShape,
    provider::node::{DeviceHealth, GpuDevice, GpuHolder, GpuNodeStatus, NodeCondition, NodeReason},
    shared::conditions::{ConditionStatus, condition},
};
use leasehold_e2e::{NAMESPACE, Stack, kwok_node, within};
use leasehold_planner::ports::Clock as _;
use leasehold_runtime::SystemClock;
use serde_json::json;

use super::{GPUS_OF_A_NODE, PROVIDER};

const CLASS: &str = "a100-80g-pcie";
/// Concurrent requests.
const AT_ONCE: usize = 16;
/// An agent with a short period asks its kubelet this often for the holders of GPUs.
const HOLDERS_PERIOD: Duration = Duration::from_millis(250);
/// Validity of the agents' Leases, as nobody renews them.
const HEARD_FOR: SignedDuration = SignedDuration::from_hours(6);

/// The nodes, and the task that writes the holders of their GPUs.
pub(super) struct Fleet {
    nodes: usize,
    holders: tokio::task::JoinHandle<()>,
}

impl Fleet {
    /// Creates nodes with GPUs.
    pub(super) async fn make(stack: &mut Stack, nodes: usize) -> anyhow::Result<Self> {
        let shape = NodeShape {
            cpu: "64".into(),
            memory: "512Gi".into(),
            ephemeral_storage: "2Ti".into(),
            gpus: i64::try_from(GPUS_OF_A_NODE)?,
        };
        let names: Vec<String> = (0..nodes).map(|n| format!("{PROVIDER}-{n:05}")).collect();
        let objects: Vec<_> = names.iter().map(|n| kwok_node(PROVIDER, n, &shape)).collect();
        stack.cluster.add_kwok_nodes(&objects).await?;
        let client = &stack.client;
        // Probes of so many nodes, one after the other, would be measured as well.
        let without_root = json!({"spec": {"userNamespaces": "Never"}});
        Api::<GpuPool>::all(client.clone())
            .patch(PROVIDER, &PatchParams::default(), &Patch::Merge(&without_root))
            .await?;
        stream::iter(names.iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |name| introduce(client, name))
            .await?;
        Ok(Self {
            nodes,
            holders: tokio::spawn(tell_holders(client.clone())),
        })
    }

    /// Waits until the provider offers all of them.
    pub(super) async fn offered(&self, stack: &Stack) -> anyhow::Result<()> {
        let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{PROVIDER}");
        let api = Api::<GpuOffer>::namespaced(stack.client.clone(), &namespace);
        let nodes = i64::try_from(self.nodes)?;
        within(Duration::from_secs(120), "the offer of all nodes", || async {
            let offer = api.get_opt(PROVIDER).await?;
            let free: i64 = offer
                .iter()
                .flat_map(|o| &o.spec.rows)
                .map(|r| r.nodes_free)
                .sum();
            Ok(if free >= nodes { Ok(()) } else { Err(free) })
        })
        .await
    }

    /// Stops writing holders.
    pub(super) fn end(self) {
        self.holders.abort();
    }
}

/// Creates a GpuNode with healthy GPUs, and its agent's Lease.
async fn introduce(client: &Client, node: &str) -> anyhow::Result<()> {
    let api = Api::<GpuNode>::all(client.clone());
    let object: GpuNode = serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": node}, "spec": {},
    }))?;
    api.create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("create GpuNode {node}"))?;
    write(&api, node, &[]).await?;
    let heard = Liveness {
        metadata: ObjectMeta {
            name: Some(node.into()),
            labels: Some([("app.kubernetes.io/managed-by".into(), "leasehold-agent".into())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some("bench".into()),
            renew_time: Some(MicroTime(SystemClock.now() + HEARD_FOR)),
            ..LeaseSpec::default()
        }),
    };
    Api::<Liveness>::namespaced(client.clone(), NAMESPACE)
        .create(&PostParams::default(), &heard)
        .await
        .with_context(|| format!("create the agent's Lease of {node}"))?;
    Ok(())
}

fn uuid(node: &str, index: usize) -> String {
    format!("GPU-{node}-{index}")
}

fn status(node: &str, holders: &[GpuHolder]) -> GpuNodeStatus {
    let device = |index: usize| GpuDevice {
        index: i64::try_from(index).unwrap_or_default(),
        uuid: uuid(node, index),
        name: "NVIDIA A100 80GB PCIe".into(),
        class: CLASS.into(),
        memory_nominal_bytes: 80_000_000_000,
        memory_usable_bytes: 84_974_239_744,
        compute_capability: "8.0".into(),
        pci_bus_id: format!("00000000:{:02X}:00.0", index + 1),
        health: DeviceHealth::Healthy,
        ..GpuDevice::default()
    };
    let well = [
        (NodeCondition::Healthy, NodeReason::AllHealthy),
        (NodeCondition::WitnessesAgree, NodeReason::Agree),
        (NodeCondition::NoForeignProcesses, NodeReason::OnlyHolders),
    ];
    GpuNodeStatus {
        class: CLASS.into(),
        gpu_count: i64::try_from(GPUS_OF_A_NODE).unwrap_or_default(),
        driver_version: "570.86.15".into(),
        cuda_version: "12.8".into(),
        devices: (0..GPUS_OF_A_NODE).map(device).collect(),
        holders: holders.to_vec(),
        conditions: well
            .into_iter()
            .map(|(type_, reason)| condition(type_, ConditionStatus::True, reason, String::new(), 1))
            .collect(),
    }
}

async fn write(api: &Api<GpuNode>, node: &str, holders: &[GpuHolder]) -> anyhow::Result<()> {
    let patch = json!({"status": status(node, holders)});
    api.patch_status(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("write the status of GpuNode {node}"))?;
    Ok(())
}

/// Namespace and name of the pod on each GPU of a node.
type Slots = [Option<(String, String)>; GPUS_OF_A_NODE];

/// Writes the holders of GPUs into each GpuNode, until it is aborted.
async fn tell_holders(client: Client) {
    let pods = Api::<Pod>::all(client.clone());
    let api = Arc::new(Api::<GpuNode>::all(client));
    let mine = watcher::Config::default().labels(LABEL_LEASE);
    let mut events = pin!(watcher::watcher(pods, mine));
    let mut nodes: BTreeMap<String, Slots> = BTreeMap::new();
    let mut changed: BTreeSet<String> = BTreeSet::new();
    let mut tick = tokio::time::interval(HOLDERS_PERIOD);
    loop {
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => note(&mut nodes, &mut changed, &pod, true),
                Ok(Event::Delete(pod)) => note(&mut nodes, &mut changed, &pod, false),
                Ok(Event::Init | Event::InitDone) => {}
                Err(error) => eprintln!("watch of pods interrupted: {error}"),
            },
            _ = tick.tick() => {
                let due: Vec<_> = std::mem::take(&mut changed).into_iter().collect();
                let (api, nodes) = (&api, &nodes);
                stream::iter(due)
                    .for_each_concurrent(AT_ONCE, |node| async move {
                        let held = nodes.get(&node).map(|slots| holders(&node, slots)).unwrap_or_default();
                        if let Err(error) = write(api, &node, &held).await {
                            eprintln!("{error:#}");
                        }
                    })
                    .await;
            }
        }
    }
}

/// Assigns a GPU of its node to a running pod, and frees it when the pod is gone.
fn note(nodes: &mut BTreeMap<String, Slots>, changed: &mut BTreeSet<String>, pod: &Pod, there: bool) {
    let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone()) else {
        return;
    };
    let slots = nodes.entry(node.clone()).or_default();
    let key = (pod.namespace().unwrap_or_default(), pod.name_any());
    let at = slots.iter().position(|slot| slot.as_ref() == Some(&key));
    let next = match (at, there) {
        (None, true) => slots
            .iter()
            .position(Option::is_none)
            .map(|free| (free, Some(key))),
        (Some(at), false) => Some((at, None)),
        (Some(_), true) | (None, false) => None,
    };
    if let Some((index, holder)) = next {
        slots[index] = holder;
        changed.insert(node);
    }
}

fn holders(node: &str, slots: &Slots) -> Vec<GpuHolder> {
    let held = slots.iter().enumerate();
    held.filter_map(|(index, slot)| {
        let (namespace, pod) = slot.clone()?;
        Some(GpuHolder {
            namespace,
            pod,
            uuids: vec![uuid(node, index)],
        })
    })
    .collect()
}
