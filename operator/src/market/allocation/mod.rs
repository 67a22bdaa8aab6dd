//! Deletes allocations: after the provider reported that it stopped, or when it must have stopped by itself.

use std::{sync::Arc, time::Duration};

use kube::{Api, ResourceExt as _, api::DeleteParams};
use leasehold_crds::{FINALIZER_MARKET, GpuAllocation};
use leasehold_planner::market::allocation::release;
use leasehold_runtime::{
    Error, Process, api_writes, cache,
    queue::{ReconcileError, RequeueAfter},
};
use leasehold_telemetry::metrics::Controller;

use super::Market;

/// Adds the controller of GpuAllocations.
pub(crate) fn register(process: &mut Process, market: &Arc<Market>) {
    let context = market.clone();
    process.add_controller(
        Controller::Allocation,
        8,
        (&market.queues.allocations, &market.allocations),
        move |allocation| reconcile(allocation, context.clone()),
    );
}

/// Reconciles one allocation.
async fn reconcile(
    allocation: Arc<GpuAllocation>,
    market: Arc<Market>,
) -> Result<RequeueAfter, ReconcileError> {
    let now = market.now();
    let lease = cache::get(
        &market.leases,
        &allocation.spec.lease.name,
        Some(&allocation.spec.lease.namespace),
    );
    if let release::Plan::Keep { seconds } = release::decide(&allocation, lease.as_deref(), now) {
        return Ok(Some(Duration::from_secs(seconds)));
    }
    let api = Api::namespaced(market.client.clone(), &allocation.namespace().unwrap_or_default());
    remove(&api, &allocation).await?;
    Ok(None)
}

/// Removes the market's finalizer and deletes the allocation.
pub(crate) async fn remove(api: &Api<GpuAllocation>, allocation: &GpuAllocation) -> Result<(), Error> {
    let rest: Vec<String> = allocation
        .finalizers()
        .iter()
        .filter(|f| *f != FINALIZER_MARKET)
        .cloned()
        .collect();
    if rest.len() != allocation.finalizers().len() {
        api_writes::set_finalizers(api, allocation, &rest).await?;
    }
    if allocation.metadata.deletion_timestamp.is_none() {
        api_writes::ignore_not_found(api.delete(&allocation.name_any(), &DeleteParams::default()).await)
            .map_err(Error::kube("delete an allocation"))?;
    }
    Ok(())
}
