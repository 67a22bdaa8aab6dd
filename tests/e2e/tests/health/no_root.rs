//! A session needs user namespaces, which a pool can turn off and which each node has to prove.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_crds::{
    GpuOffer, GpuPool, LABEL_PROBE, PROVIDER_NAMESPACE_PREFIX,
    provider::pool::{ProbeResult, UserNamespaceProof},
    shared::conditions::find,
};
use leasehold_e2e::{Stack, Tenant, device, eventually};
use serde_json::json;

use super::{FALSE_REPORTS, HEALTHY_PROVIDER, LIMIT, NODE, is_offered, lease};

/// The user of a session is root in a user namespace, which the pool does not permit.
pub(super) async fn story(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    permit_user_namespaces(tenant, "Never").await?;
    tenant.apply(&lease(tenant, "rootless", FALSE_REPORTS, "session")?)?;
    let lease = tenant
        .until("rootless", LIMIT, "reasons", |l| {
            l.status
                .as_ref()
                .and_then(|s| s.quote.as_ref())
                .is_some_and(|q| !q.misses.is_empty())
        })
        .await?;
    let quote = lease.status.and_then(|s| s.quote).context("quote")?;
    let miss = quote
        .misses
        .iter()
        .find(|m| m.provider == FALSE_REPORTS)
        .context("its rows are the closest misses")?;
    let failed: Vec<_> = miss.failed.iter().map(|f| f.dimension.as_str()).collect();
    ensure!(failed == ["rootNotAllowed"], "{failed:?}");
    tenant.delete("rootless").await?;
    tenant.until_gone("rootless", LIMIT).await?;
    permit_user_namespaces(tenant, "Auto").await
}

/// The device plugin of a real node gives containers no device files, as a container toolkit might do in user namespaces. Root is
/// no longer sold there, the GPUs still are, and the pool says why in the words of the probe.
pub(super) async fn a_probe_fails(stack: &Stack) -> anyhow::Result<()> {
    let proven = proof(stack)
        .await?
        .context("the node was probed before it was offered")?;
    ensure!(proven.result == ProbeResult::Proven, "{proven:?}");
    ensure!(proven.identity.contains(", driver "), "{}", proven.identity);
    let files = &stack.cluster.node(NODE).files;
    std::fs::remove_file(device(files)?)?;
    forget_proofs(stack).await?;
    let failed = eventually("a probe that fails", || async {
        let seen = proof(stack).await?;
        let is_failed = seen.as_ref().is_some_and(|p| p.result == ProbeResult::Failed);
        Ok(if is_failed { Ok(seen) } else { Err(seen) })
    })
    .await?
    .context("a proof")?;
    ensure!(
        failed.message.contains("has 0 of the device files"),
        "{}",
        failed.message
    );
    ensure!(failed.attempts == 1, "{failed:?}");
    offers_root(stack, HEALTHY_PROVIDER, false).await?;
    is_offered(stack, HEALTHY_PROVIDER, 2).await?;
    let pool = Api::<GpuPool>::all(stack.client.clone())
        .get(HEALTHY_PROVIDER)
        .await?;
    let conditions = pool.status.map(|s| s.conditions).unwrap_or_default();
    let told = find(&conditions, "RootAllowed").context("a condition")?;
    ensure!(
        (told.status.as_str(), told.reason.as_str()) == ("False", "ProbeFailed"),
        "{told:?}"
    );
    device(files)?;
    forget_proofs(stack).await?;
    offers_root(stack, HEALTHY_PROVIDER, true).await?;
    is_offered(stack, HEALTHY_PROVIDER, 2).await?;
    let pods = Api::<Pod>::all(stack.client.clone());
    eventually("no probe pod", || async {
        let left = pods.list(&ListParams::default().labels(LABEL_PROBE)).await?.items;
        let left: Vec<_> = left.iter().map(|pod| pod.name_any()).collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })
    .await
}

/// What is known of user namespaces on the real node.
async fn proof(stack: &Stack) -> anyhow::Result<Option<UserNamespaceProof>> {
    let pool = Api::<GpuPool>::all(stack.client.clone())
        .get(HEALTHY_PROVIDER)
        .await?;
    let proofs = pool.status.map(|s| s.user_namespaces).unwrap_or_default();
    Ok(proofs.into_iter().find(|p| p.node == NODE))
}

/// An administrator has all nodes of the pool probed again.
async fn forget_proofs(stack: &Stack) -> anyhow::Result<()> {
    patch(stack, HEALTHY_PROVIDER, "Never").await?;
    eventually("no proofs", || async {
        let left = proof(stack).await?;
        Ok(if left.is_none() { Ok(()) } else { Err(left) })
    })
    .await?;
    patch(stack, HEALTHY_PROVIDER, "Auto").await
}

async fn patch(stack: &Stack, pool: &str, value: &str) -> anyhow::Result<()> {
    let spec = json!({"spec": {"userNamespaces": value}});
    Api::<GpuPool>::all(stack.client.clone())
        .patch(pool, &PatchParams::default(), &Patch::Merge(&spec))
        .await?;
    Ok(())
}

async fn permit_user_namespaces(tenant: &Tenant<'_>, value: &str) -> anyhow::Result<()> {
    patch(tenant.stack, FALSE_REPORTS, value).await?;
    offers_root(tenant.stack, FALSE_REPORTS, value == "Auto").await
}

async fn offers_root(stack: &Stack, provider: &str, wanted: bool) -> anyhow::Result<()> {
    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{provider}");
    let offers = Api::<GpuOffer>::namespaced(stack.client.clone(), &namespace);
    eventually(&format!("an offer of {provider} with root: {wanted}"), || async {
        let rows = offers.get(provider).await?.spec.rows;
        let done = !rows.is_empty() && rows.iter().all(|row| row.root_allowed == wanted);
        Ok(if done { Ok(()) } else { Err(rows) })
    })
    .await
}
