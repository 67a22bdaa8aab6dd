//! Two real nodes of one provider: a job whose two ranks meet by name, and what a lease is charged while its device plugin or its
//! kubelet restarts, its node is drained, or its node loses its power.

mod charged;
mod drained;
mod restarts;
mod ring;

use std::time::Duration;

use anyhow::ensure;
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_e2e::{GpuNodes, ProviderSpec, Stack, StackSpec, Tenant, on_stack, timed};
use serde_json::{Value, json};

use charged::Charged;

const LIMIT: Duration = Duration::from_secs(60);
const PROVIDER: &str = "delta";
const NODES: [&str; 2] = ["node-2", "node-3"];
/// GPUs of each node.
const GPUS: usize = 2;
const IMAGE: &str = "leasehold.test/busybox:1";
/// An agent reports each second. The provider may lose this one second, and one by rounding at each end.
const PERIOD_SECONDS: u64 = 1 + 2;

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_of_one_provider_charge_the_time_in_which_containers_could_run() -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("e2e-two-nodes");
    let node = |name: &&str| ((*name).to_owned(), "t4-16g".to_owned(), GPUS);
    spec.providers.push(ProviderSpec {
        name: PROVIDER.into(),
        region: "eu-north".into(),
        price: "1.15".into(),
        nodes: GpuNodes::Real(NODES.iter().map(node).collect()),
    });
    on_stack(spec, stories).await
}

async fn stories(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    let before = tenant.own_balance().await?;
    let ring = timed("two ranks meet by name", ring::story(&tenant)).await?;

    let server = json!({"service": {
        "image": IMAGE, "command": ["/bin/busybox", "httpd", "-f", "-p", "8080"],
        "ports": [{"name": "http", "port": 8080}],
    }});
    for name in ["restarted", "drained"] {
        tenant.apply(&lease(&tenant, name, (1, GPUS), &server)?)?;
    }
    let (restarted, drained) = tokio::try_join!(
        Charged::active(&tenant, "restarted"),
        Charged::active(&tenant, "drained")
    )?;
    ensure!(restarted.node != drained.node, "each lease takes a whole node");
    let both = [&restarted, &drained];
    timed("the device plugin restarts", restarts::device_plugin(&both)).await?;
    timed("the kubelet restarts", restarts::kubelet(&restarted)).await?;
    tokio::try_join!(
        timed("a node loses its power", restarts::power(&restarted)),
        timed("a node is drained", drained::story(&drained)),
    )?;
    let earned = ring.0 + restarted.ends().await?.0 + drained.ends().await?.0;
    let spent = before.0 - tenant.own_balance().await?.0;
    ensure!(
        spent == earned,
        "the tenant spent {spent}, and {earned} were earned"
    );
    Ok(())
}

/// A lease at the provider, on a number of nodes with a number of GPUs each.
fn lease(
    tenant: &Tenant<'_>,
    name: &str,
    (nodes, gpus): (usize, usize),
    workload: &Value,
) -> anyhow::Result<GpuLease> {
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "nodes": nodes,
            "perNode": {"cpu": "200m", "memory": "64Mi", "ephemeralStorage": "50Mi", "gpus": gpus},
            "placement": {"providers": [PROVIDER]},
            "term": {"duration": "1h"},
            "workload": workload,
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    });
    Ok(serde_json::from_value(lease)?)
}

async fn active(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<GpuLease> {
    tenant.until_phase(name, Phase::Active, LIMIT).await
}
