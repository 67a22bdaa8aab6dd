//! A pod that somebody deletes: paused, credited, and replaced.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use leasehold_crds::{lease::Phase, payment::money::TokenAmount};
use leasehold_e2e::{Tenant, containers_run_since, within};

use super::{LIMIT, closed_exactly, service};

/// The grace period of the pod, then the start of its successor and of the leg.
const REPLACED_WITHIN: Duration = Duration::from_secs(120);

pub(crate) async fn pod_deleted(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "lost", "10m")?)?;
    let lease = tenant.until_phase("lost", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    let namespace = &escrow.context("the lease has an account")?.legs[0].namespace;
    let pods = Api::<Pod>::namespaced(tenant.stack.client.clone(), namespace);
    let before = pods.get("lease-0").await?.metadata.uid;
    pods.delete("lease-0", &DeleteParams::default()).await?;
    within(
        REPLACED_WITHIN,
        "the successor of the pod, charged again",
        || async {
            let all = pods.list(&ListParams::default()).await?.items;
            ensure!(all.len() < 2, "two pods of one node: {all:?}");
            let is_new = |pod: &Pod| pod.metadata.uid != before && containers_run_since(pod).is_some();
            let has_run = all.iter().any(is_new);
            let (_, account) = tenant.account(&lease).await?;
            let leg = account.legs[0];
            Ok(if has_run && account.running == 1 && leg.credited_seconds > 0 {
                Ok(())
            } else {
                Err((has_run, account.running, leg))
            })
        },
    )
    .await?;
    tenant.delete("lost").await?;
    tenant.until_gone("lost", LIMIT).await?;
    closed_exactly(tenant, &terms).await
}
