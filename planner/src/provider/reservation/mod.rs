//! The provider's side of a lease: what runs, and until when. The reservation alone decides; the market asks, the
//! chain pays.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use leasehold_crds::{
    GpuReservation,
    lease::{
        OnFundsEnd,
        workload::{Endpoint, JobResult, ResultsAt},
    },
    market::allocation::{AllocationPhase, StopReason},
    payment::{escrow::EscrowSnapshot, money::TokenAmount},
    provider::reservation::{
        GpuReservationStatus, LegAction, LegIntent, ReservationCondition, ReservationReason,
    },
    shared::conditions::{ConditionStatus, condition, find, set},
};

use crate::{
    escrow::{Account, AccountRead, Terms},
    market::lease::is_exhausted,
    observed::Observed,
    ports::PaymentError,
    provider::{
        health::Health,
        workload::{EgressDenylist, Objects, ResultsObjects, results},
    },
};

mod leg;
pub mod stop;

use leg::Readiness;
pub use leg::Withdrawals;
use stop::{CHAIN_OUTAGE_SECONDS_MIN, FreshReads, OFFSET_MAX_SECONDS, Snapshot, StopCause, Verdict};

/// How what runs was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// From watches, which may lag: pods may be there that it does not show.
    #[default]
    Cached,
    /// From the API server, now.
    Live {
        /// Whether something is there that would make pods.
        workload: bool,
    },
}

/// Whether what runs must be read from the API server: the word that nothing runs any more is given on that alone.
#[must_use]
pub fn wants_live(reservation: &GpuReservation) -> bool {
    let status = reservation.status.as_ref();
    status.is_some_and(|s| s.stop_reason.is_some())
}

/// What runs of a reservation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Running {
    /// How it was read.
    pub reading: Reading,
    /// Whether its namespace is there.
    pub namespace: bool,
    /// Pods that have not ended.
    pub pods_alive: usize,
    /// Of those, ready ones.
    pub pods_ready: usize,
    /// Pods that ended with exit code 0.
    pub pods_succeeded: usize,
    /// GPUs bound to its pods, by pod-resources.
    pub gpu_uuids: Vec<String>,
    /// How its job ended.
    pub job: Option<JobResult>,
    /// Where its ports answer.
    pub endpoints: Vec<Endpoint>,
    /// Why pods are not ready, for a person.
    pub trouble: String,
    /// What serves the job's results.
    pub results: ResultsSeen,
}

/// What is seen of the pods that serve a job's results after its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResultsSeen {
    /// Where they answer, or will.
    pub at: Vec<ResultsAt>,
    /// Whether those of every node have been fetched.
    pub fetched: bool,
    /// Of how many nodes they are served, or were fetched.
    pub ready: usize,
    /// Why others don't, for a person.
    pub trouble: String,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The reservation.
    pub reservation: &'a GpuReservation,
    /// Its account, at the newest block.
    pub account: Observed<AccountRead>,
    /// The same once more, when it matters.
    pub second: Observed<AccountRead>,
    /// The account at the block the network's policy asks for, while nothing is provisioned.
    pub settled: Option<Observed<AccountRead>>,
    /// Time of the newest block, Unix seconds.
    pub block_time: Observed<u64>,
    /// What runs.
    pub running: Observed<Running>,
    /// Whether the market's object is still there; unknown while the market can't be reached.
    pub allocation_exists: Observed<bool>,
    /// Seconds the pool's network serves on through a chain outage.
    pub grace_seconds: u64,
    /// How its GPUs and their nodes are.
    pub health: Health,
    /// When what it has earned goes to the payee while it runs; at the end alone, when absent.
    pub withdraw: Option<Withdrawals>,
    /// Addresses that its pods may not reach.
    pub denylist: Arc<EgressDenylist>,
    /// Image of the pods that serve results.
    pub results_image: &'a str,
}

/// The wanted state of the workload.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// Unchanged.
    Keep,
    /// These objects exist, and pods run.
    Run(Box<Objects>),
    /// No pods; namespace and volumes stay.
    Halt,
    /// No pods but those of these objects, which serve what the job left on its volumes.
    KeepResults(Box<ResultsObjects>),
    /// No objects.
    Remove,
}

