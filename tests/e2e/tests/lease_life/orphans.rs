//! What nobody's object names any more: it lives as long as it is paid for, and is cleared within a minute afterwards.

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

/// Two sweeps, half a minute apart, and what they start: pods that take all of their half minute to end, and the look after
/// them by which a namespace goes.
const SWEPT: Duration = Duration::from_secs(120);

/// A person took the lease away with its finalizer. What is paid for runs on, and ends at its own deadline.
pub(crate) async fn lease_removed_forcibly(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    let stack = tenant.stack;
    tenant.apply(&service(tenant, "torn-out", "40s")?)?;
    let lease = tenant.until_phase("torn-out", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    let namespace = namespace_of(&lease)?;
    let pods = Api::<Pod>::namespaced(stack.client.clone(), &namespace);
    let uid = |pods: Vec<Pod>| pods.first().and_then(|p| p.metadata.uid.clone());
    let before = uid(pods.list(&ListParams::default()).await?.items);
    ensure!(before.is_some(), "its pod runs");
    tear_out(&tenant.leases(), "torn-out").await?;
    tenant.until_gone("torn-out", LIMIT).await?;

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
            "the pod of paid work is {now:?}, it was {before:?}"
        );
        Ok(Err(account.paid_until - account.block_time))
    })
    .await?;
    within(SWEPT, "the orphan to be closed", || async {
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

/// The provider's own record was taken away: the market is told that it stopped, and what runs is cleared.
pub(crate) async fn reservation_removed_forcibly(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "unreserved", "10m")?)?;
    let lease = tenant.until_phase("unreserved", Phase::Active, LIMIT).await?;
    let namespace = namespace_of(&lease)?;
    let reservations = Api::<GpuReservation>::all(tenant.stack.client.clone());
    tear_out(&reservations, &namespace).await?;
    let earned = ends(tenant, "unreserved", CloseReason::ProviderStopped, LIMIT).await?;
    gone(tenant, &namespace).await?;
    Ok(earned)
}

fn namespace_of(lease: &leasehold_crds::GpuLease) -> anyhow::Result<String> {
    let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    Ok(escrow.context("the lease has shares")?.shares[0]
        .namespace
        .clone())
}

async fn tear_out<K>(api: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let bare = json!({"metadata": {"finalizers": null}});
    within(LIMIT, &format!("{name} to be torn out"), || async {
        // Only in the version without finalizers: whoever holds it again in between would see it deleted and act.
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
    within(SWEPT, &format!("{namespace} to be gone"), || async {
        Ok(match namespaces.get_opt(namespace).await? {
            None => Ok(()),
            Some(left) => Err(left.status),
        })
    })
    .await
}
