//! A reservation that stops: its pods, its results, its leg on the chain, and its deletion.

use jiff::Timestamp;

use super::{
    decide::halt,
    later,
    leg::{Leg, return_unserved, store_or_send},
    phase::{PhaseEvent, advance},
    plan::{LegCall, Plan, Workload},
    pods::NodePod,
    present,
    world::{Reading, World},
};
use crate::{
    escrow::{Account, AccountAt, AccountRead, Terms},
    observed::Observed,
    ports::FINAL_READS,
    provider::workload::{ResultsObjects, results},
};

/// A leg that serves nothing is ended by its controller when the market has not closed the account for this long.
const END_AFTER_SECONDS: i64 = 45;
/// Retained results are checked this often without an event.
const RETENTION_CHECK_SECONDS: u64 = 60;
/// A stop is not reported for so long after a fault, unless the fault is credited: two transactions take less on every chain.
const CREDIT_WITHIN_SECONDS: i64 = 300;

/// Decides about a reservation that stops: first its pods are deleted, then the namespace (later, where results are
/// retained), then the leg is ended if the market does not close the account, then the reservation is deleted.
pub(super) fn stopping(world: &World<'_>, terms: Option<&Terms>, now: Timestamp, plan: &mut Plan) {
    plan.wake = plan.wake.min(later(now, 3));
    let Observed::Known(running) = &world.running else {
        return;
    };
    // A pod that our finalizer keeps would keep the namespace.
    let held = running.pods.iter().any(NodePod::is_held);
    let quiet = running.pods_alive == 0 && !held && running.reading == Reading::Live;
    let awaits_credit = awaits_credit(world, plan, now);
    let quiet = quiet && !awaits_credit;
    if !quiet && plan.status.stopped_at.is_none() {
        plan.workload = halt(world);
        if !awaits_credit {
            advance(&mut plan.status, PhaseEvent::StopDecided);
        }
        plan.wake = plan.wake.min(later(now, 1));
        // The market closes the account when the pods have stopped: a fault is credited meanwhile.
        let account = present(&world.account).filter(|a| !a.closed && a.started_at != 0);
        if let (Some(since), Some(terms), Some(account)) = (plan.status.fault_since, terms, account) {
            return_unserved((world, terms, account), since, now, plan);
        }
        return;
    }
    advance(&mut plan.status, PhaseEvent::PodsGone);
    if plan.status.stopped_at.is_none() {
        plan.status.stopped_at = Some(now.to_string());
        // Results are served from now on: a market that was unreachable, and released late, does not shorten their time.
        if let Some(until) = &mut plan.status.results_until {
            *until = results::until(world.reservation, true, now).map_or(*until, |u| u.max(*until));
        }
    }
    if running.results.fetched {
        let until = &mut plan.status.results_until;
        *until = until.map(|until| until.min(now.as_second()));
    }
    let until = plan.status.results_until;
    let retained = running.namespace && results::are_kept(world.reservation, until, now);
    plan.workload = match (running.namespace, retained) {
        // A pod that another process was creating when this one stopped them.
        (true, true) if !quiet => halt(world),
        (true, true) => {
            let (denylist, image) = (&world.denylist, world.results_image);
            let objects = ResultsObjects::of(world.reservation, denylist, world.connector, image, until);
            Workload::KeepResults(Box::new(objects))
        }
        (true, false) => Workload::Remove,
        (false, _) => Workload::Keep,
    };
    let account = present(&world.account);
    let settled = match (&world.account, account, terms) {
        (_, _, None) => true,
        (_, Some(account), Some(terms)) => {
            let first = settle_leg(world, terms, account, now, plan);
            let newest = first && present(&world.second).is_some_and(|a| is_settled(world, a));
            if newest && !is_final(world, account) {
                let kept = until.and_then(|until| u64::try_from(until - now.as_second()).ok());
                let kept = kept.filter(|left| *left > 0).unwrap_or(u64::MAX);
                plan.wake = later(now, seconds_to_wait(world, account).min(kept));
            }
            newest && is_final(world, account)
        }
        (Observed::Known(_), None, _) => {
            let nothing = |at: &AccountAt| matches!(at.read, AccountRead::Absent | AccountRead::Mismatch);
            world.second.known().is_some_and(nothing)
        }
        (Observed::Unknown(_), _, _) => plan.status.escrow.is_none(),
    };
    if let (true, true, Some(until)) = (retained, settled, until) {
        let left = u64::try_from(until - now.as_second()).unwrap_or_default();
        plan.wake = later(now, left.clamp(1, RETENTION_CHECK_SECONDS));
    }
    let gone = matches!(world.allocation_exists, Observed::Known(false));
    let is_reported = stopped_since(plan, now) > 3600;
    plan.delete = settled
        && quiet
        && !running.namespace
        && (gone || is_reported || world.reservation.metadata.deletion_timestamp.is_some());
}

