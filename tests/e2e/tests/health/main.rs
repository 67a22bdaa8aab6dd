//! GPUs that fail under a lease, a node that fails under one, and GPUs that report false data: how soon each object shows
//! it, what is charged, and what is offered. Containers, chain and agents are real; only the driver is simulated.

mod false_reports;
mod gpu_lost;
mod no_root;
mod node_lost;
mod served;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use leasehold_crds::{
    GpuLease, GpuNode, GpuOffer, GpuPool, GpuReservation, PROVIDER_NAMESPACE_PREFIX,
    lease::workload::NodeShape,
};
use leasehold_e2e::{GpuNodes, ProviderSpec, Stack, StackSpec, Tenant, eventually, on_stack, timed};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
const HEALTHY_PROVIDER: &str = "rhine-west";
const FALSE_REPORTS: &str = "alpine-one";
const LOST_PROVIDER: &str = "fjord-gpu";
const NODE: &str = "node-1";
const LOST_NODE: &str = "node-2";

#[tokio::test(flavor = "multi_thread")]
async fn faulty_gpus_pause_a_lease_and_false_reports_are_not_offered() -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("e2e-health");
    let played = |name: &str, gpus| {
        let shape = NodeShape {
            cpu: "32".into(),
            memory: "128Gi".into(),
            ephemeral_storage: "500Gi".into(),
            gpus,
        };
        (name.to_owned(), "a100-80g-pcie".to_owned(), shape)
    };
    spec.providers.push(ProviderSpec {
        name: FALSE_REPORTS.into(),
        region: "eu-central".into(),
        price: "1.20".into(),
        nodes: GpuNodes::Kwok(vec![
            played("liar", 2),
            played("one-bus", 8),
            played("twin-a", 2),
            played("twin-b", 2),
        ]),
    });
    spec.providers.push(ProviderSpec {
        name: LOST_PROVIDER.into(),
        region: "eu-north".into(),
        price: "1.15".into(),
        nodes: GpuNodes::Real(vec![(LOST_NODE.into(), "t4-16g".into(), 1)]),
    });
    on_stack(spec, stories).await
}

async fn stories(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    timed("no root without user namespaces", no_root::story(&tenant)).await?;
    timed("user namespaces are not proven", no_root::a_probe_fails(stack)).await?;
    tokio::try_join!(
        timed("a GPU is lost under a lease", gpu_lost::story(&tenant)),
        timed("false reports are not offered", false_reports::story(stack)),
        timed("a node fails under a lease", node_lost::story(stack)),
    )?;
    Ok(())
}

/// A lease of one GPU of one provider.
fn lease(tenant: &Tenant<'_>, name: &str, provider: &str, workload: &str) -> anyhow::Result<GpuLease> {
    let what = json!({
        "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "httpd", "-f", "-p", "8080"],
        "ports": [{"name": "http", "port": 8080}],
    });
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "perNode": {"cpu": "200m", "memory": "64Mi", "ephemeralStorage": "50Mi", "gpus": 1},
            "placement": {"providers": [provider]},
            "term": {"duration": "1h"},
            "workload": {workload: what},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    });
    Ok(serde_json::from_value(lease)?)
}

/// Number of GPUs that a provider offers.
async fn offered(stack: &Stack, provider: &str) -> anyhow::Result<i64> {
    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{provider}");
    let offer = Api::<GpuOffer>::namespaced(stack.client.clone(), &namespace)
        .get(provider)
        .await?;
    Ok(offer.spec.rows.iter().map(|r| r.gpus * r.nodes_free).sum())
}

async fn is_offered(stack: &Stack, provider: &str, gpus: i64) -> anyhow::Result<()> {
    eventually(&format!("{gpus} GPUs of {provider} to be offered"), || async {
        let now = offered(stack, provider).await?;
        Ok(if now == gpus { Ok(()) } else { Err(now) })
    })
    .await
}

/// Nodes of a pool that are not offered: reason and message, by node.
async fn not_sold(stack: &Stack, pool: &str) -> anyhow::Result<BTreeMap<String, (String, String)>> {
    let pool = Api::<GpuPool>::all(stack.client.clone()).get(pool).await?;
    let entries = pool.status.map(|s| s.not_sold).unwrap_or_default();
    Ok(entries
        .into_iter()
        .map(|n| (n.node, (n.reason, n.message)))
        .collect())
}

async fn gpu_node(stack: &Stack, name: &str) -> anyhow::Result<GpuNode> {
    Ok(Api::all(stack.client.clone()).get(name).await?)
}

/// The lease's reservation, once it contains the GPU of the lease.
async fn bound(lease: &GpuLease, stack: &Stack) -> anyhow::Result<GpuReservation> {
    let uid = lease.uid();
    eventually("the GPU that the lease holds", || async {
        let all = Api::<GpuReservation>::all(stack.client.clone())
            .list(&ListParams::default())
            .await?;
        let its = |r: &&GpuReservation| Some(&r.spec.allocation.lease.uid) == uid.as_ref();
        let found = all.items.iter().find(its).cloned();
        let status = found.as_ref().and_then(|r| r.status.clone());
        let bound = status.as_ref().is_some_and(|s| s.gpu_uuids.len() == 1);
        Ok(found.filter(|_| bound).ok_or(status))
    })
    .await
}

/// Uid and restarts of a pod, and whether it is being deleted.
type PodState = (Option<String>, Option<i32>, bool);

/// Pods of a reservation.
async fn running(stack: &Stack, reservation: &GpuReservation) -> anyhow::Result<Vec<PodState>> {
    let pods = Api::<Pod>::namespaced(stack.client.clone(), &reservation.name_any());
    let pods = pods.list(&ListParams::default()).await?.items;
    let restarts = |p: &Pod| {
        let statuses = p.status.as_ref()?.container_statuses.as_ref()?;
        Some(statuses.first()?.restart_count)
    };
    let seen = |p: &Pod| (p.uid(), restarts(p), p.metadata.deletion_timestamp.is_some());
    Ok(pods.iter().map(seen).collect())
}
