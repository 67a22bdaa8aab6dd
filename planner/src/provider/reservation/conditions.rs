//! Conditions of a reservation, and Events about its GPUs. They are output: no decision reads them.

use jiff::Timestamp;
use leasehold_crds::{
    GpuReservation,
    market::allocation::AllocationPhase,
    provider::reservation::{GpuReservationStatus, ReservationCondition, ReservationReason},
    shared::conditions::{ConditionStatus, condition, find, set},
};

use super::{
    generation,
    leg::{Provisioning, are_containers_missing},
    stop::OFFSET_MAX_SECONDS,
    unix,
    world::World,
};
use crate::{observed::Observed, ports::PaymentError, provider::workload::results};

/// Sets a condition.
pub(super) fn put(
    (world, now): (&World<'_>, Timestamp),
    output: &mut GpuReservationStatus,
    type_: ReservationCondition,
    status: ConditionStatus,
    reason: ReservationReason,
    message: String,
) {
    let next = condition(type_, status, reason, message, generation(world));
    set(&mut output.conditions, next, now);
}

/// Sets all conditions that follow from what was read and decided.
pub(super) fn conditions(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    chain_reachable(world, now, output);
    gpus_healthy(world, now, output);
    results_served(world, now, output);
    provisioned(world, now, output);
    ready(world, now, output);
    charged(world, now, output);
    market_reachable(world, now, output);
}

/// `ChainReachable`.
fn chain_reachable(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    let mut put = |type_, status, reason, message: String| {
        put((world, now), output, type_, status, reason, message);
    };
    match &world.account {
        Observed::Unknown(why) => put(
            ReservationCondition::ChainReachable,
            ConditionStatus::Unknown,
            ReservationReason::Unreachable,
            why.clone(),
        ),
        Observed::Known(at) if unix(now).abs_diff(at.block.time) > OFFSET_MAX_SECONDS => put(
            ReservationCondition::ChainReachable,
            ConditionStatus::Unknown,
            ReservationReason::ClockOffset,
            format!(
                "the newest block is {} s away from this machine's clock: check both",
                unix(now).abs_diff(at.block.time)
            ),
        ),
        _ => put(
            ReservationCondition::ChainReachable,
            ConditionStatus::True,
            ReservationReason::Reachable,
            String::new(),
        ),
    }
}

/// `GpusHealthy`.
fn gpus_healthy(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    let mut put = |type_, status, reason, message: String| {
        put((world, now), output, type_, status, reason, message);
    };
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
}

/// `ResultsServed`, while results are retained.
fn results_served(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    let retained =
        output.stopped_at.is_some() && results::are_kept(world.reservation, output.results_until, now);
    let mut put = |type_, status, reason, message: String| {
        put((world, now), output, type_, status, reason, message);
    };
    if let (Observed::Known(running), true) = (&world.running, retained) {
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
                "" => format!("the results of {} of {nodes} nodes are served", seen.ready),
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
}

/// `Provisioned`, from the deposit on: what the start of the leg waits for.
fn provisioned(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    let (phase, stopped) = (output.phase, output.stop_reason);
    let mut put = |status, reason, message: String| {
        put(
            (world, now),
            output,
            ReservationCondition::Provisioned,
            status,
            reason,
            message,
        );
    };
    let spec = &world.reservation.spec;
    let nodes = spec.allocation.nodes;
    match (stopped, phase, &world.running) {
        (Some(reason), _, _) => put(
            ConditionStatus::False,
            ReservationReason::Stopped,
            reason.to_string(),
        ),
        (None, phase, _) if phase.is_unpaid() => {}
        // While it is charged, an agent that restarts reports for a moment that no GPU is held.
        (None, AllocationPhase::Active, _) if !are_containers_missing(world) => {
            put(ConditionStatus::True, ReservationReason::Started, String::new())
        }
        (None, _, Observed::Known(running)) => match Provisioning::of(running, spec) {
            Provisioning::ContainersMissing(run) => {
                let message = because(
                    format!(
                        "the containers of {run} of {nodes} pods have run; charging starts when all have"
                    ),
                    &running.trouble,
                );
                put(
                    ConditionStatus::False,
                    ReservationReason::ContainersNotStarted,
                    message,
                );
            }
            Provisioning::GpusMissing(bound, wanted) => put(
                ConditionStatus::False,
                ReservationReason::GpusNotBound,
                format!("kubelets have bound {bound} of {wanted} GPUs; charging starts when all are bound"),
            ),
            Provisioning::EndpointsMissing(found, wanted) => put(
                ConditionStatus::False,
                ReservationReason::EndpointPending,
                format!(
                    "{found} of {wanted} ports have an address of a load balancer; charging starts when all have"
                ),
            ),
            Provisioning::Complete => put(ConditionStatus::True, ReservationReason::Started, String::new()),
        },
        (None, _, Observed::Unknown(why)) => {
            put(ConditionStatus::Unknown, ReservationReason::Unknown, why.clone());
        }
    }
}

/// `Ready`: what the tenant's own readiness check says. Nothing is charged or refunded for it.
fn ready(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    let stopped = output.stop_reason;
    let mut put = |status, reason, message: String| {
        put(
            (world, now),
            output,
            ReservationCondition::Ready,
            status,
            reason,
            message,
        );
    };
    match (stopped, &world.running) {
        // A reservation that stops is not ready, whatever its pods report.
        (Some(reason), _) => put(
            ConditionStatus::False,
            ReservationReason::Stopped,
            reason.to_string(),
        ),
        (None, Observed::Known(running)) => {
            let nodes = world.reservation.spec.allocation.nodes;
            let ready = running.pods_ready + running.pods_succeeded;
            if i64::try_from(ready).is_ok_and(|ready| ready >= nodes) {
                put(ConditionStatus::True, ReservationReason::PodsReady, String::new());
            } else {
                let message = because(format!("{ready} of {nodes} pods are ready"), &running.trouble);
                put(ConditionStatus::False, ReservationReason::PodsNotReady, message);
            }
        }
        (None, Observed::Unknown(why)) => {
            put(ConditionStatus::Unknown, ReservationReason::Unknown, why.clone());
        }
    }
}

/// A message with what the kubelet or the scheduler reports.
fn because(message: String, trouble: &str) -> String {
    match trouble {
        "" => message,
        trouble => format!("{message}: {trouble}"),
    }
}

/// `Charged`: a failed call stays reported until no call is left to be made.
fn charged(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    if output.intent.is_none() && find(&output.conditions, ReservationCondition::Charged).is_some() {
        put(
            (world, now),
            output,
            ReservationCondition::Charged,
            ConditionStatus::True,
            ReservationReason::Mined,
            String::new(),
        );
    }
}

/// `MarketReachable`.
fn market_reachable(world: &World<'_>, now: Timestamp, output: &mut GpuReservationStatus) {
    let mut put = |type_, status, reason, message: String| {
        put((world, now), output, type_, status, reason, message);
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
            "the market has no such allocation; paid work continues until its own deadline".into(),
        ),
        Observed::Unknown(why) => put(
            ReservationCondition::MarketReachable,
            ConditionStatus::Unknown,
            ReservationReason::Unreachable,
            why.clone(),
        ),
    }
}

/// A change in the health of a reservation's GPUs, for an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether they became faulty; otherwise they are healthy again.
    pub bad: bool,
    /// The reason of the condition.
    pub reason: String,
    /// The message of the condition.
    pub message: String,
}