/// Whether a fault is still to be credited before the stop is reported: then the market closes the account, and nothing can be
/// credited any more.
pub(super) fn awaits_credit(world: &World<'_>, plan: &Plan, now: Timestamp) -> bool {
    let status = &plan.status;
    let open = |a: &Account| !a.closed && a.started_at != 0 && !Leg::of(world, a).ended;
    let can_be_credited = match world.account {
        Observed::Known(_) => present(&world.account).is_some_and(open),
        Observed::Unknown(_) => status.escrow.is_some(),
    };
    let recent = |since: i64| now.as_second() < since.saturating_add(CREDIT_WITHIN_SECONDS);
    let pending = status.credit_due != Some(0) && status.fault_since.is_some_and(recent);
    status.stopped_at.is_none() && pending && can_be_credited
}

fn stopped_at(plan: &Plan) -> Option<Timestamp> {
    plan.status.stopped_at.as_deref()?.parse().ok()
}

fn stopped_since(plan: &Plan, now: Timestamp) -> i64 {
    stopped_at(plan).map_or(0, |t| now.as_second() - t.as_second())
}

/// Whether nothing is left to do on the chain for a stopped reservation.
fn settle_leg(world: &World<'_>, terms: &Terms, account: &Account, now: Timestamp, plan: &mut Plan) -> bool {
    let leg = Leg::of(world, account);
    let call = if !account.closed && !leg.ended && account.started_at != 0 {
        // The market closes the account within seconds; only where it does not, the leg is ended here. What it served
        // after its pods had stopped is credited before: an account whose legs have all ended can be closed by anyone.
        if stopped_since(plan, now) <= END_AFTER_SECONDS || !is_returned((world, terms, account), now, plan) {
            return false;
        }
        LegCall::End
    } else if leg.state.owed.0 > 0 {
        LegCall::Withdraw
    } else {
        plan.status.intent = None;
        return is_settled(world, account);
    };
    let wake = plan.wake;
    store_or_send(now, plan, call);
    if plan.call.is_some() {
        plan.wake = wake;
    }
    false
}

/// Whether all that the leg served since its fault, or since its pods had stopped, is credited.
fn is_returned(read: (&World<'_>, &Terms, &Account), now: Timestamp, plan: &mut Plan) -> bool {
    let stopped = stopped_at(plan).map(Timestamp::as_second);
    let since = plan.status.fault_since.into_iter().chain(stopped).min();
    since.is_none_or(|since| return_unserved(read, since, now, plan))
}

/// Whether no reorganisation can undo the end of the leg and the payment of its earnings: the final block shows the leg as the
/// newest one does. Before its start it had no earnings either, so that alone does not tell.
fn is_final(world: &World<'_>, newest: &Account) -> bool {
    let end = |a: &Account| {
        let leg = Leg::of(world, a);
        (a.closed, leg.ended, a.started_at == 0, leg.state)
    };
    let same = |read| present(read).is_some_and(|a| is_settled(world, a) && end(a) == end(newest));
    world.final_reads.len() >= FINAL_READS && world.final_reads.iter().all(same)
}

/// Time after which the end of the leg may be final: the newest final block is behind the newest one by some time.
fn seconds_to_wait(world: &World<'_>, account: &Account) -> u64 {
    let last = world.final_reads.first().and_then(Observed::known);
    let lag = last.map(|at| account.block_time.saturating_sub(at.block.time));
    lag.map_or(5, |lag| (lag / 4).clamp(1, 60))
}

/// Whether the leg is over and its payee has all earnings.
fn is_settled(world: &World<'_>, account: &Account) -> bool {
    let leg = Leg::of(world, account);
    let over = account.closed || leg.ended || account.started_at == 0;
    over && leg.state.owed.0 == 0
}
