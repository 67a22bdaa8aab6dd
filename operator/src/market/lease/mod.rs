//! The controller of GpuLeases: gather, check, decide, apply, report.

use std::sync::Arc;

use leasehold_crds::GpuLease;
use leasehold_planner::market::lease;
use leasehold_runtime::{
    Process, api_writes,
    queue::{CONCURRENT_RECONCILES, ReconcileError, RequeueAfter},
};
use leasehold_telemetry::metrics::Controller;

use super::Market;

mod access_token;
pub(crate) mod account_index;
mod apply;
mod crd_deletion;
mod gather;
mod report;

/// Adds the controller of GpuLeases.
pub(crate) fn register(process: &mut Process, market: &Arc<Market>) {
    let context = market.clone();
    process.add_controller(
        Controller::Lease,
        CONCURRENT_RECONCILES,
        (&market.queues.leases, &market.leases),
        move |lease| reconcile(lease, context.clone()),
    );
}

/// Reconciles one lease.
async fn reconcile(object: Arc<GpuLease>, market: Arc<Market>) -> Result<RequeueAfter, ReconcileError> {
    let (world, handles) = market.gather(object).await;
    let checked = lease::check(&world);
    let plan = lease::decide(&world, &checked, market.now());
    market.provider_queue.begin(&world.lease, &plan);
    market.settle_unfunded(&world.lease, &plan.status);
    let (status, outcome) = market.apply(&world, &handles, plan.clone()).await;
    let reported = market.report(&world, &plan, status, &outcome).await;
    match &reported {
        Ok(()) => market.provider_queue.record_starts(&plan, market.now()),
        Err(_) => market.provider_queue.cancel(&world.lease, &plan),
    }
    let requeue_after = api_writes::until(plan.wake, market.now());
    reported
        .and(outcome)
        .map_err(|error| ReconcileError::requeue(error, requeue_after))?;
    Ok(Some(requeue_after))
}