/// The Event about the GPUs, if they became faulty, or healthy again after a fault.
#[must_use]
pub fn news_of_gpus(before: Option<&GpuReservationStatus>, now: &GpuReservationStatus) -> Option<News> {
    let healthy = |s: &GpuReservationStatus| {
        find(&s.conditions, ReservationCondition::GpusHealthy).map(|c| c.status.clone())
    };
    let is = find(&now.conditions, ReservationCondition::GpusHealthy)?;
    let changed = before.and_then(healthy).as_ref() != Some(&is.status);
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

/// Reports in the condition `Ready` that the cluster refused an object of the workload, in the words of the refusal.
pub fn object_refused(
    reservation: &GpuReservation,
    status: &mut GpuReservationStatus,
    refusal: &str,
    now: Timestamp,
) {
    if status.stop_reason.is_some() {
        return;
    }
    let next = condition(
        ReservationCondition::Ready,
        ConditionStatus::False,
        ReservationReason::PodsNotReady,
        format!("the cluster refuses an object of the workload: {refusal}"),
        reservation.metadata.generation.unwrap_or_default(),
    );
    // The decision may have set it to True. It changes only if it differs from the stored one: otherwise each reconcile would
    // write another time, and that would queue the next reconcile.
    let before = reservation.status.as_ref();
    let before = before.and_then(|s| find(&s.conditions, ReservationCondition::Ready));
    let decided = status.conditions.iter_mut().find(|c| c.type_ == next.type_);
    if let (Some(before), Some(decided)) = (before, decided) {
        decided.clone_from(before);
    }
    set(&mut status.conditions, next, now);
}

/// Reports a failed call to the chain in the condition `Charged`.
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
        PaymentError::LimitExceeded { .. } => (ConditionStatus::False, ReservationReason::LimitExceeded),
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
