//! Orphans: workloads without an object run as long as they are paid for, and are removed within a minute afterwards.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use leasehold_crds::{
    GpuReservation,
    lease::{CloseReason, Phase},
    payment::money::TokenAmount,
};
use leasehold_e2e::{Tenant, within};
use leasehold_planner::{
    escrow::Terms,
    ports::{BlockLevel, Payments as _},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{LIMIT, closed_exactly, ends, service};

/// Two searches for orphans, half a minute apart, and their effects: pods that take their full grace period, and the
/// deletion of the namespace.
const CLEARED_WITHIN: Duration = Duration::from_secs(120);

/// The lease is removed together with its finalizer. Its workload runs as long as it is paid for, and then ends.
pub(crate) async fn lease_removed_forcibly(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    let stack = tenant.stack;
    tenant.apply(&service(tenant, "removed", "40s")?)?;
    let lease = tenant.until_phase("removed", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    let namespace = namespace_of(&lease)?;
    let pods = Api::<Pod>::namespaced(stack.client.clone(), &namespace);
    let uid = |pods: Vec<Pod>| pods.first().and_then(|p| p.metadata.uid.clone());
    let before = uid(pods.list(&ListParams::default()).await?.items);
    ensure!(before.is_some(), "its pod runs");
    remove_forcibly(&tenant.leases(), "removed").await?;
    tenant.until_gone("removed", LIMIT).await?;

    // It serves to the last paid second.
    within(LIMIT, "the end of the paid time", || async {
        let account = present(tenant, &terms).await?;
        if account.block_time + 3 >= account.paid_until {
            return Ok(Ok(()));
        }
        ensure!(!account.closed && account.running == 1, "{account:?}");
        let now = uid(pods.list(&ListParams::default()).await?.items);
        ensure!(
            now == before,
            "the pod of a paid workload is {now:?}, it was {before:?}"
        );
        Ok(Err(account.paid_until - account.block_time))
    })
    .await?;
    within(CLEARED_WITHIN, "the orphan to be closed", || async {
        let account = present(tenant, &terms).await?;
        Ok(if account.closed { Ok(()) } else { Err(account) })
    })
    .await?;
    gone(tenant, &namespace).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    let paid = terms.rate().cost_ceil(40).context("cost")?;
    ensure!(account.deposited == paid);
    ensure!(
        paid.0 - earned.0 <= terms.rate().cost_ceil(1).context("cost")?.0,
        "all of {paid} was served, {earned} were earned"
    );
    Ok(earned)
}

/// The reservation is removed. The market learns that the provider stopped, and the workload is removed.
pub(crate) async fn reservation_removed_forcibly(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "unreserved", "10m")?)?;
    let lease = tenant.until_phase("unreserved", Phase::Active, LIMIT).await?;
    let namespace = namespace_of(&lease)?;
    let reservations = Api::<GpuReservation>::all(tenant.stack.client.clone());
    remove_forcibly(&reservations, &namespace).await?;
    let earned = ends(tenant, "unreserved", CloseReason::ProviderStopped, LIMIT).await?;
    gone(tenant, &namespace).await?;
    Ok(earned)
}

fn namespace_of(lease: &leasehold_crds::GpuLease) -> anyhow::Result<String> {
    let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    Ok(escrow.context("the lease has an escrow account")?.legs[0]
        .namespace
        .clone())
}

async fn remove_forcibly<K>(api: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let bare = json!({"metadata": {"finalizers": null}});
    within(LIMIT, &format!("{name} to be removed"), || async {
        // With a precondition on the version without finalizers: an operator that adds one again would see the
        // deletion and act.
        let bared = api
            .patch(name, &PatchParams::default(), &Patch::Merge(&bare))
            .await?;
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: bared.resource_version(),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        Ok(api.delete(name, &params).await.map(|_| ()))
    })
    .await
}

async fn present(tenant: &Tenant<'_>, terms: &Terms) -> anyhow::Result<leasehold_planner::escrow::Account> {
    let read = tenant.stack.payments.account(terms, BlockLevel::Latest).await?;
    read.present().cloned().context("the account")
}

async fn gone(tenant: &Tenant<'_>, namespace: &str) -> anyhow::Result<()> {
    let namespaces = Api::<Namespace>::all(tenant.stack.client.clone());
    within(CLEARED_WITHIN, &format!("{namespace} to be gone"), || async {
        Ok(match namespaces.get_opt(namespace).await? {
            None => Ok(()),
            Some(left) => Err(left.status),
        })
    })
    .await
}
