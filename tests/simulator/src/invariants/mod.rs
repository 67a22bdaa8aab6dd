//! The rules of the design, checked after every step against what is true of the world, not against what anybody
//! believes of it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use leasehold_chain::machine::Action;
use leasehold_crds::{
    GpuAllocation, GpuLease, GpuReservation,
    lease::{CloseReason, GpuLeaseStatus, IntentAction, Phase},
    market::allocation::AllocationPhase,
    payment::money::{RATE_SCALE, TokenAmount},
    provider::reservation::LegAction,
    shared::conditions::{find, is_true},
};
use leasehold_planner::{
    escrow::{Account, AccountRead, Hash, Terms, lease_name},
    market::lease,
    provider::reservation::{self, Workload},
};

use crate::{
    Sim,
    api::Key,
    cluster::Pod,
    reconcile::{Task, Who},
    provider::is_signed,
    sim::somebody,
};

/// A share is served at most so much beyond its end where everything can be read: a pass, two blocks, a pod's delay.
const SLACK_MS: u64 = 30_000;
/// What belongs to nobody is gone within a minute.
const ORPHAN_MS: u64 = 75_000;
/// Looks at one object in a minute: beyond this nothing is waited for, it spins.
const PASSES_PER_MINUTE: u32 = 900;
/// A node that lives again is heard of within so long.
const REVIVED_MS: u64 = 15_000;
/// Nobody is charged longer than this for a node that is dead, where all can be read: the cluster's grace, the minute of
/// both silences, and a pause that waits for a crowded block.
const DEAD_MS: u64 = 300_000;
/// Blocks in which a fact may have been seen that is stored only later.
const SEEN_BLOCKS: usize = 40;

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Judge {
    pub(crate) minted: TokenAmount,
    violation: Option<String>,
    intents: BTreeMap<String, u128>,
    close_intents: BTreeSet<String>,
    strangers: BTreeMap<String, u128>,
    accepted: BTreeSet<(String, i64)>,
    leg_intents: BTreeSet<(String, LegActionName)>,
    lease_of_salt: BTreeMap<String, String>,
    lives: BTreeMap<Key, (String, Option<GpuLeaseStatus>)>,
    shares: BTreeMap<(usize, String), Share>,
    reads: BTreeMap<(Who, Hash), u64>,
    passes: BTreeMap<(Who, Task), (u64, u32)>,
    leases_seen: usize,
    allocations_seen: usize,
    reservations_seen: Vec<usize>,
    tip: Option<Hash>,
    /// How often what happened: a storm that never gets a lease to run proves nothing.
    pub(crate) happened: BTreeMap<String, u64>,
    looked_at: u64,
}

type LegActionName = &'static str;

/// A reservation as it was last stored, and what its pods did that they should not have.
struct Share {
    terms: Option<Terms>,
    phase: AllocationPhase,
    stop_reason: Option<String>,
    was_suspended: bool,
    not_after: i64,
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
}

