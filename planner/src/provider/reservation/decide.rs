//! The decision about a reservation: whether it stops, and if not, how it is served.

use jiff::Timestamp;
use leasehold_crds::{
    GpuReservation,
    market::allocation::{AllocationPhase, StopReason},
    provider::reservation::{GpuReservationStatus, ReservationCondition, ReservationReason},
    shared::conditions::ConditionStatus,
};

use super::{
    conditions::{conditions, put},
    later,
    phase::{PhaseEvent, advance},
    plan::{Plan, Workload},
    pods,
    serving::serving,
    settle::{awaits_credit, stopping},
    snapshot::record_chain,
    stop_reason::stop_reason,
    wire,
    world::World,
};
use crate::{
    escrow::{Terms, allocation_name},
    observed::Observed,
    provider::workload::results,
};

/// Decides what is to be done about a reservation.
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
    record_chain(world, now, &mut plan.status);
    record_allocation(world, now, &mut plan.status);
    record_running(world, now, &mut plan.status);
    if !is_named_after_its_account(world.reservation) {
        reject(world, now, &mut plan);
        return plan;
    }
    match &Terms::from_wire(&world.reservation.spec.allocation.escrow) {
        Err(error) => {
            record_bad_terms(world, error.to_string(), now, &mut plan.status);
            stopping(world, None, now, &mut plan);
        }
        Ok(terms) => {
            if plan.status.stop_reason.is_some() {
                stopping(world, Some(terms), now, &mut plan);
            } else if let Some(reason) = stop_reason(world, terms, before.as_ref(), now, &mut plan) {
                stop(world, reason, now, &mut plan);
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
        // The addresses are published as long as the reservation exists, even if their Services were deleted.
        let at = if at.is_empty() { &plan.status.results } else { at };
        plan.status.results = results::published(at, plan.status.results_until);
    }
    conditions(world, now, &mut plan.status);
    plan
}

/// Whether its name, which is that of its namespace too, follows from the account and the leg.
fn is_named_after_its_account(reservation: &GpuReservation) -> bool {
    let spec = &reservation.spec.allocation;
    let leg = usize::try_from(spec.leg).ok();
    let expected = spec.escrow.id.parse().ok().zip(leg);
    let expected = expected.map(|(id, leg)| allocation_name(id, leg));
    expected.is_some() && reservation.metadata.name == expected
}

/// Stops a reservation of another name. Nothing was made for it, so nothing of its name is removed.
fn reject(world: &World<'_>, now: Timestamp, plan: &mut Plan) {
    let message = "the name of the reservation does not follow from its account and leg; nothing runs for it";
    record_bad_terms(world, message.into(), now, &mut plan.status);
    plan.status.stopped_at.get_or_insert(now.to_string());
    advance(&mut plan.status, PhaseEvent::StopDecided);
    advance(&mut plan.status, PhaseEvent::PodsGone);
    let deleted = world.reservation.metadata.deletion_timestamp.is_some();
    plan.delete = deleted || matches!(world.allocation_exists, Observed::Known(false));
}

/// Records that nothing can be served under these terms.
fn record_bad_terms(world: &World<'_>, message: String, now: Timestamp, status: &mut GpuReservationStatus) {
    status.stop_reason.get_or_insert(StopReason::BadTerms);
    put(
        (world, now),
        status,
        ReservationCondition::Paid,
        ConditionStatus::False,
        ReservationReason::BadTerms,
        message,
    );
}

/// Records since when the market has no such allocation.
fn record_allocation(world: &World<'_>, now: Timestamp, status: &mut GpuReservationStatus) {
    match world.allocation_exists {
        Observed::Known(false) => {
            status.allocation_gone_since.get_or_insert(now.as_second());
        }
        Observed::Known(true) | Observed::Unknown(_) => status.allocation_gone_since = None,
    }
}

/// Records GPUs, endpoints and the result of a job.
fn record_running(world: &World<'_>, now: Timestamp, status: &mut GpuReservationStatus) {
    let Observed::Known(running) = &world.running else {
        return;
    };
    if !running.gpu_uuids.is_empty() {
        status.gpu_uuids.clone_from(&running.gpu_uuids);
    }
    if running.job.is_some() {
        // The retention of a job that is being stopped was decided with the stop.
        if status.job.is_none() && status.stop_reason.is_none() {
            status.results_until = results::until(world.reservation, true, now);
        }
        status.job.clone_from(&running.job);
    }
    status.endpoints.clone_from(&running.endpoints);
}

/// Removes all pods that are known.
pub(super) fn halt(world: &World<'_>) -> Workload {
    let known = world.running.known();
    Workload::Halt(
        known
            .map(|running| pods::removals(&running.pods))
            .unwrap_or_default(),
    )
}

/// Decides a stop.
fn stop(world: &World<'_>, reason: StopReason, now: Timestamp, plan: &mut Plan) {
    plan.status.stop_reason = Some(reason);
    // A fault that is seen with the stop is credited before the stop is reported.
    if let (Observed::Known(Some(fault)), AllocationPhase::Active) = (&world.health.fault, plan.status.phase)
    {
        plan.status.fault_since.get_or_insert(wire(fault.since));
    }
    // A job that is stopped before its end may have left results, unless it was never served.
    let served = matches!(
        plan.status.phase,
        AllocationPhase::Active | AllocationPhase::Suspended
    );
    if served && plan.status.job.is_none() {
        plan.status.results_until = results::until(world.reservation, false, now);
    }
    // The market closes the account as soon as it sees the phase.
    if !awaits_credit(world, plan, now) {
        advance(&mut plan.status, PhaseEvent::StopDecided);
    }
    plan.workload = halt(world);
    plan.wake = plan.wake.min(later(now, 1));
}
