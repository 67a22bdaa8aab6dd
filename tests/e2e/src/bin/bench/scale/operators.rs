//! The operators' processes: what they take, and how soon they are up to date after they were killed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_e2e::{NAMESPACE, Stack};

use super::tenants::Tenants;
use crate::process::Watched;

const PROGRAM: &str = "leasehold-operator";
/// Each role with the controller that has an object a lease.
const ROLES: [(&str, &str); 2] = [("market", "lease"), ("provider", "reservation")];

/// Successors that are not up to date by then never will be.
const CONVERGED_WITHIN: Duration = Duration::from_secs(300);

/// One process a role.
pub(super) struct Operators(Vec<(&'static str, Watched)>);

impl Operators {
    /// Finds them.
    pub(super) async fn find(stack: &Stack) -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for (role, _) in ROLES {
            let pod = pod_of(&stack.client, role).await?;
            found.push((role, Watched::of(&pod, PROGRAM)?));
        }
        Ok(Self(found))
    }

    /// Most resident memory of each so far, MiB.
    pub(super) fn most_resident(&self) -> anyhow::Result<Vec<(&'static str, f64)>> {
        self.0
            .iter()
            .map(|(role, p)| Ok((*role, p.resident_most()?)))
            .collect()
    }

    /// Time on a CPU of each so far.
    pub(super) fn cpu(&self) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        self.0.iter().map(|(role, p)| Ok((*role, p.cpu()?))).collect()
    }

    /// Kills both at once; how long until their successors have looked at every lease and a fresh one is Active.
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
                waits.push(format!("the fresh lease is {fresh:?}"));
            }
            for (role, controller) in ROLES {
                // It does not answer until it runs again.
                let passes = passes(&stack.client, role, controller).await.unwrap_or(0);
                if passes < leases {
                    waits.push(format!("{role} made {passes} passes of {leases}"));
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
    // What an upgrade or an uninstallation runs has the label too.
    found.retain(|pod| pod.name_any().starts_with(&format!("leasehold-{role}-")));
    found
        .pop()
        .with_context(|| format!("the {role}'s operator has a pod"))
}

/// Passes that a controller of the running process has finished, by its own metrics.
async fn passes(client: &Client, role: &str, controller: &str) -> anyhow::Result<usize> {
    let pod = pod_of(client, role).await?.name_any();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics");
    let text = client
        .request_text(http::Request::get(path).body(Vec::new())?)
        .await?;
    let series = format!("leasehold_reconcile_duration_seconds_count{{controller=\"{controller}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(series.as_str()));
    Ok(value.context("the operator counts its passes")?.trim().parse()?)
}