const fn action_name(action: LegAction) -> LegActionName {
    match action {
        LegAction::Start => "start",
        LegAction::Pause => "pause",
        LegAction::Credit => "credit",
        LegAction::End => "endLeg",
        LegAction::Withdraw => "settleMany",
    }
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

const fn share_rank(phase: AllocationPhase) -> u8 {
    match phase {
        AllocationPhase::Requested | AllocationPhase::Declined => 0,
        AllocationPhase::Reserved => 1,
        AllocationPhase::Provisioning => 2,
        AllocationPhase::Active => 3,
        AllocationPhase::Suspended => 4,
        AllocationPhase::Stopping => 5,
        AllocationPhase::Stopped => 6,
    }
}

/// The funds are spent, by the contract's own words; they stay so when a leg is ended that nobody pays.
fn exhausted(account: &Account, terms: &Terms) -> bool {
    let all = account.ended.count_ones() as usize == terms.legs.len();
    let burns = terms.burn_rate(if all { 0 } else { account.ended });
    account.exhausted_at != 0 && account.running == 0 && account.balance_scaled < burns.0
}

impl Judge {
    fn blame(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(crate) fn happens(&mut self, what: String) {
        *self.happened.entry(what).or_default() += 1;
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.blame(what);
        }
    }

    pub(crate) fn was_read(&mut self, who: Who, id: Hash, now: u64) {
        self.reads.insert((who, id), now);
    }

    pub(crate) fn stranger_gives(&mut self, id: Hash, total: TokenAmount) {
        let most = self.strangers.entry(id.to_string()).or_default();
        *most = total.0.max(*most);
    }

    /// A controller that spins is looked at far too often.
    pub(crate) fn pass_begins(&mut self, who: Who, task: &Task, now: u64) {
        let (since, count) = self.passes.entry((who, task.clone())).or_insert((now, 0));
        if now - *since > 60_000 {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        let spins = *count > PASSES_PER_MINUTE;
        self.require(!spins, || format!("{who:?} spins on {task:?}"));
    }

    fn wake(&mut self, wake: Timestamp, now: Timestamp, notes: bool, about: &str) {
        let in_time = wake <= now + jiff::SignedDuration::from_secs(3600);
        self.require(in_time, || {
            format!("{about} is looked at again at {wake}, in more than an hour")
        });
        let ahead = wake > now || (notes && wake == now);
        self.require(ahead, || {
            format!("{about} is looked at again at {wake}, it is {now}: not in the future")
        });
    }

    /// What the market decided about a lease.
    pub(crate) fn lease_plan(&mut self, read: &GpuLease, plan: &lease::Plan, now: Timestamp) {
        let before = read.status.clone().unwrap_or_default();
        self.wake(plan.wake, now, plan.notes_first(&before), "a lease");
        if before.phase == Phase::Closed {
            let quiet =
                plan.call.is_none() && plan.allocations.is_empty() && plan.status.phase == Phase::Closed;
            self.require(quiet, || "a closed lease moves".into());
        }
    }

    /// What a provider decided about a reservation.
    pub(crate) fn reservation_plan(
        &mut self,
        read: &GpuReservation,
        plan: &reservation::Plan,
        now: Timestamp,
    ) {
        let before = read.status.clone().unwrap_or_default();
        let notes = plan.status.intent != before.intent
            || plan.status.stop_reason != before.stop_reason
            || plan.status.phase != before.phase;
        self.wake(plan.wake, now, notes, "a reservation");
        if before.stop_reason.is_some() {
            self.require(plan.workload != Workload::Run, || {
                "what was stopped is run again".into()
            });
        }
    }

    /// The market sends a transaction: it must be what a stored intent asks for.
    pub(crate) fn market_sends(&mut self, action: &Action) {
        match action {
            Action::Open { terms, deposit, .. } => {
                let id = terms.id().to_string();
                self.require(self.intents.get(&id).is_some_and(|t| *t >= deposit.0), || {
                    format!("M2: {id} is opened with {deposit} and no intent names as much")
                });
                for leg in 0..terms.legs.len() {
                    let leg = i64::try_from(leg).unwrap_or(0);
                    let has = self.accepted.contains(&(id.clone(), leg));
                    self.require(has, || {
                        format!("M2: {id} is opened and leg {leg} was never accepted")
                    });
                }
            }
            Action::FundTo { terms, total } => {
                let id = terms.id().to_string();
                self.require(self.intents.get(&id).is_some_and(|t| *t >= total.0), || {
                    format!("M2: {id} is filled up to {total} and no intent names as much")
                });
            }
            Action::Close { terms, .. } => {
                let id = terms.id().to_string();
                let has = self.close_intents.contains(&id);
                self.require(has, || format!("M2: {id} is closed without an intent"));
            }
            _ => self.blame(|| format!("the market has no business to {action}")),
        }
    }

    /// A provider sends a transaction: it must be what a stored intent asks for.
    pub(crate) fn provider_sends(&mut self, name: &str, action: &Action) {
        let has = self.leg_intents.contains(&(name.to_owned(), action.name()));
        self.require(has, || format!("M2: {name}: {action} without an intent"));
    }
}

impl Sim {
    /// U1: a node is lost for a share only while it is dead, or was a moment ago.
    pub(crate) fn living_nodes_are_not_lost(
        &mut self,
        site: usize,
        read: &GpuReservation,
        plan: &reservation::Plan,
    ) {
        let gpus = find(&plan.status.conditions, "GpusHealthy");
        if gpus.is_none_or(|c| c.reason != "NodeLost") {
            return;
        }
        let cluster = &self.sites[site].cluster;
        let dead = read.spec.nodes.iter().any(|n| cluster.is_dead(n));
        let just_back = self.now - cluster.revived_ms < REVIVED_MS;
        let before = read
            .status
            .as_ref()
            .and_then(|s| find(&s.conditions, "GpusHealthy"));
        if before.is_none_or(|c| c.reason != "NodeLost") {
            self.judge.happens("share loses its node".into());
        }
        self.judge.require(dead || just_back, || {
            format!(
                "U1: a node of {:?} is taken for lost and lives",
                read.metadata.name
            )
        });
    }

    /// Every rule, after a step.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.follow_leases();
        self.follow_allocations();
        self.follow_reservations_log();
        if self.judge.tip != Some(self.chain.tip()) {
            self.judge.tip = Some(self.chain.tip());
            self.check_money();
        }
        let passed = self.now - self.judge.looked_at;
        if passed >= 200 {
            self.judge.looked_at = self.now;
            self.check_pods(passed.min(5_000));
        }
        self.judge.violation.take().map_or(Ok(()), Err)
    }

    fn seen(&self, terms: &Terms, fact: impl Fn(&AccountRead, u64) -> bool) -> bool {
        let mut recent = self.chain.recent().take(SEEN_BLOCKS);
        recent.any(|b| fact(&b.machine.read(terms, b.head.time), b.head.time))
    }

    // ------------------------------------------------------------------ what was stored

    fn follow_leases(&mut self) {
        while let Some((key, object)) = self.leases.log().get(self.judge.leases_seen).cloned() {
            self.judge.leases_seen += 1;
            let Some(object) = object else {
                self.lease_is_gone(&key);
                continue;
            };
            let uid = object.metadata.uid.clone().unwrap_or_default();
            let before = self
                .judge
                .lives
                .get(&key)
                .filter(|(u, _)| *u == uid)
                .and_then(|(_, s)| s.clone());
            if let Some(status) = &object.status {
                self.lease_is(&key, &uid, before.as_ref(), status, &object);
            }
            self.judge.lives.insert(key, (uid, object.status.clone()));
        }
    }

    fn lease_is(
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
            self.judge.happens(format!("lease {:?}", status.phase));
        }
        let back = rank(status.phase) < rank(was);
        let allowed = !back
            || matches!(
                (was, status.phase),
                (Phase::Suspended, Phase::Active) | (Phase::Matched, Phase::Pending)
            );
        self.judge.require(allowed, || {
            format!("{name} goes back from {was:?} to {:?}", status.phase)
        });
        if let Some(escrow) = &status.escrow {
            let id = escrow.terms.id.clone();
            self.judge
                .lease_of_salt
                .insert(escrow.terms.salt.clone(), uid.to_owned());
            if let Some(intent) = &status.intent {
                match intent.action {
                    IntentAction::Open | IntentAction::Fund => {
                        let total = intent.total.as_deref().and_then(|t| t.parse().ok()).unwrap_or(0);
                        let most = self.judge.intents.entry(id).or_default();
                        *most = total.max(*most);
                    }
                    IntentAction::Close => {
                        self.judge.close_intents.insert(id);
                    }
                }
            }
        }
        if before.and_then(|s| s.close_reason).is_none()
            && let Some(reason) = status.close_reason
        {
            self.judge.happens(format!("lease ends {reason:?}"));
            let true_enough = self.may_close(reason, status, object);
            self.judge.require(true_enough, || {
                format!("U1: {name} is closed for {reason:?}, which is not so: {status:?}")
            });
        }
    }

    fn may_close(&self, reason: CloseReason, status: &GpuLeaseStatus, object: &GpuLease) -> bool {
        let terms = status
            .escrow
            .as_ref()
            .and_then(|e| Terms::from_wire(&e.terms).ok());
        let shares = || {
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
            CloseReason::JobSucceeded => shares().any(|s| s.job.as_ref().is_some_and(|j| j.exit_code == 0)),
            CloseReason::JobFailed => shares().any(|s| s.job.as_ref().is_some_and(|j| j.exit_code != 0)),
            CloseReason::ClosedOnChain => of_chain(&|a, _, _| a.closed),
            CloseReason::NeverStarted => of_chain(&|a, t, time| a.started_at == 0 && time > t.start_by),
            CloseReason::TermOver | CloseReason::FundsSpent => of_chain(&|a, t, _| exhausted(a, t)),
            CloseReason::ProviderStopped => {
                let stopped = |phase| matches!(phase, AllocationPhase::Stopping | AllocationPhase::Stopped);
                shares().any(|s| stopped(s.phase))
                    || of_chain(&|a, t, _| a.ended.count_ones() as usize == t.legs.len())
            }
            CloseReason::Abandoned => false,
        }
    }

    /// A lease goes only when its account is closed, or can't be opened any more.
    fn lease_is_gone(&mut self, key: &Key) {
        let Some((uid, _)) = self.judge.lives.remove(key) else {
            return;
        };
        let until = self.chain.newest().head.number;
        let open: Vec<String> = self
            .chain
            .opened(until)
            .filter(|o| self.judge.lease_of_salt.get(&o.terms.salt.to_string()) == Some(&uid))
            .filter(|o| self.chain.truth(&o.terms).present().is_some_and(|a| !a.closed))
            .map(|o| o.terms.id().to_string())
            .collect();
        self.judge.require(open.is_empty(), || {
            format!("{} is gone and its account {open:?} is open", key.1)
        });
    }

    fn follow_allocations(&mut self) {
        while let Some((_, object)) = self.allocations.log().get(self.judge.allocations_seen).cloned() {
            self.judge.allocations_seen += 1;
            if let Some(a) = object.filter(|a: &std::sync::Arc<GpuAllocation>| is_signed(a)) {
                self.judge.accepted.insert((a.spec.escrow.id.clone(), a.spec.leg));
            }
        }
    }

    fn follow_reservations_log(&mut self) {
        self.judge.reservations_seen.resize(self.sites.len(), 0);
        for site in 0..self.sites.len() {
            while let Some((key, object)) = self.sites[site]
                .reservations
                .log()
                .get(self.judge.reservations_seen[site])
                .cloned()
            {
                self.judge.reservations_seen[site] += 1;
                match object {
                    Some(object) => self.share_is(site, &key.1, &object),
                    None => {
                        if let Some(share) = self.judge.shares.get_mut(&(site, key.1.clone())) {
                            share.exists = false;
                        }
                    }
                }
            }
        }
    }

    fn share_is(&mut self, site: usize, name: &str, object: &GpuReservation) {
        let status = object.status.clone().unwrap_or_default();
        let spec = &object.spec.allocation;
        if let Some(intent) = &status.intent {
            self.judge
                .leg_intents
                .insert((name.to_owned(), action_name(intent.action)));
        }
        let fresh = || Share {
            terms: Terms::from_wire(&spec.escrow).ok(),
            phase: AllocationPhase::Requested,
            stop_reason: None,
            was_suspended: false,
            not_after: spec.not_after,
            lease_uid: spec.lease.uid.clone(),
            has_job_result: false,
            exists: true,
            paid_until: 0,
            beyond_ms: 0,
            dark_ms: 0,
            after_stop_ms: 0,
            orphan_ms: 0,
            after_not_after_ms: 0,
            dead_ms: 0,
        };
        let share = self
            .judge
            .shares
            .entry((site, name.to_owned()))
            .or_insert_with(fresh);
        if !share.exists {
            *share = fresh();
        }
        let (was, stopped) = (share.phase, share.stop_reason.clone());
        let terms = share.terms.clone();
        share.phase = status.phase;
        share.not_after = spec.not_after;
        share.has_job_result = status.job.is_some();
        share.was_suspended |= status.phase == AllocationPhase::Suspended;
        share.stop_reason.clone_from(&status.stop_reason);
        let paid_until_before = share.paid_until;
        share.paid_until = status.escrow.as_ref().map_or(0, |e| e.paid_until);
        if status.phase != was {
            self.judge.happens(format!("share {:?}", status.phase));
        }
        let back = share_rank(status.phase) < share_rank(was);
        let allowed = !back || (was, status.phase) == (AllocationPhase::Suspended, AllocationPhase::Active);
        self.judge.require(allowed, || {
            format!("share {name} goes back from {was:?} to {:?}", status.phase)
        });
        let revived = stopped.is_some() && status.stop_reason.is_none();
        self.judge
            .require(!revived, || format!("the stop of share {name} is taken back"));
        let both = status.stop_reason.is_some() && is_true(&status.conditions, "Ready");
        self.judge.require(!both, || {
            format!("share {name} is stopped and says that it is ready")
        });
        if stopped.is_none()
            && let (Some(reason), Some(terms)) = (&status.stop_reason, &terms)
        {
            self.judge.happens(format!("share stops {reason}"));
            let true_enough = self.may_stop(reason, terms, site, object, paid_until_before);
            self.judge.require(true_enough, || {
                let (escrow, since) = (&status.escrow, status.chain_unreadable_since);
                format!("U1/U2: share {name} is stopped for {reason}, which is not so: {escrow:?}, silent since {since:?}")
            });
        }
    }

    fn may_stop(
        &self,
        reason: &str,
        terms: &Terms,
        site: usize,
        object: &GpuReservation,
        paid_until: i64,
    ) -> bool {
        let of_chain = |fact: &dyn Fn(&Account, u64) -> bool| {
            self.seen(terms, |read, time| read.present().is_some_and(|a| fact(a, time)))
        };
        let spec = &object.spec;
        let clocks = || self.sites[site].processes.iter().map(|p| p.offset_ms);
        let latest = clocks().max().map_or(0, |o| self.clock(o).as_second());
        match reason {
            "Released" => spec.release,
            "ReservationDeleted" => object.metadata.deletion_timestamp.is_some(),
            "AccountClosed" => of_chain(&|a, _| a.closed),
            "NeverStarted" => of_chain(&|a, time| a.started_at == 0 && time > terms.start_by),
            "Unpaid" => {
                self.chain.truth(terms) == AccountRead::Absent
                    && i64::try_from(self.chain.newest().head.time).unwrap_or(0) > spec.allocation.open_by
            }
            "AllocationGone" => {
                let asks = |a: &GpuAllocation| a.metadata.uid.as_ref() == Some(&spec.allocation_uid);
                !self.allocations.all().any(|(_, a)| asks(a))
                    && self.seen(terms, |read, _| *read == AccountRead::Absent)
            }
            "AccountMismatch" => self.seen(terms, |read, _| *read == AccountRead::Mismatch),
            "PaymentUnknown" => latest > spec.deadline,
            "FundsSpent" => of_chain(&|a, _| exhausted(a, terms)),
            "PauseOver" => of_chain(&|a, time| {
                exhausted(a, terms) && time >= a.exhausted_at + u64::from(terms.pause_for)
            }),
            "NotAfter" => latest >= spec.allocation.not_after,
            "FundsUnknown" => {
                let spread = clocks().max().unwrap_or(0) - clocks().min().unwrap_or(0);
                let grace = i64::try_from(self.sites[site].grace_seconds).unwrap_or(0);
                let used = object.status.as_ref().is_some_and(|s| s.grace_used);
                let now = i64::try_from(self.now / 1000).unwrap_or(0) + spread / 1000 + 15;
                let read_by = |p: usize| {
                    self.judge
                        .reads
                        .get(&(Who::Provider(site, p), terms.id()))
                        .copied()
                };
                let dark = (0..2).all(|p| read_by(p).is_none_or(|at| self.now - at > 1_000));
                now >= paid_until + if used { 0 } else { grace } && (dark || spread > 0)
            }
            _ => false,
        }
    }

    // ------------------------------------------------------------------ money

    /// M1 and M2, at each block.
    fn check_money(&mut self) {
        let block = self.chain.newest();
        let (token, until, time) = (self.money.token, block.head.number, block.head.time);
        let accounts: BTreeMap<Hash, (&Terms, Account)> = self
            .chain
            .opened(until)
            .filter_map(|o| match block.machine.read(&o.terms, time) {
                AccountRead::Present(account) => Some((o.terms.id(), (&o.terms, account))),
                AccountRead::Absent | AccountRead::Mismatch => None,
            })
            .collect();
        let payees = self.sites.iter().map(|s| s.identity.payee);
        let holders: BTreeSet<_> = self
            .tenants
            .purses()
            .into_iter()
            .map(|(who, _)| who)
            .chain(payees)
            .chain([somebody("closer")])
            .collect();
        let outside: u128 = holders
            .iter()
            .map(|who| block.machine.balance(token, *who).0)
            .sum();
        let held = block.machine.held(token).0;
        let minted = self.judge.minted.0;
        let mut wrong = Vec::new();
        if outside + held != minted {
            wrong.push(format!(
                "M1: {outside} outside and {held} in the escrow, {minted} were made"
            ));
        }
        let mut owed_in_all = 0;
        let mut open: BTreeMap<&String, u32> = BTreeMap::new();
        for (id, (terms, account)) in &accounts {
            let owed: u128 = account.legs.iter().map(|l| l.owed.0).sum();
            let withdrawn: u128 = account.legs.iter().map(|l| l.withdrawn.0).sum();
            let scaled = |i: usize| terms.legs[i].rate.0 * u128::from(account.legs[i].served_seconds);
            let earned: u128 = (0..account.legs.len()).map(scaled).sum();
            if account.closed {
                owed_in_all += owed;
            } else {
                owed_in_all += account.deposited.0 - withdrawn;
                if let Some(uid) = self.judge.lease_of_salt.get(&terms.salt.to_string()) {
                    *open.entry(uid).or_default() += 1;
                }
                if earned + account.balance_scaled > account.deposited.0 * RATE_SCALE {
                    wrong.push(format!("M1: {id} owes more than it holds"));
                }
            }
            let text = id.to_string();
            let most = self.judge.intents.get(&text).copied().unwrap_or(0);
            let given = self.judge.strangers.get(&text).copied().unwrap_or(0);
            if account.deposited.0 > most.max(given) {
                wrong.push(format!(
                    "M2: {id} holds {}, intents name {most}",
                    account.deposited
                ));
            }
        }
        if owed_in_all != held {
            wrong.push(format!(
                "M1: accounts add up to {owed_in_all}, the escrow holds {held}"
            ));
        }
        for (uid, count) in open {
            if count > 1 {
                wrong.push(format!("M2: {count} accounts are open for {uid}"));
            }
        }
        for what in wrong {
            self.judge.blame(|| what);
        }
    }

    // ------------------------------------------------------------------ what runs

    /// U2 and U3: what serves must be paid, wanted, and served once.
    fn check_pods(&mut self, passed: u64) {
        let mut serving: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for site in 0..self.sites.len() {
            let can_act =
                !self.weather.sites_down.contains(&site) && self.sites[site].processes.iter().any(|p| p.up);
            let cut = |p| self.weather.cut_from_chain.contains(&Who::Provider(site, p));
            let up = |p: usize| self.sites[site].processes[p].up;
            let can_read =
                !self.chain.hung && (0..2).any(|p| up(p) && !cut(p)) && self.weather.flaky_per_mille == 0;
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
                if let Some(uid) = self.check_share(site, &name, serves, can_act, can_read, passed) {
                    serving
                        .entry(uid)
                        .or_default()
                        .insert(name[..32.min(name.len())].to_owned());
                }
            }
        }
        for (uid, lives) in serving {
            self.judge.require(lives.len() < 2, || {
                format!("U3: lease {uid} is served twice: {lives:?}")
            });
        }
        for site in 0..self.sites.len() {
            let judge = &mut self.judge;
            let again = self.sites[site]
                .cluster
                .job_runs
                .iter()
                .find(|((name, _), runs)| {
                    let suspended = judge
                        .shares
                        .get(&(site, name.clone()))
                        .is_some_and(|s| s.was_suspended);
                    **runs > 1 && !suspended
                });
            if let Some(((name, rank), runs)) = again {
                judge.blame(|| format!("U3: node {rank} of the job in {name} ran {runs} times"));
            }
        }
    }

    fn check_share(
        &mut self,
        site: usize,
        name: &str,
        serves: bool,
        can_act: bool,
        can_read: bool,
        passed: u64,
    ) -> Option<String> {
        let local = self.sites[site].processes.iter().map(|p| p.offset_ms).min();
        let local = self.clock(local.unwrap_or(0)).as_second();
        let now = i64::try_from(self.now / 1000).unwrap_or(0);
        let grace_ms = self.sites[site].grace_seconds * 1000;
        let judge = &mut self.judge;
        let Some(share) = judge.shares.get_mut(&(site, name.to_owned())) else {
            judge.blame(|| format!("namespace {name} was made for no reservation"));
            return None;
        };
        if !share.exists {
            // While somebody pays for it, it is left alone and told.
            let paid = share
                .terms
                .as_ref()
                .is_some_and(|terms| match self.chain.truth(terms) {
                    AccountRead::Present(account) => !account.closed,
                    AccountRead::Absent | AccountRead::Mismatch => false,
                });
            let leaving = self.sites[site].cluster.namespaces.get(name) == Some(&true);
            share.orphan_ms = if can_act && can_read && !paid && !leaving {
                share.orphan_ms + passed
            } else {
                0
            };
            let late = share.orphan_ms > ORPHAN_MS;
            judge.require(!late, || {
                format!("U5: namespace {name} belongs to nobody for over a minute")
            });
            return None;
        }
        if !serves {
            (share.beyond_ms, share.after_stop_ms, share.after_not_after_ms) = (0, 0, 0);
            return None;
        }
        let count = |holds: bool, ms: u64| {
            if holds && can_act {
                ms + passed
            } else if holds {
                ms
            } else {
                0
            }
        };
        share.after_stop_ms = count(share.stop_reason.is_some(), share.after_stop_ms);
        share.after_not_after_ms = count(local > share.not_after, share.after_not_after_ms);
        let terms = share.terms.as_ref()?;
        let read = self.chain.truth(terms);
        let cluster = &self.sites[site].cluster;
        let on_dead = |p: &Pod| p.namespace == name && p.node.as_ref().is_some_and(|n| cluster.is_dead(n));
        let dead = cluster.pods.iter().any(on_dead) && share.stop_reason.is_none();
        let charged = read
            .present()
            .is_some_and(|a| a.running != 0 && a.legs.len() == 1);
        share.dead_ms = if dead && charged && can_act && can_read {
            share.dead_ms + passed
        } else {
            0
        };
        let charged_for_dead = share.dead_ms > DEAD_MS;
        let unpaid = match read.present() {
            Some(account) => account.closed || exhausted(account, terms),
            None => true,
        };
        // What is closed is seen by the next look at the chain, where the market can't tell.
        let slack = if read.present().is_some_and(|a| a.closed) {
            2 * SLACK_MS
        } else {
            SLACK_MS
        };
        share.beyond_ms = if unpaid && can_act && can_read {
            share.beyond_ms + passed
        } else {
            0
        };
        if !can_read && can_act && share.paid_until > 0 && now > share.paid_until {
            share.dark_ms += passed;
        }
        let (stop, late, beyond) = (share.after_stop_ms, share.after_not_after_ms, share.beyond_ms);
        let dark = share.dark_ms > grace_ms + 2 * SLACK_MS;
        let uid = share.lease_uid.clone();
        judge.require(!charged_for_dead, || {
            format!("M4: {name} is charged for a node that is dead")
        });
        judge.require(stop <= SLACK_MS, || {
            format!("U3: {name} serves on long after it was stopped")
        });
        judge.require(late <= SLACK_MS, || {
            format!("U3: {name} serves on after notAfter")
        });
        judge.require(beyond <= slack, || {
            format!("U2: {name} serves on though nobody pays")
        });
        judge.require(!dark, || {
            format!("U2: {name} serves on in the dark, beyond its grace")
        });
        Some(uid)
    }

    // ------------------------------------------------------------------ rest

    /// What is left of leases that are gone; `None` when nothing is.
    pub(crate) fn what_is_left(&self) -> Option<String> {
        let closed = |l: &GpuLease| {
            l.metadata.deletion_timestamp.is_none()
                && l.status.as_ref().is_some_and(|s| s.phase == Phase::Closed)
        };
        if let Some((key, lease)) = self.leases.all().find(|(_, l)| !closed(l)) {
            let s = lease.status.clone().unwrap_or_default();
            return Some(format!(
                "lease {}: {:?}, {:?}, intent {:?}, deleting {}",
                key.1,
                s.phase,
                s.close_reason,
                s.intent,
                lease.metadata.deletion_timestamp.is_some()
            ));
        }
        if let Some((key, a)) = self.allocations.all().next() {
            let s = a.status.clone().unwrap_or_default();
            return Some(format!(
                "allocation {}: {:?}, stopped {:?}, release {}",
                key.1, s.phase, s.stopped_at, a.spec.release
            ));
        }
        for s in 0..self.sites.len() {
            if let Some((key, r)) = self.reservations(s).first() {
                let status = r.status.clone().unwrap_or_default();
                return Some(format!(
                    "reservation {}: {:?}, {:?}, intent {:?}",
                    key.1, status.phase, status.stop_reason, status.intent
                ));
            }
            let cluster = &self.sites[s].cluster;
            if let Some(name) = cluster.namespaces.keys().next() {
                return Some(format!("namespace {name}"));
            }
            if let Some(pod) = cluster.pods.first() {
                return Some(format!("a pod in {}", pod.namespace));
            }
        }
        let until = self.chain.newest().head.number;
        self.chain.opened(until).find_map(|o| {
            let read = self.chain.truth(&o.terms);
            let account = read.present()?;
            let owed: u128 = account.legs.iter().map(|l| l.owed.0).sum();
            (!account.closed || owed > 0).then(|| {
                format!(
                    "account {}: closed {}, {owed} owed",
                    lease_name(o.terms.id()),
                    account.closed
                )
            })
        })
    }

    /// Nothing is left: the refunds are exact, no GPU is held, and nobody wants to do anything more.
    pub(crate) fn at_rest(&mut self) -> Result<(), String> {
        let block = self.chain.newest();
        let held = block.machine.held(self.money.token);
        if held.0 != 0 {
            return Err(format!("M1: {held} stay in the escrow"));
        }
        let keys: Vec<Key> = self.leases.all().map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some((read, plan)) = self.plan_lease(0, &key) {
                let quiet = plan.call.is_none() && plan.allocations.is_empty() && plan.finalizer.is_none();
                if !quiet || read.status.as_ref() != Some(&plan.status) {
                    return Err(format!(
                        "U5: {} is closed, and a further pass plans {plan:?}",
                        key.1
                    ));
                }
            }
        }
        Ok(())
    }
}
