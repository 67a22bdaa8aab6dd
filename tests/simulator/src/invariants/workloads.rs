//! Running workloads: they are paid for and wanted (U2), run once (U3), and are removed when nobody owns them (U5).

use std::collections::{BTreeMap, BTreeSet};

use leasehold_planner::escrow::AccountRead;

use super::exhausted;
use crate::{Sim, cluster::Pod, reconcile::ProcessId, scenario::Scenario};

/// How long a workload may run beyond its end while everything can be read: a reconcile, two blocks, the deletion of
/// a pod.
pub(super) const SLACK_MS: u64 = 30_000;
/// How long an orphaned namespace may exist: a minute, plus the time to detect it.
const ORPHAN_MS: u64 = 75_000;
/// How long a dead node may be charged while everything can be read: the cluster's grace period, a minute without
/// heartbeats of kubelet and agent, and a pause that waits for a full block.
const DEAD_MS: u64 = 300_000;

/// A span of time, and what the operator of a provider could do in it.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) can_act: bool,
    pub(super) can_read: bool,
    /// In ms.
    pub(super) passed: u64,
}

impl Sim {
    /// U2 and U3: a running workload must be paid and wanted, and run only once.
    pub(super) fn check_pods(&mut self, passed: u64) {
        let mut serving: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for site in 0..self.sites.len() {
            let can_act =
                !self.faults.sites_down.contains(&site) && self.sites[site].processes.iter().any(|p| p.up);
            let cut = |p| self.faults.cut_from_chain.contains(&ProcessId::Provider(site, p));
            let up = |p: usize| self.sites[site].processes[p].up;
            let can_read = !self.chain.hung
                && !self.is_frozen()
                && (0..2).any(|p| up(p) && !cut(p))
                && self.faults.flaky_per_mille == 0;
            let span = Span {
                can_act,
                can_read,
                passed,
            };
            let names: BTreeSet<String> = self.sites[site]
                .cluster
                .pods
                .iter()
                .filter(|p| p.serves())
                .map(|p| p.namespace.clone())
                .collect();
            let spaces: Vec<String> = self.sites[site].cluster.namespaces.keys().cloned().collect();
            for name in spaces {
                let serves = names.contains(&name);
                if let Some(uid) = self.check_reservation(site, &name, serves, span) {
                    serving
                        .entry(uid)
                        .or_default()
                        .insert(name[..32.min(name.len())].to_owned());
                }
            }
        }
        for (uid, lives) in serving {
            self.invariants.require(lives.len() < 2, || {
                format!("U3: lease {uid} is served by two allocations: {lives:?}")
            });
        }
        for site in 0..self.sites.len() {
            self.check_job_runs(site);
        }
    }

    /// U3: a job runs again only where a pod of it was removed, or after a pause, and never after it has succeeded.
    fn check_job_runs(&mut self, site: usize) {
        let cluster = &self.sites[site].cluster;
        let invariants = &mut self.invariants;
        let was_suspended = |name: &String| {
            let reservation = invariants.reservations.get(&(site, name.clone()));
            reservation.is_some_and(|r| r.was_suspended)
        };
        let losses = |name: &String| cluster.losses.get(name).copied().unwrap_or(0);
        let mut runs = cluster.job_runs.iter();
        let again = runs.find(|((name, _), runs)| **runs > 1 + losses(name) && !was_suspended(name));
        let rerun = cluster.rerun.as_ref().filter(|(name, _)| !was_suspended(name));
        if let Some(((name, rank), runs)) = again {
            invariants.violated(|| format!("U3: node {rank} of the job in {name} ran {runs} times"));
        } else if let Some((name, rank)) = rerun {
            invariants
                .violated(|| format!("U3: node {rank} of the job in {name} ran again after its success"));
        }
    }

    /// Checks one reservation, or one namespace without a reservation. Returns the uid of the lease that it serves.
    fn check_reservation(&mut self, site: usize, name: &str, serves: bool, span: Span) -> Option<String> {
        let invariants = &mut self.invariants;
        let Some(reservation) = invariants.reservations.get_mut(&(site, name.to_owned())) else {
            invariants.violated(|| format!("namespace {name} was created without a reservation"));
            return None;
        };
        if !reservation.exists {
            self.check_orphan(site, name, span);
            return None;
        }
        self.check_unpaid(site, name, span);
        let reservation = self.invariants.reservations.get_mut(&(site, name.to_owned()))?;
        if !serves {
            reservation.beyond_ms = 0;
            reservation.after_stop_ms = 0;
            reservation.after_not_after_ms = 0;
            return None;
        }
        self.check_ends(site, name, span);
        self.check_payment(site, name, span)
    }

