//! What a provider offers to the market.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use leasehold_crds::{GpuReservation, market::allocation::AllocationPhase, market::offer::PaymentIdentity};
use leasehold_planner::{
    provider::offer::supply::{GpusSeen, Hold, NodeSeen, PoolRuntime, PoolSupply, pool_supply},
    request::{Shape, Version},
};

use crate::{Sim, market::Offer};

/// Resources of a node, in proportion to its GPUs so that they are never the limit.
fn shape(gpus: u64) -> Shape {
    Shape {
        gpus,
        millicores: gpus * 4_000,
        memory: gpus << 32,
        scratch: gpus << 34,
    }
}

impl Sim {
    /// What the provider's pool can offer beside these reservations.
    pub(crate) fn supply_of(
        &self,
        s: usize,
        p: usize,
        reservations: &[Arc<GpuReservation>],
        now: Timestamp,
    ) -> PoolSupply {
        let site = &self.sites[s];
        let process = &site.processes[p];
        let nodes: Vec<NodeSeen> = process
            .nodes
            .iter()
            .map(|node| {
                let count = |n: usize| u64::try_from(n).unwrap_or(0);
                let on = process
                    .pods
                    .iter()
                    .filter(|p| p.node.as_ref() == Some(&node.name) && !p.has_ended());
                let requested = on.map(|p| count(p.uuids.len())).sum();
                let healthy = node.gpus.iter().all(|g| g.faulty_since.is_none());
                NodeSeen {
                    name: node.name.clone(),
                    labels: BTreeMap::new(),
                    schedulable: node.not_ready_since.is_none(),
                    taints: Vec::new(),
                    architecture: None,
                    slice_resource: None,
                    sharing: None,
                    allocatable: shape(count(node.gpus.len())),
                    requested: shape(requested),
                    gpus: Some(GpusSeen {
                        sell: true,
                        class: "t4-16g".into(),
                        memory: 16_000_000_000,
                        compute_capability: Version(7, 5),
                        cuda: Version(12, 4),
                        healthy,
                        reason: String::new(),
                        message: String::new(),
                        claims: node.gpus.iter().map(|g| g.uuid.clone()).collect(),
                        shared: Vec::new(),
                        units: node.gpus.iter().map(|g| g.uuid.clone()).collect(),
                        mig: Vec::new(),
                        alive: !self.faults.agents_silent.contains(&s),
                    }),
                    handlers: [(String::new(), true)].into(),
                }
            })
            .collect();
        let holds = self.holds(s, p, reservations);
        let payment = self.payment();
        pool_supply(
            &site.pool,
            (Some(&PoolRuntime::default()), Some(&payment)),
            &nodes,
            &holds,
            &mut BTreeSet::new(),
            now,
        )
    }

    fn payment(&self) -> PaymentIdentity {
        PaymentIdentity {
            chain_id: i64::try_from(self.currency.chain_id).unwrap_or(0),
            escrow: self.currency.escrow.to_string(),
            token: self.currency.token.to_string(),
        }
    }

    fn holds(&self, s: usize, p: usize, reservations: &[Arc<GpuReservation>]) -> Vec<Hold> {
        let process = &self.sites[s].processes[p];
        let waits = |r: &&Arc<GpuReservation>| {
            let status = r.status.as_ref();
            let phase = status.map_or(AllocationPhase::Requested, |s| s.phase);
            let ended = status.is_some_and(|s| s.job.is_some() || s.stop_reason.is_some());
            let waits = matches!(
                phase,
                AllocationPhase::Requested
                    | AllocationPhase::Reserved
                    | AllocationPhase::Provisioning
                    | AllocationPhase::Active
            );
            let resumes = status.is_some_and(|s| s.resuming_since.is_some());
            (waits || phase == AllocationPhase::Suspended && resumes) && !ended
        };
        reservations
            .iter()
            .filter(waits)
            .filter_map(|r| {
                let name = r.metadata.name.clone().unwrap_or_default();
                let mine = process
                    .pods
                    .iter()
                    .filter(|p| p.namespace == name && !p.has_ended());
                let there: BTreeSet<&String> = mine.filter_map(|p| p.node.as_ref()).collect();
                let nodes = r
                    .spec
                    .nodes
                    .iter()
                    .filter(|n| !there.contains(n))
                    .cloned()
                    .collect();
                Some(Hold {
                    shape: Shape::from_wire(&r.spec.allocation.per_node).ok()?,
                    nodes,
                    name,
                })
            })
            .collect()
    }

    /// Renews the provider's offer on the market.
    pub(crate) fn publish_offer(&mut self, s: usize, p: usize) {
        if !self.faults.market_up || self.faults.cut_from_market.contains(&s) {
            return;
        }
        let process = &self.sites[s].processes[p];
        let now = self.clock(process.offset_ms);
        let reservations: Vec<_> = process.reservation_store.all().map(|(_, r)| r.clone()).collect();
        let supply = self.supply_of(s, p, &reservations, now);
        let site = &self.sites[s];
        self.offers.insert(
            site.name.clone(),
            Offer {
                rows: supply.rows,
                renewed_at: now.as_second(),
                payee: site.identity.payee,
                controller: site.identity.controller,
            },
        );
    }
}
