//! Looks for new blocks while a reservation waits for one, and wakes it at each: a tenant waits with it. One question
//! for all of them, a few times a second; an account says nothing new before there is a new block.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use kube::ResourceExt as _;
use leasehold_crds::{GpuReservation, PaymentNetwork, market::allocation::AllocationPhase};
use leasehold_planner::{escrow::Hash, ports::Payments as _};
use leasehold_telemetry::{Heartbeat, metrics::ChainAction};

use crate::{provider::Provider, queue::Queue};

const PERIOD: Duration = Duration::from_millis(250);
/// A chain that takes longer does not hold up who waits on another.
const DEADLINE: Duration = Duration::from_secs(2);

/// Looks until the process ends.
pub(crate) async fn run(provider: Arc<Provider>, wake: Queue<GpuReservation>, heartbeat: Heartbeat) {
    let mut newest: HashMap<String, Hash> = HashMap::new();
    loop {
        heartbeat.beat();
        for (name, (network, waiting)) in provider.waiting() {
            // Where the chain is silent, each of them finds that out by itself, now and then.
            let Ok(rail) = provider.rails.rail(&network).await else {
                continue;
            };
            let head = provider.rails.observed(ChainAction::Read, rail.head());
            let Ok(Ok(head)) = tokio::time::timeout(DEADLINE, head).await else {
                continue;
            };
            if newest.insert(name, head.hash) != Some(head.hash) {
                for reservation in waiting {
                    wake.touched(&reservation);
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
            let unpaid = matches!(phase, AllocationPhase::Requested | AllocationPhase::Reserved);
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
