//! Computing that nobody pays for, and charges for what could not run: a leg runs if and only if the containers of its
//! pods have run, but for the time that a transaction takes; and nodes are held for a leg that never runs only until its
//! deadline (U2, M4).

use leasehold_crds::market::allocation::GpuAllocationSpec;
use leasehold_planner::escrow::Account;

use super::workloads::{SLACK_MS, Span};
use crate::{
    Sim,
    cluster::{Pod, PodPhase},
    scenario::Scenario,
};

/// How long containers may run while their leg stands and nothing hinders the provider: two reconciles and a few blocks.
const START_MS: u64 = 60_000;
/// A reservation may compute this long unpaid in all, and three times as long as it was paid: it is started and stopped
/// again by each fault and each pause.
const UNPAID_MS: u64 = 60_000;
/// For this long after a dead node is back, its pods and its legs may disagree.
const REVIVED_MS: u64 = 120_000;
/// How long nodes may be held for a leg that never runs: the longest times until the deposit and from it to the start.
const HELD_SECONDS: u64 = 300 + 900;

/// What a reservation computed and held without payment.
#[derive(Clone, Debug, Default)]
pub(super) struct Unpaid {
    leg: usize,
    nodes: usize,
    made_ms: u64,
    ran: bool,
    has_ever_run: bool,
    /// In a row, and in all.
    computed_ms: (u64, u64),
    held_ms: u64,
    unserved_ms: u64,
}

impl Unpaid {
    pub(super) fn of(spec: &GpuAllocationSpec, now: u64) -> Self {
        Self {
            leg: usize::try_from(spec.leg).unwrap_or_default(),
            nodes: usize::try_from(spec.nodes).unwrap_or_default(),
            made_ms: now,
            ..Self::default()
        }
    }
}

impl Sim {
    pub(super) fn check_unpaid(&mut self, site: usize, name: &str, span: Span) {
        let Span {
            can_act,
            can_read,
            passed,
        } = span;
        let calm = can_act && can_read && self.is_calm(site);
        let hindered = self.is_hindered(site, name);
        let cluster = &self.sites[site].cluster;
        let pods = || cluster.pods.iter().filter(|p| p.namespace == name && !p.leaving);
        let run = pods().filter(|p| p.has_run).count();
        let computes = pods().any(Pod::serves);
        let ends = |p: &Pod| p.namespace == name && p.phase == PodPhase::Running && p.leaving;
        let ends = cluster.pods.iter().any(ends);
        let holds = pods().any(|p| !p.has_ended() && p.node.is_some());
        let grace = self.sites[site].grace_seconds;
        let now_s = u64::try_from(self.earliest_clock(site)).unwrap_or_default();
        let Some(reservation) = self.invariants.reservations.get_mut(&(site, name.to_owned())) else {
            return;
        };
        let Some(terms) = reservation.terms.clone() else {
            return;
        };
        let stopped = reservation.stop_reason.is_some();
        let unpaid = &mut reservation.unpaid;
        let read = self.chain.account(&terms);
        let account = read.present();
        let runs = account.is_some_and(|a| a.running & (1 << unpaid.leg) != 0);
        let served = |a: &Account| a.legs.get(unpaid.leg).map_or(0, |l| l.served_seconds);
        let served = account.map_or(0, served);
        let has_run = run >= unpaid.nodes;
        let drains = self.faults.contains(Scenario::Drains);
        let early = runs && !unpaid.ran && !has_run && !stopped && !hindered && !drains;
        if !runs || has_run || stopped {
            unpaid.unserved_ms = 0;
        } else if calm && !hindered {
            unpaid.unserved_ms += passed;
        }
        let unserved = unpaid.unserved_ms > SLACK_MS;
        unpaid.ran = runs;
        unpaid.has_ever_run |= runs;

        let owes = account.is_some_and(|a| !a.closed && !super::exhausted(a, &terms));
        let (row, all) = &mut unpaid.computed_ms;
        if runs || !computes {
            *row = 0;
        } else if owes && has_run && calm && !hindered && !stopped {
            *row += passed;
        }
        // Containers that are being stopped compute, too.
        let computes_all = computes && has_run || ends;
        if computes_all && !runs && !drains && account.is_some_and(|a| !a.closed) && calm && !hindered {
            *all += passed;
        }
        let idle = *row > START_MS;
        let cheats = *all > UNPAID_MS + 3_000 * served;
        let deadline = terms.start_by.min(unpaid.made_ms / 1000 + HELD_SECONDS) + 60 + grace;
        if holds && !unpaid.has_ever_run && !stopped && can_act && now_s > deadline {
            unpaid.held_ms += passed;
        }
        let held = unpaid.held_ms > SLACK_MS;
        let invariants = &mut self.invariants;
        invariants.require(!early, || {
            format!("M4: {name} is charged before its containers have run")
        });
        invariants.require(!unserved, || {
            format!("M4: {name} is charged although its containers do not run")
        });
        invariants.require(!idle, || {
            format!("U2: the containers of {name} run, and its leg does not")
        });
        invariants.require(!cheats, || {
            format!("U2: {name} has computed much longer than the {served} s that it paid")
        });
        invariants.require(!held, || {
            format!("U2: {name} holds its nodes, and its leg has never started")
        });
    }

    /// Unix seconds by that clock of a provider's processes which is the most behind.
    pub(super) fn earliest_clock(&self, site: usize) -> i64 {
        let clocks = self.sites[site].processes.iter().map(|p| p.offset_ms);
        self.clock(clocks.min().unwrap_or(0)).as_second()
    }

    /// Whether nothing delays a provider's reads and writes.
    fn is_calm(&self, site: usize) -> bool {
        let faults = &self.faults;
        let reads = [
            faults.flaky_per_mille,
            faults.stale_per_mille,
            faults.false_reads_per_mille,
        ];
        let writes = [faults.lost_replies_per_mille, faults.lost_writes_per_mille];
        reads.into_iter().chain(writes).all(|rate| rate == 0)
            && faults.watch_lag_ms.1 <= 300
            && faults.write_ms <= 20
            && faults.frozen_at.is_none()
            && !faults.forces(Scenario::DroppedTransactions)
            && !faults.agents_silent.contains(&site)
            && self.chain.inclusion_per_mille == 1000
    }

    /// Whether a GPU or a node of the pods is or was at fault.
    fn is_hindered(&self, site: usize, name: &str) -> bool {
        let cluster = &self.sites[site].cluster;
        let hinders = |pod: &Pod| {
            let on = cluster
                .nodes
                .iter()
                .filter(|n| Some(&n.name) == pod.node.as_ref());
            on.into_iter().any(|node| {
                let faulty = |uuid: &String| {
                    let gpu = node.gpus.iter().find(|g| g.uuid == *uuid);
                    gpu.is_some_and(|g| g.faulty_since.is_some())
                };
                node.dead_since.is_some() || node.not_ready_since.is_some() || pod.uuids.iter().any(faulty)
            })
        };
        let revived = self.now.saturating_sub(cluster.revived_ms) < REVIVED_MS;
        revived || cluster.pods.iter().filter(|p| p.namespace == name).any(hinders)
    }
}
