//! Stored leases: phases move forward, an end has a true reason, and a lease is gone only when its account is closed.

use leasehold_crds::{
    GpuAllocation, GpuLease,
    lease::{CloseReason, GpuLeaseStatus, IntentAction, OnFundsEnd, Phase},
    market::allocation::{GpuAllocationStatus, StopReason},
    shared::duration,
};
use leasehold_planner::escrow::{Account, AccountRead, Terms};

use super::{CountedClose, exhausted};
use crate::{Sim, api::Key, reconcile::ProcessId, scenario::Scenario};

/// How long an account may be open although its lease was stored as closed, while the market can act: a close that a
/// reorganisation has dropped is sent again within this time.
const REOPENED_MS: u64 = 60_000;

/// How long a lease may be charged after `startBy` although a leg has not run, while the market can close its account.
const INCOMPLETE_MS: u64 = 120_000;

/// How long a deleted lease may remain while the market can release it.
const RELEASED_MS: u64 = 180_000;

/// Whether a leg runs or has run.
fn has_run(account: &Account, leg: usize) -> bool {
    let served = account.legs[leg].served_seconds + account.legs[leg].credited_seconds;
    account.running & (1 << leg) != 0 || served > 0
}

const fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Pending => 0,
        Phase::Matched => 1,
        Phase::Funded => 2,
        Phase::Provisioning => 3,
        Phase::Active => 4,
        Phase::Suspended => 5,
        Phase::Settling => 6,
        Phase::Closed => 7,
    }
}

impl Sim {
    pub(super) fn follow_leases(&mut self) {
        while let Some((key, object)) = self.leases.log().get(self.invariants.leases_seen).cloned() {
            let is_restored = self.invariants.restored.contains(&self.invariants.leases_seen);
            self.invariants.leases_seen += 1;
            let Some(object) = object else {
                self.lease_deleted(&key);
                continue;
            };
            let uid = object.metadata.uid.clone().unwrap_or_default();
            let before = self
                .invariants
                .lives
                .get(&key)
                .filter(|(u, _)| *u == uid)
                .and_then(|(_, s)| s.clone());
            if is_restored {
                // What it says was true once.
                self.invariants.may_be_paid.insert(uid.clone());
            } else if let Some(status) = &object.status {
                self.lease_stored(&key, &uid, before.as_ref(), status, &object);
            } else if before.is_some() {
                self.invariants.may_be_paid.insert(uid.clone());
            }
            self.invariants.lives.insert(key, (uid, object.status.clone()));
        }
    }

    fn lease_stored(
        &mut self,
        key: &Key,
        uid: &str,
        before: Option<&GpuLeaseStatus>,
        status: &GpuLeaseStatus,
        object: &GpuLease,
    ) {
        let name = &key.1;
        let was = before.map_or(Phase::Pending, |s| s.phase);
        if status.phase != was {
            self.invariants.count(format!("lease {:?}", status.phase));
        }
        let back = rank(status.phase) < rank(was);
        let allowed = !back
            || self.ended_its_round(before, status)
            || matches!(
                (was, status.phase),
                (Phase::Suspended, Phase::Active) | (Phase::Matched, Phase::Pending)
            );
        self.invariants.require(allowed, || {
            format!("phase of {name} goes back from {was:?} to {:?}", status.phase)
        });
        self.check_rounds(name, status);
        if let Some(escrow) = &status.escrow {
            let id = escrow.terms.id.clone();
            self.invariants
                .lease_of_account
                .insert(id.clone(), uid.to_owned());
            if let Some(intent) = &status.intent {
                match intent.action {
                    IntentAction::Open | IntentAction::Fund => {
                        self.invariants.may_be_paid.insert(uid.to_owned());
                        let total = intent.total.as_deref().and_then(|t| t.parse().ok()).unwrap_or(0);
                        let most = self.invariants.intents.entry(id).or_default();
                        *most = total.max(*most);
                    }
                    IntentAction::Close => {
                        self.invariants.close_intents.insert(id);
                    }
                }
            }
        }
        if let (Phase::Closed, Some(reason), Some(escrow)) =
            (status.phase, status.close_reason, &status.escrow)
            && reason != CloseReason::Abandoned
            && let Ok(terms) = Terms::from_wire(&escrow.terms)
        {
            self.invariants
                .counted_closes
                .entry(terms.id())
                .or_insert(CountedClose {
                    name: name.clone(),
                    terms,
                    open_ms: 0,
                });
        } else if status.phase != Phase::Closed
            && let Some(Ok(terms)) = status.escrow.as_ref().map(|e| Terms::from_wire(&e.terms))
        {
            // Its status was wiped, and restored from the chain, which does not show the close any more.
            self.invariants.counted_closes.remove(&terms.id());
        }
        if before.and_then(|s| s.close_reason).is_none()
            && let Some(reason) = status.close_reason
        {
            self.invariants.count(format!("lease ends {reason:?}"));
            let justified = self.may_close(reason, status, object);
            self.invariants.require(justified, || {
                format!("U1: {name} is closed with reason {reason:?}, which does not hold: {status:?}")
            });
        }
    }

