//! The design's invariants, checked after every step against the actual state of the simulated world, not against
//! what any process has observed.

use std::collections::{BTreeMap, BTreeSet};

use leasehold_crds::{
    lease::GpuLeaseStatus,
    market::allocation::{AllocationPhase, StopReason},
    payment::money::TokenAmount,
};
use leasehold_planner::escrow::{Account, AccountRead, Hash, Terms};

use crate::{
    Sim,
    api::Key,
    reconcile::{ProcessId, Task},
};

mod credits;
mod leases;
mod money;
mod plans;
mod reservations;
mod rest;
mod unpaid;
mod workloads;

/// Reconciles of one object per minute. A higher rate means that a controller loops without waiting.
const RECONCILES_PER_MINUTE_MAX: u32 = 900;
/// Blocks in which an observed fact may lie that is stored only later.
const SEEN_BLOCKS: usize = 40;

/// What was observed so far, and the first violation.
#[derive(Default)]
pub(crate) struct Invariants {
    pub(crate) minted: TokenAmount,
    violation: Option<String>,
    intents: BTreeMap<String, u128>,
    close_intents: BTreeSet<String>,
    deposited_by_others: BTreeMap<String, u128>,
    accepted: BTreeSet<(String, i64)>,
    leg_intents: BTreeSet<(String, LegActionName)>,
    /// Name of a reservation, and a total of credited seconds that it intended.
    credit_intents: BTreeSet<(String, i64)>,
    leg_faults: BTreeMap<(Hash, usize), credits::LegFaults>,
    /// UID of the lease, by the id of its account.
    lease_of_account: BTreeMap<String, String>,
    counted_closes: BTreeMap<Hash, CountedClose>,
    /// Accounts whose reservation was removed together with its finalizer.
    pub(crate) removed_forcibly: BTreeSet<String>,
    /// UIDs of leases for which a deposit was intended, or whose status was lost: whether there is money on the chain
    /// must be read from it.
    may_be_paid: BTreeSet<String>,
    /// Accounts of rounds that were not started in time. If a reorganisation drops their close, they are orphans.
    left_accounts: BTreeSet<Hash>,
    /// Entries of the log of leases that a backup has restored.
    pub(crate) restored: BTreeSet<usize>,
    /// How long the funds of leases that close at their end have been spent, in ms in which the market could close them.
    spent_ms: BTreeMap<String, u64>,
    /// How long leases have been charged after `startBy` although a leg has not run, in ms in which the market could read.
    incomplete_ms: BTreeMap<String, u64>,
    /// How long leases have been deleted, in ms in which the market could release them.
    deleted_ms: BTreeMap<String, u64>,
    lives: BTreeMap<Key, (String, Option<GpuLeaseStatus>)>,
    reservations: BTreeMap<(usize, String), ReservationState>,
    reads: BTreeMap<(ProcessId, Hash), u64>,
    reconciles: BTreeMap<(ProcessId, Task), (u64, u32)>,
    leases_seen: usize,
    allocations_seen: usize,
    reservations_seen: Vec<usize>,
    tip: Option<Hash>,
    /// How often things happened. A run in which no lease becomes active proves nothing.
    pub(crate) counts: BTreeMap<String, u64>,
    checked_at: u64,
}

/// The account of a lease that was stored as closed, and for how long it has been open nevertheless.
struct CountedClose {
    name: String,
    terms: Terms,
    open_ms: u64,
}

type LegActionName = &'static str;

/// A reservation as it was last stored, and for how long its pods ran when they should not have.
struct ReservationState {
    terms: Option<Terms>,
    phase: AllocationPhase,
    stop_reason: Option<StopReason>,
    was_suspended: bool,
    not_after: i64,
    open_by: i64,
    deadline: i64,
    lease_uid: String,
    has_job_result: bool,
    exists: bool,
    paid_until: i64,
    beyond_ms: u64,
    dark_ms: u64,
    after_stop_ms: u64,
    orphan_ms: u64,
    after_not_after_ms: u64,
    dead_ms: u64,
    unpaid: unpaid::Unpaid,
}

/// Whether the account's funds are spent, as the contract defines it. Ending an unpaid leg does not change that.
fn exhausted(account: &Account, terms: &Terms) -> bool {
    let all = account.ended.count_ones() as usize == terms.legs.len();
    let burns = terms.burn_rate(if all { 0 } else { account.ended });
    account.exhausted_at != 0 && account.running == 0 && account.balance_scaled < burns.0
}

/// Whether the funds are spent for a provider, which serves no less than ten seconds at a time.
fn spent(account: &Account, terms: &Terms) -> bool {
    let burns = terms.burn_rate(account.ended).0;
    account.exhausted_at != 0 && account.running == 0 && account.balance_scaled < 10 * burns
        || exhausted(account, terms)
}

impl Invariants {
    fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(crate) fn count(&mut self, what: String) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(what);
        }
    }

    pub(crate) fn record_read(&mut self, who: ProcessId, id: Hash, now: u64) {
        self.reads.insert((who, id), now);
    }

    pub(crate) fn third_party_deposits(&mut self, id: Hash, total: TokenAmount) {
        let most = self.deposited_by_others.entry(id.to_string()).or_default();
        *most = total.0.max(*most);
    }

    /// Detects a controller that reconciles the same object far too often.
    pub(crate) fn reconcile_begins(&mut self, who: ProcessId, task: &Task, now: u64) {
        let (since, count) = self.reconciles.entry((who, task.clone())).or_insert((now, 0));
        if now - *since > 60_000 {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        let spins = *count > RECONCILES_PER_MINUTE_MAX;
        self.require(!spins, || format!("{who:?} reconciles {task:?} in a tight loop"));
    }
}

impl Sim {
    /// Checks all invariants after a step.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.follow_leases();
        self.follow_allocations();
        self.follow_reservations_log();
        if self.invariants.tip != Some(self.chain.tip()) {
            self.invariants.tip = Some(self.chain.tip());
            self.check_money();
            self.check_credits();
        }
        let passed = self.now - self.invariants.checked_at;
        if passed >= 200 {
            self.invariants.checked_at = self.now;
            self.check_pods(passed.min(5_000));
            self.check_counted_closes(passed.min(5_000));
            self.check_finalizers(passed.min(5_000));
            self.check_spent(passed.min(5_000));
            self.check_incomplete(passed.min(5_000));
        }
        self.invariants.violation.take().map_or(Ok(()), Err)
    }

    fn seen(&self, terms: &Terms, fact: impl Fn(&AccountRead, u64) -> bool) -> bool {
        let mut recent = self.chain.recent().take(SEEN_BLOCKS);
        recent.any(|b| fact(&b.machine.read(terms, b.head.time), b.head.time))
    }
}
