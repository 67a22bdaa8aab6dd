//! Computing that nobody pays for, and charges for what could not run: a leg runs if and only if the containers of its
//! pods have run, but for the time that a transaction takes; and nodes are held for a leg that never runs only until its
//! deadline (U2, M4).

use leasehold_crds::market::allocation::GpuAllocationSpec;
use leasehold_planner::escrow::Account;

use super::workloads::{SLACK_MS, Span};
use crate::{
    Sim,
    cluster::{Gpu, Node, Pod, PodPhase},
};

/// How long containers may run while their leg stands and nothing hinders the provider: two reconciles and a few blocks.
const START_MS: u64 = 60_000;
/// A reservation may compute this long unpaid in all, and three times as long as it was paid: it is started and stopped
/// again by each fault and each pause.
const UNPAID_MS: u64 = 60_000;
/// For this long after a dead node is back, its pods and its legs may disagree.
const REVIVED_MS: u64 = 120_000;
/// For this long after a pod was evicted, its reservation and its leg may disagree: a start that was sent before is mined.
const EVICTED_MS: u64 = 60_000;
/// How long a leg may run although a GPU of its pods is faulty, while nothing delays the provider.
const FAULTY_MS: u64 = 20_000;
/// How long containers may run beyond the time in which their leg must run again after a loss.
const RESUMED_MS: u64 = 90_000;
/// How long nodes may be held for a leg that never runs: the longest times until the deposit and from it to the start.
const HELD_SECONDS: u64 = 300 + 900;
/// Seconds by which the clocks of a provider and of the chain may differ.
const CLOCK_SECONDS: u64 = 60;
/// For this long after a reorganisation dropped transactions, what was sent may have to be sent again.
const DROPPED_MS: u64 = 60_000;

/// What a reservation computed and held without payment.
#[derive(Clone, Debug, Default)]
pub(super) struct Unpaid {
    pub(super) leg: usize,
    nodes: usize,
    made_ms: u64,
    ran: bool,
    has_ever_run: bool,
    /// Time from the deposit in which the leg must run.
    window_ms: u64,
    /// Since its leg ran last, with any container.
    resumes_ms: u64,
    /// In a row, and in all.
    computed_ms: (u64, u64),
    held_ms: u64,
    unserved_ms: u64,
    faulty_ms: u64,
}

impl Unpaid {
    pub(super) fn of(spec: &GpuAllocationSpec, now: u64) -> Self {
        Self {
            leg: usize::try_from(spec.leg).unwrap_or_default(),
            nodes: usize::try_from(spec.nodes).unwrap_or_default(),
            made_ms: now,
            window_ms: Self::window_ms(spec),
            ..Self::default()
        }
    }

    fn window_ms(spec: &GpuAllocationSpec) -> u64 {
        let seconds = spec.escrow.start_by.saturating_sub(spec.open_by);
        u64::try_from(seconds).unwrap_or_default() * 1000
    }
}

