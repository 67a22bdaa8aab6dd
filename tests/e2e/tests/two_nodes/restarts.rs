//! Restarts under a lease: of the device plugin and of the kubelet, during which containers run, and of the node.

use anyhow::ensure;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use leasehold_crds::{GpuNode, provider::node::DeviceHealth, shared::conditions::find};
use leasehold_e2e::{Stack, eventually};

use super::{
    LIMIT,
    charged::{Charged, unix},
};

/// How long the device plugin is away, and the node is off.
const AWAY_SECONDS: u64 = 8;

/// The device plugin is away on all nodes, and comes back. The nodes are not sold meanwhile.
pub(super) async fn device_plugin(leases: &[&Charged<'_>]) -> anyhow::Result<()> {
    let stack = leases[0].tenant.stack;
    let sets = Api::<DaemonSet>::namespaced(stack.client.clone(), "kube-system");
    let set = sets.get("gpu-plugin").await?;
    sets.delete("gpu-plugin", &DeleteParams::foreground()).await?;
    for lease in leases {
        witnesses(stack, &lease.node, "False", "GpusNotAdvertised").await?;
    }
    let away = unix()?;
    for lease in leases {
        lease.until_time(away + AWAY_SECONDS).await?;
        lease.was_never_paused().await?;
        let node = Api::<GpuNode>::all(stack.client.clone()).get(&lease.node).await?;
        let devices = node.status.map(|s| s.devices).unwrap_or_default();
        ensure!(
            devices.iter().all(|d| d.health == DeviceHealth::Healthy),
            "{devices:?}"
        );
    }
    let again = DaemonSet {
        metadata: ObjectMeta {
            name: set.metadata.name,
            ..ObjectMeta::default()
        },
        status: None,
        ..set
    };
    eventually("the DaemonSet to be created again", || async {
        Ok(sets
            .create(&PostParams::default(), &again)
            .await
            .map_err(|e| e.to_string()))
    })
    .await?;
    for lease in leases {
        witnesses(stack, &lease.node, "True", "Agree").await?;
        lease.was_never_paused().await?;
    }
    Ok(())
}

/// The kubelet is killed, and started again. The containers run all the time.
pub(super) async fn kubelet(lease: &Charged<'_>) -> anyhow::Result<()> {
    let stack = lease.tenant.stack;
    let before = pods(lease).await?;
    let kubelet = stack.cluster.node(&lease.node).kubelet();
    kubelet.kill().await?;
    witnesses(stack, &lease.node, "Unknown", "KubeletSilent").await?;
    let away = unix()?;
    lease.until_time(away + AWAY_SECONDS).await?;
    kubelet.start().await?;
    witnesses(stack, &lease.node, "True", "Agree").await?;
    let back = unix()?;
    lease.until_time(back + AWAY_SECONDS).await?;
    lease.was_never_paused().await?;
    let after = pods(lease).await?;
    ensure!(before == after, "the pods were {before:?} and are {after:?}");
    Ok(())
}

/// All processes of the node are killed, and started again before anybody counts the node as lost.
pub(super) async fn power(lease: &Charged<'_>) -> anyhow::Result<()> {
    let cluster = &lease.tenant.stack.cluster;
    let node = cluster.node(&lease.node);
    let off = unix()?;
    cluster.power_off(node).await?;
    lease.until_time(off + AWAY_SECONDS).await?;
    cluster.power_on(node).await?;
    let paused = lease.credited_since((off, off), LIMIT).await?;
    lease.resumes(paused.legs[0].served_seconds).await
}

/// Waits until the witnesses of a node agree, or do not.
async fn witnesses(stack: &Stack, node: &str, status: &str, reason: &str) -> anyhow::Result<()> {
    let nodes = Api::<GpuNode>::all(stack.client.clone());
    eventually(&format!("{reason} of {node}"), || async {
        let conditions = nodes
            .get(node)
            .await?
            .status
            .map(|s| s.conditions)
            .unwrap_or_default();
        let found =
            find(&conditions, "WitnessesAgree").is_some_and(|c| c.status == status && c.reason == reason);
        Ok(if found { Ok(()) } else { Err(conditions) })
    })
    .await
}

/// UIDs of the pods of a lease, and restarts of their containers.
async fn pods(lease: &Charged<'_>) -> anyhow::Result<Vec<(Option<String>, i32)>> {
    let pods = lease.pods().list(&ListParams::default()).await?.items;
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
        statuses.into_iter().flatten().map(|c| c.restart_count).sum()
    };
    Ok(pods
        .iter()
        .map(|p| (p.metadata.uid.clone(), restarts(p)))
        .collect())
}
