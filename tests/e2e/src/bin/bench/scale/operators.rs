//! The operators' processes: their resources, and how soon they are up to date after a restart.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_e2e::{NAMESPACE, Stack};

use super::tenants::Tenants;
use leasehold_e2e::Watched;

const PROGRAM: &str = "leasehold-operator";
/// Each role, with the controller that has one object per lease.
const ROLES: [(&str, &str); 2] = [("market", "lease"), ("provider", "reservation")];

/// Time limit for restarted operators to be up to date.
const CONVERGED_WITHIN: Duration = Duration::from_secs(300);

/// One process per role.
pub(super) struct Operators(Vec<(&'static str, Watched)>);

impl Operators {
    /// Finds the processes.
    pub(super) async fn find(stack: &Stack) -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for (role, _) in ROLES {
            let pod = pod_of(&stack.client, role).await?;
            found.push((role, Watched::of(&pod, PROGRAM)?));
        }
        Ok(Self(found))
    }

    /// Maximum resident memory of each so far, in MiB.
    pub(super) fn most_resident(&self) -> anyhow::Result<Vec<(&'static str, f64)>> {
        self.0
            .iter()
            .map(|(role, p)| Ok((*role, p.resident_most()?)))
            .collect()
    }

    /// CPU time of each so far.
    pub(super) fn cpu(&self) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        self.0.iter().map(|(role, p)| Ok((*role, p.cpu()?))).collect()
    }

    /// Kills both. Returns the time until their successors have reconciled every lease and a new lease is Active.
    pub(super) async fn restart(
        &self,
        stack: &Stack,
        tenants: &Tenants,
        leases: usize,
    ) -> anyhow::Result<Duration> {
        for (_, process) in &self.0 {
            process.kill()?;
        }
        let begun = Instant::now();
        let name = "after-the-restart";
        let namespace = tenants.apply_one(&stack.client, 0, name).await?;
        let api = Api::<GpuLease>::namespaced(stack.client.clone(), namespace);
        loop {
            let fresh = api.get(name).await?.status.unwrap_or_default().phase;
            let mut waits = Vec::new();
            if fresh != Phase::Active {
                waits.push(format!("the new lease is {fresh:?}"));
            }
            for (role, controller) in ROLES {
                // The operator does not answer until it runs again.
                let finished = reconciles(&stack.client, role, controller).await.unwrap_or(0);
                if finished < leases {
                    waits.push(format!("{role} finished {finished} of {leases} reconciles"));
                }
            }
            if waits.is_empty() {
                return Ok(begun.elapsed());
            }
            ensure!(
                begun.elapsed() < CONVERGED_WITHIN,
                "not converged {:.0} s after the restart: {}",
                begun.elapsed().as_secs_f64(),
                waits.join(", ")
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn pod_of(client: &Client, role: &str) -> anyhow::Result<Pod> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/component={role}"));
    let mut found = pods.list(&selector).await?.items;
    // Jobs of an upgrade or uninstallation have the label too.
    found.retain(|pod| pod.name_any().starts_with(&format!("leasehold-{role}-")));
    found
        .pop()
        .with_context(|| format!("the {role}'s operator has a pod"))
}

/// Reconciles that a controller of the running process has finished, from its own metrics.
async fn reconciles(client: &Client, role: &str, controller: &str) -> anyhow::Result<usize> {
    let pod = pod_of(client, role).await?.name_any();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics");
    let text = client
        .request_text(http::Request::get(path).body(Vec::new())?)
        .await?;
    let series = format!("leasehold_reconcile_duration_seconds_count{{controller=\"{controller}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(series.as_str()));
    Ok(value
        .context("the operator's metrics count its reconciles")?
        .trim()
        .parse()?)
}
