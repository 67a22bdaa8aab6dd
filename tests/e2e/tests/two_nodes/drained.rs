//! A provider drains a node under a lease: it evicts the pod, and keeps others from being assigned to the node.

use anyhow::{Error, ensure};
use kube::api::{DeleteParams, ListParams};
use leasehold_crds::LABEL_LEASE;

use super::{
    LIMIT,
    charged::{Charged, unix},
};

/// How long the node stays cordoned.
const CORDONED_SECONDS: u64 = 8;
/// Time within which the operator notices the deletion. The containers run on until their grace period is over.
const NOTICED_SECONDS: u64 = 5;

pub(super) async fn story(lease: &Charged<'_>) -> anyhow::Result<()> {
    // This cordons the node, and evicts nothing.
    let selector = format!("--pod-selector={LABEL_LEASE}");
    let evict: [&str; 6] = [
        "drain",
        &lease.node,
        "--delete-emptydir-data",
        "--force",
        "--timeout=2s",
        &selector,
    ];
    let refused = kubectl(lease, &evict).await?;
    ensure!(
        refused.is_err_and(|said| said.contains("disruption budget")),
        "the PodDisruptionBudget of the lease permits no eviction"
    );
    lease.was_never_paused().await?;

    // As `kubectl drain --disable-eviction` does.
    let drained = unix()?;
    let mine = ListParams::default().labels(LABEL_LEASE);
    lease
        .pods()
        .delete_collection(&DeleteParams::default(), &mine)
        .await?;
    let paused = lease
        .credited_since((drained, drained + NOTICED_SECONDS), LIMIT)
        .await?;
    let later = lease.until_time(paused.block_time + CORDONED_SECONDS).await?;
    ensure!(
        // The last seconds before the pause are credited in a transaction of their own.
        later.running == 0 && later.legs[0].served_seconds <= paused.legs[0].served_seconds,
        "nothing is charged on a node that is cordoned: {later:?}"
    );
    kubectl(lease, &["uncordon", &lease.node])
        .await?
        .map_err(Error::msg)?;
    lease.resumes(later.legs[0].served_seconds).await
}

/// Runs kubectl as an administrator, without blocking other stories. Returns what it said if it failed.
async fn kubectl(lease: &Charged<'_>, arguments: &[&str]) -> anyhow::Result<Result<(), String>> {
    let mut command = lease.tenant.stack.cluster.kubectl();
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() {
        Ok(())
    } else {
        Err(said)
    })
}
