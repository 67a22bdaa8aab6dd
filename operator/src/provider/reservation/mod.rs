//! The controller of GpuReservations: gather, decide, apply, report. It needs neither the market nor its objects.

use std::sync::Arc;

use leasehold_crds::GpuReservation;
use leasehold_planner::provider::reservation as planner;
use leasehold_runtime::{
    Process, api_writes,
    queue::{CONCURRENT_RECONCILES, ReconcileError, RequeueAfter},
};
use leasehold_telemetry::metrics::Controller;

use super::Provider;

pub(crate) mod applied;
mod apply;
pub(crate) mod block_watcher;
mod gather;
mod report;

/// Adds the controller of GpuReservations.
pub(crate) fn register(process: &mut Process, provider: &Arc<Provider>) {
    let context = provider.clone();
    process.add_controller(
        Controller::Reservation,
        CONCURRENT_RECONCILES,
        (&provider.queues.reservations, &provider.caches.reservations),
        move |reservation| reconcile(reservation, context.clone()),
    );
}

/// Reconciles one reservation.
async fn reconcile(
    reservation: Arc<GpuReservation>,
    provider: Arc<Provider>,
) -> Result<RequeueAfter, ReconcileError> {
    if !provider.holds(&reservation) {
        return Ok(None);
    }
    let (world, chain) = provider.gather(&reservation, provider.now()).await;
    // Gathering may have taken the time to a deadline: the decision is by the clock as it is now.
    let plan = planner::decide(&world, provider.now());
    let requeue_after = || api_writes::until(plan.wake, provider.now());
    let persist_first = plan.must_persist_first(reservation.status.as_ref());
    if persist_first {
        let reported = provider.report(&reservation, plan.status.clone(), &plan).await;
        reported.map_err(|error| ReconcileError::requeue(error, requeue_after()))?;
    }
    let (status, outcome) = provider.apply(&world, chain.as_ref(), &plan).await;
    let reported = if persist_first {
        Ok(())
    } else {
        provider.report(&reservation, status, &plan).await
    };
    reported
        .and(outcome)
        .map_err(|error| ReconcileError::requeue(error, requeue_after()))?;
    Ok(Some(requeue_after()))
}
