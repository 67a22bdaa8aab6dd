//! Watches for new blocks while reservations wait to be paid, and enqueues them at each block, because a tenant waits for
//! them. The newest block is read once for all of them, a few times a second; an account can only change in a new block.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use kube::ResourceExt as _;
use leasehold_crds::{GpuReservation, PaymentNetwork, market::allocation::AllocationPhase};
use leasehold_planner::{escrow::Hash, observed::Observed};
use leasehold_runtime::Process;
use leasehold_telemetry::Heartbeat;

use crate::provider::Provider;

const PERIOD: Duration = Duration::from_millis(250);
/// A chain that takes longer must not delay reservations on another.
const DEADLINE: Duration = Duration::from_secs(2);

/// Adds the loop that watches for new blocks.
pub(crate) fn register(process: &mut Process, provider: &Arc<Provider>) {
    let provider = provider.clone();
    process.add_loop("blocks", Duration::from_secs(120), |heartbeat| {
        run(provider, heartbeat)
    });
}

/// Watches until the process ends.
async fn run(provider: Arc<Provider>, heartbeat: Heartbeat) {
    let mut newest: HashMap<String, Hash> = HashMap::new();
    loop {
        heartbeat.beat();
        for (name, (network, waiting)) in provider.waiting() {
            // Reservations on a chain that cannot be read are requeued by their own reconciles.
            let Ok(chain) = provider.payments.client(&network).await else {
                continue;
            };
            let head = provider.payments.head(&network, &chain);
            let Ok(Observed::Known(head)) = tokio::time::timeout(DEADLINE, head).await else {
                continue;
            };
            if newest.insert(name, head.hash) != Some(head.hash) {
                for reservation in waiting {
                    provider.queues.reservations.enqueue(&reservation);
                }
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

impl Provider {
    /// Reservations that wait to be paid, by the PaymentNetwork on which that happens.
    fn waiting(&self) -> BTreeMap<String, (Arc<PaymentNetwork>, Vec<Arc<GpuReservation>>)> {
        let waits = |r: &GpuReservation| {
            let phase = r.status.as_ref().map_or(AllocationPhase::Requested, |s| s.phase);
            let unpaid = phase.is_unpaid();
            unpaid && self.holds(r)
        };
        let mut networks = BTreeMap::new();
        for reservation in self.caches.reservations.state_filter(waits) {
            if let Some(network) = self.network_of(&reservation.spec.allocation.escrow) {
                let (_, waiting) = networks
                    .entry(network.name_any())
                    .or_insert((network, Vec::new()));
                waiting.push(reservation);
            }
        }
        networks
    }
}