    /// Whether a lease has left the account of a round that not all its providers had started.
    fn ended_its_round(&mut self, before: Option<&GpuLeaseStatus>, status: &GpuLeaseStatus) -> bool {
        let left = before.filter(|b| b.unstarted_rounds < status.unstarted_rounds);
        let terms = left.and_then(|b| Terms::from_wire(&b.escrow.as_ref()?.terms).ok());
        let Some(terms) = terms.filter(|_| status.phase == Phase::Pending && status.escrow.is_none()) else {
            return false;
        };
        self.invariants.count("lease begins a round elsewhere".into());
        let started = |a: &Account| a.paid_seconds > 0;
        if self.chain.account(&terms).present().is_some_and(started) {
            self.invariants
                .count("lease begins a round elsewhere after a part was served".into());
        }
        self.invariants.left_accounts.insert(terms.id());
        let closed = |a: &Account| a.closed && (0..a.legs.len()).any(|leg| !has_run(a, leg));
        self.seen(&terms, |read, _| read.present().is_some_and(closed)) && self.was_not_started(&terms)
    }

    /// Whether a leg had not run after `startBy`, or its provider had given it up before.
    fn was_not_started(&self, terms: &Terms) -> bool {
        let late = |a: &Account| (0..a.legs.len()).any(|leg| !has_run(a, leg));
        self.seen(terms, |read, time| {
            let account = read.present();
            time > terms.start_by && account.is_some_and(late)
                || account.is_some_and(|a| {
                    (0..a.legs.len()).any(|leg| !has_run(a, leg) && self.gave_up(terms, leg))
                })
        })
    }

    /// Whether the provider of a leg has ever reported that it stops, declines, or that its job failed.
    fn gave_up(&self, terms: &Terms, leg: usize) -> bool {
        let id = terms.id().to_string();
        let of_leg = |a: &&GpuAllocation| a.spec.escrow.id == id && usize::try_from(a.spec.leg) == Ok(leg);
        let log = self.allocations.log().iter().filter_map(|(_, a)| a.as_deref());
        log.filter(of_leg).filter_map(|a| a.status.as_ref()).any(|s| {
            s.phase.is_over() || s.declined.is_some() || s.job.as_ref().is_some_and(|j| j.exit_code != 0)
        })
    }

    /// C10: a provider that does not start a lease does not get it again, and does not end it.
    fn check_rounds(&mut self, name: &str, status: &GpuLeaseStatus) {
        let legs = || status.escrow.iter().flat_map(|e| &e.legs);
        let again = legs().find(|leg| status.excluded_providers.contains(&leg.provider));
        self.invariants.require(again.is_none(), || {
            format!(
                "C10: {name} is placed at {:?}, which did not start it before",
                again.map(|leg| &leg.provider)
            )
        });
        let gives_up = status.close_reason == Some(CloseReason::NeverStarted);
        self.invariants
            .require(!gives_up || status.unstarted_rounds == 2, || {
                format!(
                    "C10: {name} is closed because {} did not start it",
                    status.providers
                )
            });
    }

