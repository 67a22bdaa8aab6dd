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

/// Each end of the two times in which the containers ran is a whole second.
const ROUNDING_SECONDS: u64 = 3;

#[expect(clippy::disallowed_methods, reason = "compared with times of the chain")]
fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default()
}

pub(crate) async fn pod_deleted(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "lost", "10m")?)?;
    let lease = tenant.until_phase("lost", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    let started_at = account.started_at;
    let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    let namespace = &escrow.context("the lease has an account")?.legs[0].namespace;
    let pods = Api::<Pod>::namespaced(tenant.stack.client.clone(), namespace);
    let before = pods.get("lease-0").await?.metadata.uid;
    let deleted_at = now();
    pods.delete("lease-0", &DeleteParams::default()).await?;
    within(
        REPLACED_WITHIN,
        "the successor of the pod, charged again, and nothing between the two",
        || async {
            let all = pods.list(&ListParams::default()).await?.items;
            ensure!(all.len() < 2, "two pods of one node: {all:?}");
            let mut new = all.iter().filter(|pod| pod.metadata.uid != before);
            let run_since = new
                .find_map(containers_run_since)
                .map(u64::try_from)
                .transpose()?;
            let (_, account) = tenant.account(&lease).await?;
            let charged = account.legs[0].served_seconds;
            let again = run_since.map(|since| account.block_time.saturating_sub(since));
            let run = again.map(|again| deleted_at.saturating_sub(started_at) + again);
            let is_right = run.is_some_and(|run| charged <= run + ROUNDING_SECONDS);
            Ok(if is_right && account.running == 1 {
                Ok(())
            } else {
                Err((run, account))
            })
        },
    )
    .await?;
    tenant.delete("lost").await?;
    tenant.until_gone("lost", LIMIT).await?;
    closed_exactly(tenant, &terms).await
}