    /// U3: a workload ends soon after its stop, and after `notAfter`.
    fn check_ends(&mut self, site: usize, name: &str, span: Span) {
        let local = self.earliest_clock(site);
        let invariants = &mut self.invariants;
        let Some(reservation) = invariants.reservations.get_mut(&(site, name.to_owned())) else {
            return;
        };
        let count = |holds: bool, ms: u64| {
            if holds && span.can_act {
                ms + span.passed
            } else if holds {
                ms
            } else {
                0
            }
        };
        reservation.after_stop_ms = count(reservation.stop_reason.is_some(), reservation.after_stop_ms);
        reservation.after_not_after_ms = count(local > reservation.not_after, reservation.after_not_after_ms);
        let (stop, late) = (reservation.after_stop_ms, reservation.after_not_after_ms);
        invariants.require(stop <= SLACK_MS, || {
            format!("U3: {name} still runs long after it was stopped")
        });
        invariants.require(late <= SLACK_MS, || {
            format!("U3: {name} still runs after notAfter")
        });
    }

    /// U2 and M4: a workload runs only while it is paid, or within its grace, and nobody pays for a dead node.
    fn check_payment(&mut self, site: usize, name: &str, span: Span) -> Option<String> {
        let Span {
            can_act,
            can_read,
            passed,
        } = span;
        let now = i64::try_from(self.now / 1000).unwrap_or(0);
        let newest = i64::try_from(self.chain.newest().head.time).unwrap_or(0);
        let grace_ms = self.sites[site].grace_seconds * 1000;
        let invariants = &mut self.invariants;
        let reservation = invariants.reservations.get_mut(&(site, name.to_owned()))?;
        let terms = reservation.terms.as_ref()?;
        let read = self.chain.account(terms);
        let cluster = &self.sites[site].cluster;
        let on_dead = |p: &Pod| p.namespace == name && p.node.as_ref().is_some_and(|n| cluster.is_dead(n));
        let dead = cluster.pods.iter().any(on_dead) && reservation.stop_reason.is_none();
        let charged = read
            .present()
            .is_some_and(|a| a.running & (1 << reservation.unpaid.leg) != 0);
        reservation.dead_ms = if dead && charged && can_act && can_read {
            reservation.dead_ms + passed
        } else {
            0
        };
        let charged_for_dead = reservation.dead_ms > DEAD_MS;
        let unpaid = match read.present() {
            Some(account) => account.closed || exhausted(account, terms),
            // A payment that a reorganisation drops may be mined again until then, and is missed only in a later block.
            None => {
                let drops = self.faults.contains(Scenario::DroppedTransactions);
                !drops || now > reservation.deadline && newest > reservation.open_by
            }
        };
        // Without the market, a closed account is detected only by the next read of the chain.
        let slack = if read.present().is_some_and(|a| a.closed) {
            2 * SLACK_MS
        } else {
            SLACK_MS
        };
        reservation.beyond_ms = if unpaid && can_act && can_read {
            reservation.beyond_ms + passed
        } else {
            0
        };
        if !can_read && can_act && reservation.paid_until > 0 && now > reservation.paid_until {
            reservation.dark_ms += passed;
        }
        let beyond = reservation.beyond_ms;
        let dark = reservation.dark_ms > grace_ms + 2 * SLACK_MS;
        let uid = reservation.lease_uid.clone();
        invariants.require(!charged_for_dead, || {
            format!("M4: {name} is charged for a node that is dead")
        });
        invariants.require(beyond <= slack, || {
            format!("U2: {name} still runs although nobody pays")
        });
        invariants.require(!dark, || {
            format!("U2: {name} still runs beyond its grace while the chain cannot be read")
        });
        Some(uid)
    }

    /// U5: a namespace whose reservation is gone is deleted within a minute, unless its account is still open.
    fn check_orphan(&mut self, site: usize, name: &str, span: Span) {
        let invariants = &mut self.invariants;
        let Some(reservation) = invariants.reservations.get_mut(&(site, name.to_owned())) else {
            return;
        };
        // While its account is open it is reported and not deleted.
        let paid = reservation
            .terms
            .as_ref()
            .is_some_and(|terms| match self.chain.account(terms) {
                AccountRead::Present(account) => !account.closed,
                AccountRead::Absent | AccountRead::Mismatch => false,
            });
        let leaving = self.sites[site].cluster.namespaces.get(name) == Some(&true);
        reservation.orphan_ms = if span.can_act && span.can_read && !paid && !leaving {
            reservation.orphan_ms + span.passed
        } else {
            0
        };
        let late = reservation.orphan_ms > ORPHAN_MS;
        invariants.require(!late, || {
            format!("U5: namespace {name} has been orphaned for over a minute")
        });
    }
}