    fn may_close(&self, reason: CloseReason, status: &GpuLeaseStatus, object: &GpuLease) -> bool {
        let terms = status
            .escrow
            .as_ref()
            .and_then(|e| Terms::from_wire(&e.terms).ok());
        let allocations = || {
            let id = status.escrow.as_ref().map(|e| e.terms.id.clone());
            let log = self.allocations.log().iter().filter_map(|(_, a)| a.as_ref());
            log.filter(move |a| Some(&a.spec.escrow.id) == id.as_ref())
                .filter_map(|a| a.status.as_ref())
        };
        let of_chain = |fact: &dyn Fn(&Account, &Terms, u64) -> bool| {
            terms
                .as_ref()
                .is_some_and(|t| self.seen(t, |read, time| read.present().is_some_and(|a| fact(a, t, time))))
        };
        match reason {
            CloseReason::Deleted => object.metadata.deletion_timestamp.is_some(),
            CloseReason::JobSucceeded => {
                allocations().any(|s| s.job.as_ref().is_some_and(|j| j.exit_code == 0))
            }
            CloseReason::JobFailed => allocations().any(|s| s.job.as_ref().is_some_and(|j| j.exit_code != 0)),
            // A reorganisation that drops transactions can remove the account for good.
            CloseReason::ClosedOnChain => {
                let open_by = status.escrow.as_ref().map_or(0, |e| e.open_by);
                let gone = |t| {
                    self.chain.account(t) == AccountRead::Absent
                        && i64::try_from(self.chain.newest().head.time).unwrap_or(0) > open_by
                };
                let drops = self.faults.contains(Scenario::DroppedTransactions);
                of_chain(&|a, _, _| a.closed) || (drops && terms.as_ref().is_some_and(gone))
            }
            CloseReason::NeverStarted => terms.as_ref().is_some_and(|t| self.was_not_started(t)),
            // A provider may have ended its leg since, after which nothing is spent any more.
            CloseReason::TermOver => of_chain(&|a, t, _| {
                let term = duration::seconds(&object.spec.term.duration);
                exhausted(a, t) || term.is_ok_and(|term| a.paid_seconds >= term)
            }),
            // A provider may have read the end of the funds in a block that was replaced; its own stop is checked.
            CloseReason::FundsSpent => {
                let stopped = |s: &GpuAllocationStatus| s.stop_reason == Some(StopReason::FundsSpent);
                of_chain(&|a, t, _| exhausted(a, t)) || allocations().any(stopped)
            }
            // A leg that has not run was not stopped. A reorganisation that drops transactions can remove its start.
            CloseReason::ProviderStopped => {
                let drops = self.faults.contains(Scenario::DroppedTransactions);
                let stopped = |a: &Account, t: &Terms, _| {
                    let mut legs = 0..a.legs.len();
                    a.ended != 0 || legs.any(|leg| (drops || has_run(a, leg)) && self.gave_up(t, leg))
                };
                of_chain(&stopped)
            }
            CloseReason::Abandoned => false,
        }
    }

    /// C10: nobody pays on for a lease of which a provider has not started its part in time.
    pub(super) fn check_incomplete(&mut self, passed: u64) {
        let reads = self.market_reads() && self.faults.flaky_per_mille == 0;
        let (leases, chain, invariants) = (&self.leases, &self.chain, &mut self.invariants);
        let now = chain.newest().head.time;
        let before = std::mem::take(&mut invariants.incomplete_ms);
        for (key, lease) in leases.all() {
            let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
            let Some(Ok(terms)) = escrow.map(|e| Terms::from_wire(&e.terms)) else {
                continue;
            };
            let read = chain.account(&terms);
            let incomplete = |a: &Account| a.running != 0 && (0..a.legs.len()).any(|leg| !has_run(a, leg));
            if now <= terms.start_by || !read.present().is_some_and(incomplete) {
                continue;
            }
            let uid = lease.metadata.uid.clone().unwrap_or_default();
            let ms = before.get(&uid).copied().unwrap_or(0) + if reads { passed } else { 0 };
            if ms > INCOMPLETE_MS {
                invariants.violated(|| {
                    format!(
                        "C10: {} is charged, and not all its providers have started it",
                        key.1
                    )
                });
            }
            invariants.incomplete_ms.insert(uid, ms);
        }
    }

    /// Whether a process of the market is up and reaches its API server and the chain.
    fn market_reads(&self) -> bool {
        let reads =
            |m: usize| self.markets[m].up && !self.faults.cut_from_chain.contains(&ProcessId::Market(m));
        self.faults.market_up && !self.chain.hung && !self.is_frozen() && (0..self.markets.len()).any(reads)
    }

