//! Every 30 seconds: finds namespaces of leases that have no reservation. Those that are still paid for are counted and
//! left alone; the others are deleted.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{GpuReservation, PaymentNetwork, market::allocation::AllocationPhase};
use leasehold_planner::{
    escrow::Hash,
    observed::Observed,
    orphans::{Suspects, Verdict, assess, unless_kept},
};
use leasehold_runtime::{Process, api_writes, cache};
use leasehold_telemetry::{
    Heartbeat,
    metrics::{Class, Controller},
};

use super::{Provider, workload::namespaces::NamespaceSeen};

const PERIOD: Duration = Duration::from_secs(30);
/// Namespaces looked at each time.
const NAMESPACES_MAX: usize = 100;

/// Adds the loop that deletes orphaned namespaces.
pub(crate) fn register(process: &mut Process, provider: &Arc<Provider>) {
    let provider = provider.clone();
    process.add_loop("orphans", Duration::from_secs(180), |heartbeat| {
        run(provider, heartbeat)
    });
}

/// Runs until the process ends.
async fn run(provider: Arc<Provider>, heartbeat: Heartbeat) {
    let mut suspects = Suspects::default();
    loop {
        heartbeat.beat();
        let begun = Instant::now();
        let result = provider.delete_orphans(&mut suspects).await;
        if let Err(error) = &result {
            tracing::warn!(
                error = format!("{error:#}"),
                "the search for orphans did not finish"
            );
        }
        if let Some(reservations) = &provider.metrics.reservations {
            let mine = provider.caches.reservations.state_filter(|r| provider.holds(r));
            let phase =
                |r: &Arc<GpuReservation>| r.status.as_ref().map_or(AllocationPhase::Requested, |s| s.phase);
            reservations.count(mine.iter().map(phase));
        }
        provider.metrics.orphans.set(suspects.left());
        let failed = result.is_err().then_some(Class::Transient);
        provider
            .metrics
            .reconcile
            .observe(Controller::Orphans, begun.elapsed(), failed);
        tokio::time::sleep(PERIOD).await;
    }
}

impl Provider {
    async fn delete_orphans(&self, suspects: &mut Suspects<String>) -> anyhow::Result<()> {
        let is_nobodys = |n: &NamespaceSeen| {
            n.escrow.is_some() && cache::get(&self.caches.reservations, &n.name_any(), None).is_none()
        };
        let going = self.caches.namespaces.state_filter(|n| n.goes() && is_nobodys(n));
        for namespace in going.iter().map(|n| n.name_any()) {
            // One whose pods can't be released keeps no other one.
            if let Err(error) = self.release_pods(&namespace).await {
                error.log("Namespace", &namespace);
            }
        }
        let mut nobodys = self
            .caches
            .namespaces
            .state_filter(|n| !n.goes() && is_nobodys(n));
        nobodys.sort_by_key(|n| n.name_any());
        let mut found = BTreeMap::new();
        for namespace in nobodys.into_iter().take(NAMESPACES_MAX) {
            // A namespace whose account can't be read is left, as if it were paid for.
            let verdict = self.verdict(&namespace).await.unwrap_or_else(|error| {
                tracing::debug!(
                    namespace = namespace.name_any(),
                    error = format!("{error:#}"),
                    "cannot read whether the namespace is paid for"
                );
                Verdict::Leave
            });
            let verdict = unless_kept(verdict, namespace.results_until.as_deref(), self.now());
            found.insert(namespace.name_any(), verdict);
        }
        for name in suspects.agreed(found).into_keys() {
            let reservations = Api::<GpuReservation>::all(self.client.clone());
            if reservations.get_opt(&name).await?.is_some() {
                continue;
            }
            self.release_pods(&name).await?;
            let namespaces = Api::<Namespace>::all(self.client.clone());
            api_writes::ignore_not_found(namespaces.delete(&name, &DeleteParams::default()).await)?;
            tracing::info!(
                namespace = name,
                "deleted the namespace of a lease that has no reservation"
            );
        }
        Ok(())
    }

    /// Decides by its account, on any of this provider's networks; [`Verdict::Over`] if it is on none.
    async fn verdict(&self, namespace: &NamespaceSeen) -> anyhow::Result<Verdict> {
        let Some(id) = namespace.escrow.as_ref().and_then(|id| id.parse::<Hash>().ok()) else {
            return Ok(Verdict::Over);
        };
        for network in self.caches.networks.state() {
            let chain = self.payments.client(&network).await?;
            let verdict = self.verdict_of(&network, &chain, id).await?;
            if let Some(other) = self.payments.other(&network, &chain)
                && self.verdict_of(&network, &other, id).await? != verdict
            {
                let what = format!("the RPC endpoints disagree about the account {id}");
                self.payments.disagreed(&network, &what);
                anyhow::bail!(what);
            }
            if let Some(verdict) = verdict {
                return Ok(verdict);
            }
        }
        Ok(Verdict::Over)
    }

    /// Decides by what one endpoint tells of the account; `None` if it is not on this network.
    async fn verdict_of(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        id: Hash,
    ) -> anyhow::Result<Option<Verdict>> {
        let Some(opened) = self.payments.find(network, chain, id).await? else {
            return Ok(None);
        };
        match self.payments.account(network, chain, &opened.terms).await {
            Observed::Known(at) => Ok(Some(assess(&opened.terms, &at.read))),
            Observed::Unknown(why) => Err(anyhow::Error::msg(why)),
        }
    }
}