/// A write to the chain that a stored intent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegCall {
    /// Start the leg.
    Start,
    /// Pause it.
    Pause,
    /// Give back so many seconds.
    Credit(u64),
    /// End it for good.
    End,
    /// Move what it earned to the payee.
    Withdraw,
}

/// What could lead to a stop is read twice, and so is what the stop rule is to go by while the chain is silent.
#[must_use]
pub fn wants_second(reservation: &GpuReservation, read: &Observed<AccountRead>) -> bool {
    let halted = |s: &GpuReservationStatus| {
        s.stop_reason.is_some() || s.phase == AllocationPhase::Suspended || s.fault_since.is_some()
    };
    let status = reservation.status.as_ref();
    let is_news = |a: &Account| {
        let before = status.and_then(|s| s.escrow.as_ref());
        !before.is_some_and(|before| same_money(before, &snapshot_of(a, Timestamp::UNIX_EPOCH)))
    };
    match read {
        _ if status.is_some_and(halted) => true,
        Observed::Known(AccountRead::Present(account)) => {
            account.closed || account.running == 0 || is_news(account)
        }
        Observed::Known(AccountRead::Absent | AccountRead::Mismatch) => true,
        Observed::Unknown(_) => false,
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What the workload is to be.
    pub workload: Workload,
    /// The write to the chain that an intent stored earlier asks for.
    pub call: Option<LegCall>,
    /// Whether the reservation itself goes.
    pub delete: bool,
    /// The status to be reported.
    pub status: GpuReservationStatus,
    /// When to look again at the latest.
    pub wake: Timestamp,
}

impl Plan {
    /// Whether an end is to be noted before it is carried out: the next pass, or another process, on a staler reading
    /// of the chain, must not run again what this one stops.
    #[must_use]
    pub fn must_persist_first(&self, before: Option<&GpuReservationStatus>) -> bool {
        let ends = |s: &GpuReservationStatus| s.stop_reason.is_some();
        let pauses = |s: &GpuReservationStatus| s.phase == AllocationPhase::Suspended;
        ends(&self.status) && !before.is_some_and(ends) || pauses(&self.status) && !before.is_some_and(pauses)
    }
}

/// A leg that serves nobody is ended by its own controller when the market has not closed the account so long after.
const END_AFTER_SECONDS: i64 = 45;
/// Two readings of one pass are at most some blocks apart.
const BLOCK_SECONDS: u64 = 15;
/// An unpaid reservation that nobody asks for is given up so long after its allocation went.
const TAKEN_BACK_SECONDS: i64 = 5;
/// An unpaid reservation on an unreadable chain is given up so long after its deadline.
const UNKNOWN_PAYMENT_SECONDS: i64 = 600;

/// Kept results are looked at so often, though nothing is heard of them.
const KEPT_SECONDS: u64 = 60;

/// Decides.
#[must_use]
pub fn decide(world: &World<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan {
        workload: Workload::Keep,
        call: None,
        delete: false,
        status: world.reservation.status.clone().unwrap_or_default(),
        wake: later(now, 30),
    };
    let before = plan.status.escrow.clone();
    note_chain(world, now, &mut plan.status);
    if let Observed::Known(running) = &world.running {
        if !running.gpu_uuids.is_empty() {
            plan.status.gpu_uuids.clone_from(&running.gpu_uuids);
        }
        if running.job.is_some() {
            // One that we stopped is no longer ending by itself: what becomes of it was decided with the stop.
            if plan.status.job.is_none() && plan.status.stop_reason.is_none() {
                plan.status.results_until = results::until(world.reservation, true, now);
            }
            plan.status.job.clone_from(&running.job);
        }
        plan.status.endpoints.clone_from(&running.endpoints);
    }
    let terms = Terms::from_wire(&world.reservation.spec.allocation.escrow);
    match &terms {
        Err(error) => {
            plan.status.stop_reason.get_or_insert(StopReason::BadTerms);
            set(
                &mut plan.status.conditions,
                condition(
                    ReservationCondition::Paid,
                    ConditionStatus::False,
                    ReservationReason::BadTerms,
                    error.to_string(),
                    generation(world),
                ),
                now,
            );
            stopping(world, None, now, &mut plan);
        }
        Ok(terms) => {
            if plan.status.stop_reason.is_some() {
                stopping(world, Some(terms), now, &mut plan);
            } else if let Some(reason) = stop_reason(world, terms, before.as_ref(), now, &mut plan) {
                plan.status.stop_reason = Some(reason);
                // A job that is stopped half-way may have left something, too; one that never served has not.
                let served = matches!(
                    plan.status.phase,
                    AllocationPhase::Active | AllocationPhase::Suspended
                );
                if served && plan.status.job.is_none() {
                    plan.status.results_until = results::until(world.reservation, false, now);
                }
                plan.status.phase = AllocationPhase::Stopping;
                plan.workload = Workload::Halt;
                plan.wake = plan.wake.min(later(now, 1));
            } else {
                serving(world, terms, now, &mut plan);
            }
        }
    }
    if let (Some(due), None) = (world.health.due, &plan.status.stopped_at) {
        plan.wake = plan.wake.min(due.max(later(now, 1)));
    }
    if let Observed::Known(running) = &world.running {
        let at = &running.results.at;
        // The addresses are told as long as the reservation is there, whoever has deleted what is behind them.
        let at = if at.is_empty() { &plan.status.results } else { at };
        plan.status.results = results::published(at, plan.status.results_until);
    }
    conditions(world, now, &mut plan.status);
    plan
}

/// Generation of the reservation that its conditions speak of.
fn generation(world: &World<'_>) -> i64 {
    world.reservation.metadata.generation.unwrap_or_default()
}

fn later(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).min(1 << 33);
    now.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

fn unix(now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or_default()
}

fn wire(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn present(read: &Observed<AccountRead>) -> Option<&Account> {
    read.known().and_then(AccountRead::present)
}

/// Keeps the last snapshot and since when the chain is silent. An equal snapshot keeps its old clocks: status never ticks.
fn note_chain(world: &World<'_>, now: Timestamp, status: &mut GpuReservationStatus) {
    match &world.account {
        Observed::Unknown(_) => {
            status.chain_unreadable_since.get_or_insert(now.as_second());
        }
        Observed::Known(read) => {
            if let (Some(since), Some(old)) = (
                status.chain_unreadable_since.take(),
                status.escrow.as_ref().and_then(snapshot),
            ) && unix(now) >= old.paid_until_local() + CHAIN_OUTAGE_SECONDS_MIN
                && now.as_second() >= since + wire(CHAIN_OUTAGE_SECONDS_MIN)
                && status.phase == AllocationPhase::Active
            {
                status.grace_used = true;
            }
            if let Some(account) = read.present() {
                let next = snapshot_of(account, now);
                // One reading may be wrong, its clock too, and nothing but this tells when the paid time ends while the
                // chain is silent.
                let agreed = present(&world.second).is_some_and(|a| {
                    let second = snapshot_of(a, now);
                    same_money(&second, &next) && second.block_time.abs_diff(next.block_time) <= BLOCK_SECONDS
                });
                if agreed && !status.escrow.as_ref().is_some_and(|old| same_money(old, &next)) {
                    status.escrow = Some(next);
                }
            }
        }
    }
}

/// Whether two snapshots differ in their clocks alone.
fn same_money(a: &EscrowSnapshot, b: &EscrowSnapshot) -> bool {
    (&a.deposited, a.paid_until, a.running, a.closed) == (&b.deposited, b.paid_until, b.running, b.closed)
}

fn snapshot_of(account: &Account, now: Timestamp) -> EscrowSnapshot {
    EscrowSnapshot {
        deposited: account.deposited.to_string(),
        paid_until: wire(account.paid_until),
        paid_seconds: wire(account.paid_seconds),
        running: account.running != 0,
        closed: account.closed,
        block_time: wire(account.block_time),
        read_at: now.as_second(),
    }
}

fn snapshot(wire: &EscrowSnapshot) -> Option<Snapshot> {
    (wire.paid_until > 0).then(|| Snapshot {
        paid_until: u64::try_from(wire.paid_until).unwrap_or_default(),
        block_time: u64::try_from(wire.block_time).unwrap_or_default(),
        read_at: u64::try_from(wire.read_at).unwrap_or_default(),
    })
}

/// Why the share is to stop for good, if it is.
fn stop_reason(
    world: &World<'_>,
    terms: &Terms,
    before: Option<&EscrowSnapshot>,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<StopReason> {
    let spec = &world.reservation.spec;
    if spec.release {
        return Some(StopReason::Released);
    }
    if world.reservation.metadata.deletion_timestamp.is_some() {
        return Some(StopReason::ReservationDeleted);
    }
    match &world.account {
        Observed::Known(AccountRead::Present(account)) if account.closed => {
            return present(&world.second)
                .is_some_and(|a| a.closed)
                .then_some(StopReason::AccountClosed);
        }
        Observed::Known(AccountRead::Present(account)) if account.started_at == 0 => {
            let late = |a: &Account| a.started_at == 0 && a.block_time > terms.start_by;
            let agreed = late(account) && present(&world.second).is_some_and(late);
            return agreed.then_some(StopReason::NeverStarted);
        }
        Observed::Known(AccountRead::Present(_)) => {}
        Observed::Known(AccountRead::Mismatch) => {
            let agreed = matches!(world.second, Observed::Known(AccountRead::Mismatch));
            return agreed.then_some(StopReason::AccountMismatch);
        }
        Observed::Known(AccountRead::Absent) => {
            let past = world
                .block_time
                .known()
                .is_some_and(|time| wire(*time) > spec.allocation.open_by);
            let agreed = matches!(world.second, Observed::Known(AccountRead::Absent));
            if agreed && before.is_none() && is_asked_no_more(world, &plan.status, now) {
                return Some(StopReason::AllocationGone);
            }
            return (past && agreed && now.as_second() > spec.deadline).then_some(StopReason::Unpaid);
        }
        Observed::Unknown(_) if before.is_none() => {
            let waited = now.as_second() > spec.deadline + UNKNOWN_PAYMENT_SECONDS;
            return waited.then_some(StopReason::PaymentUnknown);
        }
        Observed::Unknown(_) => {}
    }
    // Started, and paid as far as is known: the stop rule.
    let last = plan.status.escrow.as_ref().and_then(snapshot)?;
    let spent = |read: &Observed<AccountRead>| present(read).map(|a| is_exhausted(a, terms));
    let reads = match (spent(&world.account), spent(&world.second)) {
        (Some(true), Some(true)) => FreshReads::Spent,
        (None, _) => FreshReads::Unreadable {
            since: plan
                .status
                .chain_unreadable_since
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or_else(|| unix(now)),
        },
        _ => FreshReads::Paid,
    };
    let not_after = u64::try_from(spec.allocation.not_after).unwrap_or_default();
    let verdict = stop::verdict(
        unix(now),
        not_after,
        last,
        reads,
        world.grace_seconds,
        plan.status.grace_used,
    );
    match verdict {
        Verdict::ServeUntil(until) => {
            plan.wake = plan.wake.min(later(now, until.saturating_sub(unix(now)).max(1)));
            None
        }
        Verdict::ServeOnGrace(until) => {
            plan.wake = plan.wake.min(later(now, until.saturating_sub(unix(now)).max(1)));
            None
        }
        Verdict::Stop(StopCause::FundsSpent) => match spec.allocation.on_funds_end {
            OnFundsEnd::Close => Some(StopReason::FundsSpent),
            OnFundsEnd::Pause => {
                let waited = |a: &Account| a.block_time >= a.exhausted_at + u64::from(terms.pause_for);
                let over = |read| present(read).is_some_and(waited);
                plan.wake = plan.wake.min(later(now, 5));
                (over(&world.account) && over(&world.second)).then_some(StopReason::PauseOver)
            }
        },
        Verdict::Stop(StopCause::NotAfter) => Some(StopReason::NotAfter),
        Verdict::Stop(StopCause::FundsUnknown) => match spec.allocation.on_funds_end {
            OnFundsEnd::Close => Some(StopReason::FundsUnknown),
            OnFundsEnd::Pause => {
                // What it has stays, as after any end of the funds; the chain will tell for how long.
                suspend(now, plan);
                plan.status.grace_used = true;
                None
            }
        },
    }
}

/// Whether the market took its question back some time ago. Room that was never seen paid is not held for nobody; were it
/// paid after all, it would be refunded whole, as nobody starts it.
fn is_asked_no_more(world: &World<'_>, status: &GpuReservationStatus, now: Timestamp) -> bool {
    let gone = find(&status.conditions, ReservationCondition::MarketReachable)
        .filter(|c| c.reason == ReservationReason::AllocationGone.as_str());
    let since = gone.map(|c| c.last_transition_time.0.as_second());
    world.allocation_exists == Observed::Known(false)
        && since.is_some_and(|since| now.as_second() - since >= TAKEN_BACK_SECONDS)
}

/// Not to stop: hold, provision, start, serve, pause at a fault, halt when funds are out.
fn serving(world: &World<'_>, terms: &Terms, now: Timestamp, plan: &mut Plan) {
    let spec = &world.reservation.spec;
    let put = |status: &mut GpuReservationStatus, type_, truth, reason, message: String| {
        set(
            &mut status.conditions,
            condition(type_, truth, reason, message, generation(world)),
            now,
        );
    };
    if plan.status.phase == AllocationPhase::Requested {
        plan.status.phase = AllocationPhase::Reserved;
        put(
            &mut plan.status,
            ReservationCondition::Reserved,
            ConditionStatus::True,
            ReservationReason::Held,
            format!("on {}", spec.nodes.join(", ")),
        );
    }
    let Some(account) = present(&world.account) else {
        // Unpaid yet, which a new block tells sooner; or the chain can't be read: what runs runs on, nothing new begins.
        let unpaid = plan.status.phase == AllocationPhase::Reserved;
        plan.wake = plan.wake.min(later(now, if unpaid { 5 } else { 2 }));
        return;
    };
    let provisioned = !matches!(plan.status.phase, AllocationPhase::Reserved);
    if !provisioned {
        let deposit = TokenAmount::parse(&spec.allocation.deposit).unwrap_or(TokenAmount(u128::MAX));
        match world
            .settled
            .as_ref()
            .map(|read| present(read).map(|a| a.deposited))
        {
            Some(Some(deposited)) if deposited >= deposit => {
                put(
                    &mut plan.status,
                    ReservationCondition::Paid,
                    ConditionStatus::True,
                    ReservationReason::Deposited,
                    String::new(),
                );
            }
            Some(Some(_)) => {
                put(
                    &mut plan.status,
                    ReservationCondition::Paid,
                    ConditionStatus::False,
                    ReservationReason::DepositTooSmall,
                    "the account holds less than the lease's deposit".into(),
                );
                plan.wake = plan.wake.min(later(now, 5));
                return;
            }
            _ => {
                put(
                    &mut plan.status,
                    ReservationCondition::Paid,
                    ConditionStatus::False,
                    ReservationReason::NotFinalYet,
                    "the payment is not yet in a block of the level this provider's PaymentNetwork asks for"
                        .into(),
                );
                plan.wake = plan.wake.min(later(now, 5));
                return;
            }
        }
        plan.status.phase = AllocationPhase::Provisioning;
    }
    let second = present(&world.second).map(|a| is_exhausted(a, terms));
    let suspended = plan.status.phase == AllocationPhase::Suspended;
    match (is_exhausted(account, terms), second) {
        (true, Some(true)) => {
            suspend(now, plan);
            return;
        }
        // Two reads of a pass that differ settle nothing, neither an end nor a resumption.
        (true, _) | (false, Some(true)) => {
            plan.wake = plan.wake.min(later(now, 1));
            return;
        }
        (false, None) if suspended => {
            plan.wake = plan.wake.min(later(now, 1));
            return;
        }
        (false, _) => {}
    }
    plan.workload = Workload::Run(Box::new(Objects::of(world.reservation, &world.denylist)));
    leg::start_or_pause(world, terms, account, now, plan);
}

/// No pods until there are funds again.
fn suspend(now: Timestamp, plan: &mut Plan) {
    plan.status.intent = None;
    plan.status.phase = AllocationPhase::Suspended;
    plan.workload = Workload::Halt;
    plan.wake = plan.wake.min(later(now, 5));
}

/// To stop: pods go, then the namespace (later, where results are kept), then the leg if the market does not close it,
/// then the reservation.
fn stopping(world: &World<'_>, terms: Option<&Terms>, now: Timestamp, plan: &mut Plan) {
    plan.wake = plan.wake.min(later(now, 3));
    let Observed::Known(running) = &world.running else {
        return;
    };
    let quiet = running.pods_alive == 0 && running.reading == (Reading::Live { workload: false });
    if !quiet && plan.status.stopped_at.is_none() {
        plan.workload = Workload::Halt;
        plan.status.phase = AllocationPhase::Stopping;
        plan.wake = plan.wake.min(later(now, 1));
        return;
    }
    plan.status.phase = AllocationPhase::Stopped;
    if plan.status.stopped_at.is_none() {
        plan.status.stopped_at = Some(now.to_string());
        // Only from now on are they served: a market that was away, and asked late, takes nothing of their time.
        if let Some(until) = &mut plan.status.results_until {
            *until = results::until(world.reservation, true, now).map_or(*until, |u| u.max(*until));
        }
    }
    if running.results.fetched {
        let until = &mut plan.status.results_until;
        *until = until.map(|until| until.min(now.as_second()));
    }
    let until = plan.status.results_until;
    let kept = running.namespace && results::are_kept(world.reservation, until, now);
    plan.workload = match (running.namespace, kept) {
        (true, true) => {
            let (denylist, image) = (&world.denylist, world.results_image);
            let objects = ResultsObjects::of(world.reservation, denylist, image, until);
            Workload::KeepResults(Box::new(objects))
        }
        (true, false) => Workload::Remove,
        (false, _) => Workload::Keep,
    };
    let account = present(&world.account);
    let settled = match (&world.account, account, terms) {
        (_, _, None) => true,
        (_, Some(account), Some(_)) => {
            let first = settle_leg(world, account, now, plan);
            first && present(&world.second).is_some_and(|a| is_settled(world, a))
        }
        (Observed::Known(_), None, _) => matches!(
            world.second,
            Observed::Known(AccountRead::Absent | AccountRead::Mismatch)
        ),
        (Observed::Unknown(_), _, _) => plan.status.escrow.is_none(),
    };
    if let (true, true, Some(until)) = (kept, settled, until) {
        let left = u64::try_from(until - now.as_second()).unwrap_or_default();
        plan.wake = later(now, left.clamp(1, KEPT_SECONDS));
    }
    let gone = matches!(world.allocation_exists, Observed::Known(false));
    let told = stopped_since(plan, now) > 3600;
    plan.delete = settled
        && quiet
        && !running.namespace
        && (gone || told || world.reservation.metadata.deletion_timestamp.is_some());
}

fn stopped_since(plan: &Plan, now: Timestamp) -> i64 {
    let stopped = plan
        .status
        .stopped_at
        .as_deref()
        .and_then(|t| t.parse::<Timestamp>().ok());
    stopped.map_or(0, |t| now.as_second() - t.as_second())
}

/// Whether nothing is left to do on the chain for a stopped share.
fn settle_leg(world: &World<'_>, account: &Account, now: Timestamp, plan: &mut Plan) -> bool {
    let index = usize::try_from(world.reservation.spec.allocation.leg).unwrap_or_default();
    let leg = 1u16 << index.min(15);
    let wanted = if !account.closed && account.ended & leg == 0 && account.started_at != 0 {
        // The market closes within seconds; only where it does not, the leg stops charging by itself.
        (stopped_since(plan, now) > END_AFTER_SECONDS).then_some((LegAction::End, LegCall::End))
    } else if account.legs.get(index).is_some_and(|l| l.owed.0 > 0) {
        Some((LegAction::Withdraw, LegCall::Withdraw))
    } else {
        plan.status.intent = None;
        return is_settled(world, account);
    };
    if let Some((action, call)) = wanted {
        if plan.status.intent.as_ref().is_some_and(|i| i.action == action) {
            plan.call = Some(call);
        } else {
            plan.status.intent = Some(LegIntent {
                action,
                written_at: now.to_string(),
            });
            plan.wake = now;
        }
    }
    false
}

/// Whether the leg is over and its payee has all of it.
fn is_settled(world: &World<'_>, account: &Account) -> bool {
    let index = usize::try_from(world.reservation.spec.allocation.leg).unwrap_or_default();
    let over = account.closed || account.ended & (1 << index.min(15)) != 0 || account.started_at == 0;
    over && account.legs.get(index).is_none_or(|l| l.owed.0 == 0)
}

fn conditions(world: &World<'_>, now: Timestamp, status: &mut GpuReservationStatus) {
    let kept = status.stopped_at.is_some() && results::are_kept(world.reservation, status.results_until, now);
    // A write that failed is told until nothing is left to be written.
    let settled = status.intent.is_none();
    let phase = status.phase;
    let stopped = status.stop_reason;
    let mut put = |type_, truth, reason, message: String| {
        set(
            &mut status.conditions,
            condition(type_, truth, reason, message, generation(world)),
            now,
        );
    };
    match (&world.account, &world.block_time) {
        (Observed::Unknown(why), _) | (_, Observed::Unknown(why)) => put(
            ReservationCondition::ChainReachable,
            ConditionStatus::Unknown,
            ReservationReason::Unreachable,
            why.clone(),
        ),
        (Observed::Known(AccountRead::Present(a)), _)
            if unix(now).abs_diff(a.block_time) > OFFSET_MAX_SECONDS =>
        {
            put(
                ReservationCondition::ChainReachable,
                ConditionStatus::Unknown,
                ReservationReason::ClockOffset,
                format!(
                    "the newest block is {} s away from this machine's clock: check both",
                    unix(now).abs_diff(a.block_time)
                ),
            )
        }
        _ => put(
            ReservationCondition::ChainReachable,
            ConditionStatus::True,
            ReservationReason::Reachable,
            String::new(),
        ),
    }
    match &world.health.fault {
        Observed::Known(None) => put(
            ReservationCondition::GpusHealthy,
            ConditionStatus::True,
            ReservationReason::Healthy,
            String::new(),
        ),
        Observed::Known(Some(fault)) => put(
            ReservationCondition::GpusHealthy,
            ConditionStatus::False,
            fault.kind.reason(),
            fault.message.clone(),
        ),
        Observed::Unknown(why) => put(
            ReservationCondition::GpusHealthy,
            ConditionStatus::Unknown,
            ReservationReason::AgentSilent,
            why.clone(),
        ),
    }
    if let (Observed::Known(running), true) = (&world.running, kept) {
        let (seen, nodes) = (&running.results, world.reservation.spec.allocation.nodes);
        if i64::try_from(seen.ready).is_ok_and(|ready| ready >= nodes) {
            put(
                ReservationCondition::ResultsServed,
                ConditionStatus::True,
                ReservationReason::Served,
                String::new(),
            );
        } else {
            let message = match seen.trouble.as_str() {
                "" => format!("those of {} of {nodes} nodes are served", seen.ready),
                trouble => trouble.to_owned(),
            };
            put(
                ReservationCondition::ResultsServed,
                ConditionStatus::False,
                ReservationReason::NotServed,
                message,
            );
        }
    }
    match (stopped, &world.running) {
        // What is on its way out is not ready, whatever its pods say last.
        (Some(reason), _) => put(
            ReservationCondition::Ready,
            ConditionStatus::False,
            ReservationReason::Stopped,
            reason.to_string(),
        ),
        (None, Observed::Known(running)) => {
            let share = &world.reservation.spec.allocation;
            let nodes = share.nodes;
            match Readiness::of(running, share) {
                Readiness::PodsMissing(ready) => {
                    let message = match running.trouble.as_str() {
                        "" => format!("{ready} of {nodes} pods are ready"),
                        trouble => format!("{ready} of {nodes} pods are ready: {trouble}"),
                    };
                    put(
                        ReservationCondition::Ready,
                        ConditionStatus::False,
                        ReservationReason::PodsNotReady,
                        message,
                    );
                }
                // While it serves, an agent that begins anew says for a moment that nobody holds a GPU.
                Readiness::GpusMissing(bound, wanted) if phase != AllocationPhase::Active => put(
                    ReservationCondition::Ready,
                    ConditionStatus::False,
                    ReservationReason::GpusNotBound,
                    format!(
                        "the kubelets' word is there of {bound} of {wanted} GPUs: nothing is charged before"
                    ),
                ),
                Readiness::GpusMissing(..) | Readiness::Ready => {
                    put(
                        ReservationCondition::Ready,
                        ConditionStatus::True,
                        ReservationReason::PodsReady,
                        String::new(),
                    );
                }
            }
        }
        (None, Observed::Unknown(why)) => put(
            ReservationCondition::Ready,
            ConditionStatus::Unknown,
            ReservationReason::Unknown,
            why.clone(),
        ),
    }
    if settled && find(&status.conditions, ReservationCondition::Charged).is_some() {
        set(
            &mut status.conditions,
            condition(
                ReservationCondition::Charged,
                ConditionStatus::True,
                ReservationReason::Mined,
                String::new(),
                generation(world),
            ),
            now,
        );
    }
    let mut put = |type_, truth, reason, message: String| {
        set(
            &mut status.conditions,
            condition(type_, truth, reason, message, generation(world)),
            now,
        );
    };
    match &world.allocation_exists {
        Observed::Known(true) => put(
            ReservationCondition::MarketReachable,
            ConditionStatus::True,
            ReservationReason::Reachable,
            String::new(),
        ),
        Observed::Known(false) => put(
            ReservationCondition::MarketReachable,
            ConditionStatus::False,
            ReservationReason::AllocationGone,
            "the market shows no such allocation; paid work runs to its own deadline".into(),
        ),
        Observed::Unknown(why) => put(
            ReservationCondition::MarketReachable,
            ConditionStatus::Unknown,
            ReservationReason::Unreachable,
            why.clone(),
        ),
    }
}

/// News of a share's GPUs for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether something is wrong with them; else they are well again.
    pub bad: bool,
    /// One word: the condition's.
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// What is to be told of the GPUs: that something is wrong with them, or that they are well again.
#[must_use]
pub fn news_of_gpus(before: Option<&GpuReservationStatus>, now: &GpuReservationStatus) -> Option<News> {
    let word = |s: &GpuReservationStatus| {
        find(&s.conditions, ReservationCondition::GpusHealthy).map(|c| c.status.clone())
    };
    let is = find(&now.conditions, ReservationCondition::GpusHealthy)?;
    let changed = before.and_then(word).as_ref() != Some(&is.status);
    let was_at_fault = before.is_some_and(|s| s.fault_since.is_some());
    let news = match is.status.as_str() {
        "False" => changed,
        "True" => changed && was_at_fault,
        _ => false,
    };
    news.then(|| News {
        bad: is.status == "False",
        reason: is.reason.clone(),
        message: is.message.clone(),
    })
}

/// A write to the chain failed: the condition says why and what to do.
pub fn chain_failure(
    reservation: &GpuReservation,
    status: &mut GpuReservationStatus,
    error: &PaymentError,
    now: Timestamp,
) {
    let (truth, reason) = match error {
        PaymentError::Unreachable(_) | PaymentError::WrongChain { .. } | PaymentError::Malformed(_) => {
            (ConditionStatus::Unknown, ReservationReason::Unreachable)
        }
        PaymentError::Pending { .. } => (ConditionStatus::Unknown, ReservationReason::Pending),
        PaymentError::Reverted { .. } => (ConditionStatus::False, ReservationReason::Refused),
        PaymentError::InsufficientGas { .. } => (ConditionStatus::False, ReservationReason::InsufficientGas),
        PaymentError::InsufficientTokens { .. } => {
            (ConditionStatus::False, ReservationReason::InsufficientFunds)
        }
    };
    set(
        &mut status.conditions,
        condition(
            ReservationCondition::Charged,
            truth,
            reason,
            error.to_string(),
            reservation.metadata.generation.unwrap_or_default(),
        ),
        now,
    );
}

#[cfg(test)]
mod tests;