    /// U8: a lease that closes at the end of its funds does so within a bound, whatever else is intended.
    pub(super) fn check_spent(&mut self, passed: u64) {
        let reads = self.market_reads();
        let (leases, chain, invariants) = (&self.leases, &self.chain, &mut self.invariants);
        let before = std::mem::take(&mut invariants.spent_ms);
        for (key, lease) in leases.all() {
            let closes = lease.spec.payment.on_funds_end == OnFundsEnd::Close;
            let status = lease.status.as_ref();
            let escrow = status
                .filter(|s| s.close_reason.is_none())
                .and_then(|s| s.escrow.as_ref());
            let Some(Ok(terms)) = escrow.filter(|_| closes).map(|e| Terms::from_wire(&e.terms)) else {
                continue;
            };
            let read = chain.account(&terms);
            let is_spent = |a: &Account| !a.closed && exhausted(a, &terms);
            if !read.present().is_some_and(is_spent) {
                continue;
            }
            let uid = lease.metadata.uid.clone().unwrap_or_default();
            let ms = before.get(&uid).copied().unwrap_or(0) + if reads { passed } else { 0 };
            if ms > RELEASED_MS {
                invariants.violated(|| format!("U8: {} is kept open although its funds are spent", key.1));
            }
            invariants.spent_ms.insert(uid, ms);
        }
    }

    /// U8: every deleted lease is released within a bound, while the market can act; one for which nothing was ever paid
    /// also while the chain cannot be read.
    pub(super) fn check_finalizers(&mut self, passed: u64) {
        let acts = self.faults.market_up && self.markets.iter().any(|m| m.up);
        let reads = self.market_reads();
        let (leases, invariants) = (&self.leases, &mut self.invariants);
        let before = std::mem::take(&mut invariants.deleted_ms);
        for (key, lease) in leases.all() {
            let meta = &lease.metadata;
            if meta.deletion_timestamp.is_none() {
                continue;
            }
            let uid = meta.uid.clone().unwrap_or_default();
            let counts = if invariants.may_be_paid.contains(&uid) {
                reads
            } else {
                acts
            };
            let ms = before.get(&uid).copied().unwrap_or(0) + if counts { passed } else { 0 };
            if ms > RELEASED_MS {
                let status = lease.status.clone().unwrap_or_default();
                invariants.violated(|| format!("U8: {} is not released, it is {:?}", key.1, status.phase));
            }
            invariants.deleted_ms.insert(uid, ms);
        }
    }

    /// M1: the account of a lease that was stored as closed is closed, so that no deposit is spent on what nobody serves.
    pub(super) fn check_counted_closes(&mut self, passed: u64) {
        let can_act = self.market_reads() && self.faults.flaky_per_mille == 0;
        let (chain, invariants) = (&self.chain, &mut self.invariants);
        let mut reopened = None;
        for close in invariants.counted_closes.values_mut() {
            let is_open = chain.account(&close.terms).present().is_some_and(|a| !a.closed);
            close.open_ms = match (is_open, can_act) {
                (false, _) => 0,
                (true, false) => close.open_ms,
                (true, true) => close.open_ms + passed,
            };
            if close.open_ms > REOPENED_MS {
                reopened = Some(close.name.clone());
            }
        }
        if let Some(name) = reopened {
            invariants.violated(|| format!("M1: {name} was stored as closed, but its account is open"));
        }
    }

    /// A lease is deleted only when its account is closed or can no longer be opened.
    fn lease_deleted(&mut self, key: &Key) {
        let Some((uid, _)) = self.invariants.lives.remove(key) else {
            return;
        };
        let until = self.chain.newest().head.number;
        let open: Vec<String> = self
            .chain
            .opened(until)
            .filter(|o| self.invariants.lease_of_account.get(&o.terms.id().to_string()) == Some(&uid))
            .filter(|o| !self.invariants.left_accounts.contains(&o.terms.id()))
            .filter(|o| self.chain.account(&o.terms).present().is_some_and(|a| !a.closed))
            .map(|o| o.terms.id().to_string())
            .collect();
        self.invariants.require(open.is_empty(), || {
            format!("{} was deleted while its account {open:?} is open", key.1)
        });
    }
}
