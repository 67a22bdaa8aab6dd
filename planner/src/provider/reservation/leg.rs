//! The leg's state on the chain against what the workload and its GPUs are: started when every container has run, paused
//! at a fault, the fault's seconds given back, started again when all are well; and what it earned sent to its payee
//! meanwhile.
//!
//! Whether the tenant's program is ready decides nothing here: whoever stays unready would compute without payment.
//!
//! A fault of a GPU or a node is reported as such. Pods that are lost, and pods that were interrupted since the leg was
//! started, are faults as well.
//!
//! What a fault costs is fixed when it is first seen: the seconds the leg had served until then. That number is stored
//! before the pause is sent, so that however late the pause or the credit come, and whoever carries them out, the same
//! seconds go back. A credit names the total of all credits, which is stored with its intent: a repeat, by this process
//! after a crash or by another one, credits nothing, however late it is mined.

use jiff::Timestamp;
use leasehold_crds::{
    market::allocation::AllocationPhase,
    payment::money::{RATE_SCALE, Rate, TokenAmount},
    provider::{
        pool::{self, Exposure},
        reservation::{GpuReservationSpec, GpuReservationStatus, LegAction, LegIntent},
    },
    shared::duration,
};

use super::{
    LegCall, Plan, Running, World, later,
    phase::{PhaseEvent, advance},
    present, unix, wire,
};
use crate::{
    escrow::{Account, LegState, Terms},
    observed::Observed,
};

mod interruption;

/// Whether the leg's state on the chain is what the workload's state asks for; one intent at a time.
pub(super) fn start_or_pause(
    world: &World<'_>,
    terms: &Terms,
    account: &Account,
    now: Timestamp,
    plan: &mut Plan,
) {
    let leg = Leg::of(world, account);
    let fault = &world.health.fault;
    if let Observed::Known(Some(fault)) = fault {
        plan.status.fault_since.get_or_insert(wire(fault.since));
    }
    if leg.runs
        && let Some(since) = interrupted_since(world, &plan.status)
    {
        plan.status.fault_since.get_or_insert(since.min(wire(unix(now))));
    }
    let lost = are_pods_lost(world, &plan.status);
    if lost {
        // The cluster may tell of a loss later, for example to an operator that was away.
        let running = world.running.known();
        let told = running.and_then(|r| r.lost_at).unwrap_or(i64::MAX);
        let found_at = told.min(wire(unix(now)));
        let since = running.map_or(found_at, |r| {
            let nodes = &world.reservation.spec.nodes;
            let rejected = interruption::rejected_since(r, nodes, &plan.status.proven_pods);
            interruption::nodes_ran_until(r, rejected.unwrap_or(found_at).min(found_at))
        });
        plan.status.fault_since.get_or_insert(since);
    }
    if lost || *fault == Observed::Known(None) {
        record_resumption(&leg, lost, now, &mut plan.status);
    }
    if let Some(since) = plan.status.fault_since {
        if !return_unserved((world, terms, account), since, now, plan) {
            return;
        }
        if lost || *fault != Observed::Known(None) {
            // Neither a node that comes back nor its agent brings an event of its own.
            plan.wake = plan.wake.min(later(now, 5));
            plan.status.intent = None;
            return;
        }
        forget(&mut plan.status);
    }
    let spec = &world.reservation.spec;
    let provisioned = world
        .running
        .known()
        .is_some_and(|r| Provisioning::of(r, spec) == Provisioning::Complete && spec.allocation.nodes > 0);
    // Nothing new starts on an unknown: a node that fell silent may have lost its GPUs.
    let well = matches!(fault, Observed::Known(None));
    if leg.runs {
        advance(&mut plan.status, PhaseEvent::Charged);
        let due = world
            .withdraw
            .is_some_and(|w| w.are_due(&leg.state, leg.rate(terms)));
        // Tokens that may have to be credited are not withdrawn.
        if due && well {
            return withdraw(now, plan);
        }
        plan.status.intent = None;
    } else if provisioned && well {
        // If two reads do not agree, the number of an earlier start stays, which is not higher.
        if let Some(served) = leg.served_while_it_stands(world).filter(|served| *served > 0) {
            plan.status.served_at_start = Some(wire(served));
        }
        plan.status.proven_pods = world
            .running
            .known()
            .map(interruption::proven)
            .unwrap_or_default();
        store_or_send(now, plan, LegCall::Start);
    } else {
        // A reservation that resumes stays Suspended until its leg runs again.
        plan.status.intent = None;
    }
}

/// Records since when the leg should run again: it stands, or is about to be paused because pods are missing. Other pods of the
/// reservation may compute meanwhile, whoever caused it. A fault of the provider's GPUs does not count.
fn record_resumption(leg: &Leg, lost: bool, now: Timestamp, status: &mut GpuReservationStatus) {
    if !leg.runs || lost {
        if status.phase == AllocationPhase::Active {
            status.resuming_since.get_or_insert(now.as_second());
        }
    } else {
        end_resumption(status, now);
    }
}