impl Sim {
    pub(super) fn check_unpaid(&mut self, site: usize, name: &str, span: Span) {
        let Span {
            can_act,
            can_read,
            passed,
        } = span;
        let quick = can_act && can_read && self.is_quick(site);
        let calm = quick && self.now.saturating_sub(self.faults.dropped_ms) > DROPPED_MS;
        let faulty = self.has_faulty_gpu(site, name);
        let hindered = self.is_hindered(site, name);
        let cluster = &self.sites[site].cluster;
        // What a program did before its pod was removed is done.
        let counts = |p: &&Pod| !p.leaving || matches!(p.phase, PodPhase::Ended(_));
        let pods = || cluster.pods.iter().filter(|p| p.namespace == name).filter(counts);
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
        let early = runs && !unpaid.ran && !has_run && !stopped && !hindered;
        if !runs || has_run || stopped {
            unpaid.unserved_ms = 0;
        } else if calm && !hindered {
            unpaid.unserved_ms += passed;
        }
        let unserved = unpaid.unserved_ms > SLACK_MS;
        if !runs || !faulty || stopped {
            unpaid.faulty_ms = 0;
        } else if calm {
            unpaid.faulty_ms += passed;
        }
        let charged_for_faulty = unpaid.faulty_ms > FAULTY_MS;
        unpaid.ran = runs;
        unpaid.has_ever_run |= runs;

        let owes = account.is_some_and(|a| !a.closed && !super::exhausted(a, &terms));
        let (row, all) = &mut unpaid.computed_ms;
        if runs || !computes {
            *row = 0;
        } else if owes && has_run && calm && !hindered && !stopped {
            *row += passed;
        }
        if runs || !computes {
            unpaid.resumes_ms = 0;
        } else if owes && unpaid.has_ever_run && calm && !hindered && !stopped {
            unpaid.resumes_ms += passed;
        }
        // Containers that are being stopped compute, too.
        let computes_all = computes && has_run || ends;
        if computes_all && !runs && account.is_some_and(|a| !a.closed) && calm && !hindered {
            *all += passed;
        }
        let idle = *row > START_MS;
        let cheats = *all > UNPAID_MS + 3_000 * served;
        let start_by = terms.start_by.min(unpaid.made_ms / 1000 + HELD_SECONDS);
        let overdue = now_s > start_by + CLOCK_SECONDS + grace;
        // What was never paid, or whose payment was dropped, is held only until the payment can no longer come.
        let pay_by = u64::try_from(reservation.deadline).unwrap_or_default();
        let unopened = quick && account.is_none() && now_s > pay_by + CLOCK_SECONDS;
        if holds && !unpaid.has_ever_run && !stopped && can_act && (overdue || unopened) {
            unpaid.held_ms += passed;
        }
        let held = unpaid.held_ms > SLACK_MS;
        let lingers = unpaid.resumes_ms > unpaid.window_ms + RESUMED_MS;
        let invariants = &mut self.invariants;
        invariants.require(!early, || {
            format!("M4: {name} is charged before its containers have run")
        });
        invariants.require(!unserved, || {
            format!("M4: {name} is charged although its containers do not run")
        });
        invariants.require(!charged_for_faulty, || {
            format!("M4: {name} is charged although one of its GPUs is faulty")
        });
        invariants.require(!idle, || {
            format!("U2: the containers of {name} run, and its leg does not")
        });
        invariants.require(!lingers, || {
            format!("U2: a container of {name} runs, and its leg does not run again")
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
    fn is_quick(&self, site: usize) -> bool {
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
            && faults.bad_endpoint.is_none()
            && !faults.agents_silent.contains(&site)
            && self.chain.inclusion_per_mille == 1000
    }

    /// Whether a GPU or a node of the pods is at fault, or a node of them was a short time ago, or a pod was evicted.
    fn is_hindered(&self, site: usize, name: &str) -> bool {
        let cluster = &self.sites[site].cluster;
        let hinders = |node: &Node| {
            let revived = self.now.saturating_sub(node.revived_ms) < REVIVED_MS;
            revived || node.dead_since.is_some() || node.not_ready_since.is_some()
        };
        let evicted = cluster.evicted_ms.get(name);
        evicted.is_some_and(|at| self.now - at < EVICTED_MS)
            || self.has_faulty_gpu(site, name)
            || self.pods_with_nodes(site, name).any(|(_, node)| hinders(node))
    }

    /// Whether one of the GPUs that the pods hold is faulty. A pod of a job that has ended holds none.
    fn has_faulty_gpu(&self, site: usize, name: &str) -> bool {
        let is_faulty = |(pod, node): (&Pod, &Node)| {
            let held = |gpu: &&Gpu| pod.uuids.contains(&gpu.uuid);
            node.gpus
                .iter()
                .filter(held)
                .any(|gpu| gpu.faulty_since.is_some())
        };
        self.pods_with_nodes(site, name)
            .filter(|(pod, _)| !pod.has_ended())
            .any(is_faulty)
    }

    fn pods_with_nodes<'a>(
        &'a self,
        site: usize,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a Pod, &'a Node)> {
        let cluster = &self.sites[site].cluster;
        let pods = cluster.pods.iter().filter(move |p| p.namespace == name);
        pods.filter_map(|pod| {
            let node = cluster
                .nodes
                .iter()
                .find(|n| Some(&n.name) == pod.node.as_ref())?;
            Some((pod, node))
        })
    }
}
