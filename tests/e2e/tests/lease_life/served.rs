//! A lease that is served, extended and deleted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_crds::{GpuLease, GpuOffer, lease::Phase};
use leasehold_e2e::{Stack, Tenant, containers_run_since, eventually, within};
use leasehold_planner::escrow::Terms;
use serde_json::json;

use super::{LIMIT, closed_exactly, reservations, service};

pub(super) async fn served_extended_deleted(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    let before = tenant.own_balance().await?;
    let free = free_gpus(stack).await?;
    tenant.apply(&service(tenant, "web", "10m")?)?;
    let lease = tenant.until_phase("web", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    ensure!(account.deposited == terms.rate().cost_ceil(600).context("cost")?);

    let namespace = reservations(stack)
        .await?
        .first()
        .context("a reservation")?
        .name_any();
    charged_only_when_run(stack, &lease, &namespace).await?;
    port_answers(tenant).await?;
    funded_for_the_extension(tenant, &terms).await?;

    tenant.delete("web").await?;
    tenant.until_gone("web", LIMIT).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    ensure!(
        tenant.own_balance().await?.0 == before.0 - earned.0,
        "the refund is exact"
    );
    gpu_is_offered_again(stack, &namespace, free).await
}

/// Nothing is charged before the container runs.
async fn charged_only_when_run(stack: &Stack, lease: &GpuLease, namespace: &str) -> anyhow::Result<()> {
    let pods = Api::<Pod>::namespaced(stack.client.clone(), namespace)
        .list(&ListParams::default())
        .await?
        .items;
    let run = containers_run_since(&pods[0]).context("the container runs")?;
    let started = lease
        .status
        .as_ref()
        .and_then(|s| s.money.as_ref()?.started_at.clone())
        .context("startedAt")?;
    let started = started.parse::<jiff::Timestamp>()?.as_second();
    ensure!(started >= run, "charged from {started}, running since {run}");
    Ok(())
}

/// The port answers at the address in the status.
async fn port_answers(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let lease = tenant
        .until("web", LIMIT, "an endpoint", |l| {
            l.status.as_ref().is_some_and(|s| !s.endpoints.is_empty())
        })
        .await?;
    let endpoint = lease.status.context("status")?.endpoints[0].clone();
    eventually("an answer of the port", || async {
        let host = endpoint.host.as_deref().context("a host")?;
        let address = format!("{host}:{}", endpoint.port.context("a port")?);
        Ok(
            tokio::time::timeout(Duration::from_secs(2), tokio::net::TcpStream::connect(&address))
                .await?
                .map(|_| ()),
        )
    })
    .await
}

/// After the term is extended, the account is funded for it exactly.
async fn funded_for_the_extension(tenant: &Tenant<'_>, terms: &Terms) -> anyhow::Result<()> {
    let longer = json!({"spec": {"term": {"duration": "20m"}}});
    tenant
        .leases()
        .patch("web", &PatchParams::default(), &Patch::Merge(&longer))
        .await?;
    let wanted = terms.rate().cost_ceil(1200).context("cost")?;
    eventually("the extension's funds", || async {
        let lease = tenant.leases().get("web").await?;
        let (_, account) = tenant.account(&lease).await?;
        Ok(if account.deposited == wanted {
            Ok(())
        } else {
            Err(account.deposited)
        })
    })
    .await
}

/// After the pods are gone, the GPU is offered again within seconds.
async fn gpu_is_offered_again(stack: &Stack, namespace: &str, free: i64) -> anyhow::Result<()> {
    within(LIMIT, "the end of the pods", || async {
        let left = Api::<Pod>::namespaced(stack.client.clone(), namespace)
            .list(&ListParams::default())
            .await?
            .items
            .len();
        Ok(if left == 0 { Ok(()) } else { Err(left) })
    })
    .await?;
    let ended = Instant::now();
    within(Duration::from_secs(5), "the GPU to be offered again", || async {
        let now = free_gpus(stack).await?;
        Ok(if now == free { Ok(()) } else { Err(now) })
    })
    .await?;
    eprintln!(
        "         the GPU is offered again {:.1}s after the pod's end",
        ended.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn free_gpus(stack: &Stack) -> anyhow::Result<i64> {
    let offers = Api::<GpuOffer>::all(stack.client.clone())
        .list(&ListParams::default())
        .await?
        .items;
    Ok(offers
        .iter()
        .flat_map(|o| &o.spec.rows)
        .map(|r| r.gpus * r.nodes_free)
        .sum())
}
