//! What a provider offers to the market.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use leasehold_crds::{
    GpuReservation,
    market::offer::PaymentIdentity,
    provider::pool::{GpuPoolStatus, ProbeResult, UserNamespaceProof},
};
use leasehold_planner::{
    provider::{
        offer::{
            cluster::holds,
            resumption::{Room, room_to_resume, wants_room},
            supply::{GpusSeen, NodeSeen, PoolRuntime, PoolSupply, pool_supply},
        },
        user_namespaces::identity,
    },
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
        let nodes = self.nodes_seen(s, p);
        let placed = self.placed(s, p);
        let holds = holds(reservations.iter().map(|r| &**r), placed.iter().copied());
        let (payment, runtime) = (self.payment(), PoolRuntime::default());
        // Every node has proven user namespaces. Probe pods are not simulated.
        let mut pool = site.pool.clone();
        let proven = |node: &NodeSeen| UserNamespaceProof {
            node: node.name.clone(),
            result: ProbeResult::Proven,
            identity: identity(node, &runtime).unwrap_or_default(),
            ..UserNamespaceProof::default()
        };
        pool.status = Some(GpuPoolStatus {
            user_namespaces: nodes.iter().map(proven).collect(),
            ..GpuPoolStatus::default()
        });
        pool_supply(
            &pool,
            (Some(&runtime), Some(&payment)),
            &nodes,
            &holds,
            &mut BTreeSet::new(),
            now,
        )
    }

    /// Namespaces and nodes of the pods that a process of the provider sees.
    fn placed(&self, s: usize, p: usize) -> Vec<(&str, &str)> {
        let pods = &self.sites[s].processes[p].pods;
        let running = pods.iter().filter(|p| !p.has_ended());
        running
            .filter_map(|p| Some((p.namespace.as_str(), p.node.as_deref()?)))
            .collect()
    }

    /// Room for the pods of a reservation after a pause.
    pub(crate) fn room_to_resume(&self, s: usize, p: usize, reservation: &GpuReservation) -> Room {
        if !wants_room(reservation) {
            return Room::Free;
        }
        let placed = self.placed(s, p);
        let name = reservation.metadata.name.as_deref().unwrap_or_default();
        let own = placed.iter().filter(|(namespace, _)| *namespace == name);
        let own = own.map(|(_, node)| *node).collect();
        let others = self.reservations(s);
        let holds = holds(others.iter().map(|(_, r)| &**r), placed.iter().copied());
        room_to_resume(reservation, &self.nodes_seen(s, p), &holds, &own)
    }

    /// The nodes that a process of the provider sees.
    fn nodes_seen(&self, s: usize, p: usize) -> Vec<NodeSeen> {
        let process = &self.sites[s].processes[p];
        process
            .nodes
            .iter()
            .map(|node| {
                let count = |n: usize| u64::try_from(n).unwrap_or(0);
                let on = process
                    .pods
                    .iter()
                    .filter(|p| p.node.as_ref() == Some(&node.name) && !p.has_ended());
                let requested = on.map(|p| count(p.uuids.len())).sum();
                let healthy =
                    node.gpus.iter().all(|g| g.faulty_since.is_none()) && node.plugin_down_until <= self.now;
                let uuids: Vec<String> = node.gpus.iter().map(|g| g.uuid.clone()).collect();
                NodeSeen {
                    name: node.name.clone(),
                    schedulable: node.not_ready_since.is_none(),
                    allocatable: shape(count(node.gpus.len())),
                    requested: shape(requested),
                    pods_free: 110,
                    gpus: Some(GpusSeen {
                        sell: true,
                        class: "t4-16g".into(),
                        memory: 16_000_000_000,
                        compute_capability: Version(7, 5),
                        cuda: Version(12, 4),
                        healthy,
                        claims: uuids.clone(),
                        units: uuids,
                        alive: !self.faults.agents_silent.contains(&s),
                        ..GpusSeen::default()
                    }),
                    handlers: [(String::new(), true)].into(),
                    software: Some("simulated".into()),
                    ..NodeSeen::default()
                }
            })
            .collect()
    }

    fn payment(&self) -> PaymentIdentity {
        PaymentIdentity {
            chain_id: i64::try_from(self.currency.chain_id).unwrap_or(0),
            escrow: self.currency.escrow.to_string(),
            token: self.currency.token.to_string(),
        }
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