/// The leg runs, or is not to run any more.
pub(super) fn end_resumption(status: &mut GpuReservationStatus, now: Timestamp) {
    let took = status
        .resuming_since
        .take()
        .map_or(0, |since| now.as_second() - since);
    status.resumed_seconds = status.resumed_seconds.saturating_add(took.max(0));
}

/// Pauses the leg, and credits all that it served since that time (Unix seconds). Returns whether that is done.
pub(super) fn return_unserved(
    (world, terms, account): (&World<'_>, &Terms, &Account),
    since: i64,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    let leg = Leg::of(world, account);
    let again = plan.wake.min(later(now, 1));
    if leg.runs {
        if plan.status.served_after_credit.is_none() {
            let served = leg.served_until(world, since, account.block_time);
            plan.status.served_after_credit = served.map(|s| s.max(plan.status.served_at_start.unwrap_or(0)));
            // It is stored before anything is sent.
            plan.status.intent = None;
        }
        if plan.status.served_after_credit.is_some() {
            store_or_send(now, plan, LegCall::Pause);
        } else {
            plan.wake = again;
        }
        return false;
    }
    let Some(total) = leg.credited_total(world, terms, &plan.status) else {
        plan.wake = again;
        return false;
    };
    let due = total - leg.state.credited_seconds;
    plan.status.credit_due = Some(wire(due));
    if due > 0 {
        store_or_send(now, plan, LegCall::CreditTo(total));
    }
    due == 0
}

/// Whether a pod of a charged leg is missing, or has been created again and has not run: it was evicted, drained or
/// deleted. A crash of the tenant's program leaves its pod.
fn are_pods_lost(world: &World<'_>, status: &GpuReservationStatus) -> bool {
    let charged = status.phase == AllocationPhase::Active && status.job.is_none();
    charged && are_containers_missing(world)
}

/// Until when the pods ran that were interrupted since the leg was started, if any was.
fn interrupted_since(world: &World<'_>, status: &GpuReservationStatus) -> Option<i64> {
    interruption::interrupted_since(world.running.known()?, &status.proven_pods)
}

/// Whether a container is known not to have run.
pub(super) fn are_containers_missing(world: &World<'_>) -> bool {
    let missing = |running: &Running| {
        let found = Provisioning::of(running, &world.reservation.spec);
        matches!(found, Provisioning::ContainersMissing(_))
    };
    world.running.known().is_some_and(missing)
}

/// What the leg charges for: its containers have run, its GPUs are bound, and its ports can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provisioning {
    /// Number of pods of which every container has run.
    ContainersMissing(usize),
    /// Number of GPUs that are bound to its pods according to their kubelets, and number that should be.
    GpusMissing(usize, usize),
    /// Number of ports that a load balancer has an address for, and number that it should have.
    EndpointsMissing(usize, usize),
    /// Nothing is missing.
    Complete,
}

impl Provisioning {
    /// A container that crashed after it had started has run. A pod of a job that has ended holds no GPU any more, and nobody
    /// reaches its ports.
    pub(super) fn of(running: &Running, spec: &GpuReservationSpec) -> Self {
        let allocation = &spec.allocation;
        let count = |n: i64| usize::try_from(n).unwrap_or_default();
        let nodes = count(allocation.nodes);
        // Other pods end only when they are evicted, and are created again.
        let ended = match allocation.workload.job {
            Some(_) => running.pods_ended,
            None => 0,
        };
        let run = running.pods_run + ended;
        let gpus = nodes.saturating_sub(ended) * count(allocation.per_node.gpus);
        let bound = running.gpu_uuids.len();
        let endpoints = match spec.hosting.exposure {
            Exposure::LoadBalancer => nodes.saturating_sub(ended) * allocation.workload.ports().len(),
            Exposure::NodePort | Exposure::Tunnel => 0,
        };
        if run < nodes {
            Self::ContainersMissing(run)
        } else if bound < gpus {
            Self::GpusMissing(bound, gpus)
        } else if running.endpoints.len() < endpoints {
            Self::EndpointsMissing(running.endpoints.len(), endpoints)
        } else {
            Self::Complete
        }
    }
}

/// Whether this reservation's leg runs.
pub(super) fn runs(world: &World<'_>, account: &Account) -> bool {
    Leg::of(world, account).runs
}

/// Seconds that this reservation's leg has served.
pub(super) fn served_seconds(world: &World<'_>, account: &Account) -> u64 {
    Leg::of(world, account).state.served_seconds
}

/// Whether this reservation's leg has not served a second, as far as the account shows.
pub(super) fn has_never_run(world: &World<'_>, account: &Account) -> bool {
    let leg = Leg::of(world, account);
    !leg.runs && leg.state.served_seconds == 0
}

/// When what a leg has earned goes to its payee while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawals {
    /// Served seconds between two withdrawals.
    pub every_seconds: u64,
    /// Minimum amount of a withdrawal.
    pub above: TokenAmount,
}

