//! A reservation that does not stop: held, provisioned once paid, started, paused at a fault, suspended without funds.

use jiff::Timestamp;
use leasehold_crds::{
    market::allocation::AllocationPhase,
    payment::money::TokenAmount,
    provider::reservation::{ReservationCondition, ReservationReason},
    shared::conditions::ConditionStatus,
};

use super::{
    conditions::put,
    decide::halt,
    is_spent, later, leg,
    phase::{PhaseEvent, advance},
    plan::{Plan, Workload},
    pods, present,
    world::World,
};
use crate::{
    escrow::Terms,
    observed::Observed,
    provider::{offer::resumption::Room, workload::Objects},
};

/// Decides about a reservation that does not stop.
pub(super) fn serving(world: &World<'_>, terms: &Terms, now: Timestamp, plan: &mut Plan) {
    let spec = &world.reservation.spec;
    if plan.status.phase == AllocationPhase::Requested {
        advance(&mut plan.status, PhaseEvent::Held);
        put(
            (world, now),
            &mut plan.status,
            ReservationCondition::Reserved,
            ConditionStatus::True,
            ReservationReason::Held,
            format!("on {}", spec.nodes.join(", ")),
        );
    }
    let Some(account) = present(&world.account) else {
        // Not paid yet, which a new block shows sooner; or the chain can't be read: the workload continues, and nothing
        // new starts.
        let unpaid = plan.status.phase == AllocationPhase::Reserved;
        plan.wake = plan.wake.min(later(now, if unpaid { 5 } else { 2 }));
        return;
    };
    if plan.status.phase == AllocationPhase::Reserved {
        if !is_paid(world, now, plan) {
            plan.wake = plan.wake.min(later(now, 5));
            return;
        }
        advance(&mut plan.status, PhaseEvent::Paid);
    }
    let second = present(&world.second).map(|a| is_spent(a, terms));
    let suspended = plan.status.phase == AllocationPhase::Suspended;
    match (is_spent(account, terms), second) {
        (true, Some(true)) => {
            suspend(world, now, plan);
            return;
        }
        // Two reads that differ decide nothing, neither an end nor a resumption.
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
    if suspended {
        plan.status.resuming_since.get_or_insert(now.as_second());
        if !holds_room(world, now, plan) {
            return;
        }
    }
    let (changes, due) = match &world.running {
        Observed::Known(running) => pods::changes(world.reservation, &running.pods, &mut plan.status, now),
        Observed::Unknown(_) => (Vec::new(), None),
    };
    if let Some(due) = due {
        plan.wake = plan.wake.min(due);
    }
    plan.workload = Workload::Run {
        objects: Box::new(Objects::of(world.reservation, &world.denylist, world.connector)),
        pods: changes,
    };
    leg::start_or_pause(world, terms, account, now, plan);
}

/// Whether the room of the pods is held for them again after a pause. That is stored first: another allocation may have been
/// accepted meanwhile, and then this reservation waits, until its deadline at most.
fn holds_room(world: &World<'_>, now: Timestamp, plan: &mut Plan) -> bool {
    plan.workload = halt(world);
    let held = plan.status.holds_room;
    let (status, reason, message) = match &world.room {
        Room::Free => {
            plan.status.holds_room = true;
            if !held {
                plan.wake = plan.wake.min(later(now, 1));
            }
            let nodes = world.reservation.spec.nodes.join(", ");
            (
                ConditionStatus::True,
                ReservationReason::Held,
                format!("on {nodes}"),
            )
        }
        Room::Taken(node) => {
            plan.status.holds_room = false;
            plan.wake = plan.wake.min(later(now, 5));
            let message = format!("{node} was promised to others during the pause; it is waited for");
            (ConditionStatus::False, ReservationReason::RoomTaken, message)
        }
    };
    put(
        (world, now),
        &mut plan.status,
        ReservationCondition::Reserved,
        status,
        reason,
        message,
    );
    held && plan.status.holds_room
}

/// Whether the deposit is in a block of the level that the network's policy asks for.
fn is_paid(world: &World<'_>, now: Timestamp, plan: &mut Plan) -> bool {
    let wanted = &world.reservation.spec.allocation.deposit;
    let wanted = TokenAmount::parse(wanted).unwrap_or(TokenAmount(u128::MAX));
    let settled = world.settled.as_ref().and_then(present).map(|a| a.deposited);
    let (status, reason, message) = match settled {
        Some(deposited) if deposited >= wanted => (ConditionStatus::True, ReservationReason::Deposited, ""),
        Some(_) => (
            ConditionStatus::False,
            ReservationReason::DepositTooSmall,
            "the account holds less than the lease's deposit",
        ),
        None => (
            ConditionStatus::False,
            ReservationReason::NotFinalYet,
            "the payment is not yet in a block of the level this provider's PaymentNetwork asks for",
        ),
    };
    put(
        (world, now),
        &mut plan.status,
        ReservationCondition::Paid,
        status,
        reason,
        message.to_owned(),
    );
    status == ConditionStatus::True
}

/// Stops the pods until there are funds again.
pub(super) fn suspend(world: &World<'_>, now: Timestamp, plan: &mut Plan) {
    plan.status.intent = None;
    leg::end_resumption(&mut plan.status, now);
    plan.status.holds_room = false;
    advance(&mut plan.status, PhaseEvent::FundsSpent);
    plan.status.pod_creations = None;
    plan.workload = halt(world);
    plan.wake = plan.wake.min(later(now, 5));
}