impl Withdrawals {
    /// From a pool's policy, in a token with `decimals`. A policy that can't be read is none: it is the provider's own
    /// money, which comes at the end.
    #[must_use]
    pub fn of(policy: &pool::Withdraw, decimals: u32) -> Option<Self> {
        Some(Self {
            every_seconds: duration::seconds(&policy.every).ok()?,
            above: TokenAmount::parse_tokens(&policy.above, decimals).ok()?,
        })
    }

    /// The amount that is not withdrawn yet shows when it is due: no clock is needed, and no withdrawal is repeated
    /// after a crash.
    fn are_due(self, state: &LegState, rate: Rate) -> bool {
        let enough = rate
            .earned_floor(self.every_seconds)
            .map(|earned| earned.max(self.above));
        enough.is_some_and(|enough| state.owed.0 > 0 && state.owed >= enough)
    }
}

/// No one waits for the withdrawal: it is checked again after the next block.
fn withdraw(now: Timestamp, plan: &mut Plan) {
    let wake = plan.wake;
    store_or_send(now, plan, LegCall::Withdraw);
    if plan.call.is_some() {
        plan.wake = wake.min(later(now, 15));
    }
}

/// Stores the intent, or carries out the stored one.
pub(super) fn store_or_send(now: Timestamp, plan: &mut Plan, call: LegCall) {
    let (action, credited_total) = match &call {
        LegCall::Start => (LegAction::Start, None),
        LegCall::Pause => (LegAction::Pause, None),
        LegCall::CreditTo(total) => (LegAction::Credit, Some(wire(*total))),
        LegCall::End => (LegAction::End, None),
        LegCall::Withdraw => (LegAction::Withdraw, None),
    };
    let is_stored = |i: &LegIntent| i.action == action && i.credited_total == credited_total;
    if plan.status.intent.as_ref().is_some_and(is_stored) {
        // It is checked as soon as it may be mined: a tenant waits for the start, a credit for its pause.
        plan.call = Some(call);
        plan.wake = plan.wake.min(later(now, 1));
    } else {
        plan.status.intent = Some(LegIntent {
            action,
            credited_total,
            written_at: now.to_string(),
        });
        plan.wake = now;
    }
}

fn forget(status: &mut GpuReservationStatus) {
    status.fault_since = None;
    status.credit_due = None;
    status.served_after_credit = None;
}

/// This reservation's leg at one read.
pub(super) struct Leg {
    index: usize,
    runs: bool,
    /// Whether it has ended permanently.
    pub(super) ended: bool,
    pub(super) state: LegState,
}

impl Leg {
    pub(super) fn of(world: &World<'_>, account: &Account) -> Self {
        let index = world.reservation.spec.allocation.leg.clamp(0, 15).unsigned_abs();
        let bit = 1u16 << index;
        let index = usize::try_from(index).unwrap_or_default();
        Self {
            index,
            runs: account.running & bit != 0,
            ended: account.ended & bit != 0,
            state: account.legs.get(index).copied().unwrap_or_default(),
        }
    }

    fn rate(&self, terms: &Terms) -> Rate {
        terms.legs.get(self.index).map_or(Rate(1), |l| l.rate)
    }

    /// Seconds that it had served at `since`, when two reads agree: by a read at `block_time` that shows it running, it
    /// serves each second.
    fn served_until(&self, world: &World<'_>, since: i64, block_time: u64) -> Option<i64> {
        let at = |leg: &Self, block_time| (wire(leg.state.served_seconds) + since - wire(block_time)).max(0);
        let second = present(&world.second)?;
        let (leg, served) = (Self::of(world, second), at(self, block_time));
        let agreed = leg.runs && at(&leg, second.block_time) == served;
        agreed.then_some(served)
    }

    /// Total of its credits after all is credited that it served since the fault, when two reads agree that it stands.
    /// What was withdrawn already can't be credited; a leg that never ran in the fault credits nothing.
    fn credited_total(&self, world: &World<'_>, terms: &Terms, status: &GpuReservationStatus) -> Option<u64> {
        let served = self.served_while_it_stands(world)?;
        let wanted = status.served_after_credit.and_then(|s| u64::try_from(s).ok());
        let kept = kept(&self.state, self.rate(terms));
        let left = wanted.map_or(u64::MAX, |wanted| wanted.max(kept));
        Some(self.state.credited_seconds + served.saturating_sub(left))
    }

    /// Seconds that it has served and not credited, when two reads agree that it stands.
    fn served_while_it_stands(&self, world: &World<'_>) -> Option<u64> {
        let second = Self::of(world, present(&world.second)?);
        let agreed = !self.runs && !second.runs && self.state == second.state;
        agreed.then_some(self.state.served_seconds)
    }
}

/// Seconds that are paid out already, as the contract counts them.
fn kept(state: &LegState, rate: Rate) -> u64 {
    let scaled = state.withdrawn.0.saturating_mul(RATE_SCALE);
    u64::try_from(scaled.div_ceil(rate.0.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
