//! Lets allocations go: after the provider's word that it stopped, or when it must have stopped by itself.

use std::{sync::Arc, time::Duration};

use kube::{Api, ResourceExt as _, api::DeleteParams, runtime::controller::Action};
use leasehold_crds::{FINALIZER_MARKET, GpuAllocation};
use leasehold_planner::letting_go;
use leasehold_telemetry::metrics::Controller;

use super::Market;
use crate::{cache, error::Error, objects};

/// One pass over an allocation.
pub(super) async fn reconcile(allocation: Arc<GpuAllocation>, market: Arc<Market>) -> Result<Action, Error> {
    let now = market.now();
    let lease = cache::get(
        &market.leases,
        &allocation.spec.lease.name,
        Some(&allocation.spec.lease.namespace),
    );
    if let letting_go::Plan::Keep { seconds } = letting_go::decide(&allocation, lease.as_deref(), now) {
        return Ok(Action::requeue(Duration::from_secs(seconds)));
    }
    let api = Api::namespaced(market.client.clone(), &allocation.namespace().unwrap_or_default());
    remove(&api, &allocation).await?;
    Ok(Action::await_change())
}

/// Takes off our finalizer and deletes.
pub(super) async fn remove(api: &Api<GpuAllocation>, allocation: &GpuAllocation) -> Result<(), Error> {
    let rest: Vec<String> = allocation
        .finalizers()
        .iter()
        .filter(|f| *f != FINALIZER_MARKET)
        .cloned()
        .collect();
    if rest.len() != allocation.finalizers().len() {
        objects::set_finalizers(api, allocation, &rest).await?;
    }
    if allocation.metadata.deletion_timestamp.is_none() {
        objects::gone_is_fine(api.delete(&allocation.name_any(), &DeleteParams::default()).await)
            .map_err(Error::kube("delete an allocation"))?;
    }
    Ok(())
}

/// What a failed pass leads to.
pub(super) fn on_error(object: Arc<GpuAllocation>, error: &Error, market: Arc<Market>) -> Action {
    error.log("GpuAllocation", &object.name_any());
    market
        .metrics
        .reconcile
        .observe(Controller::Allocation, Duration::ZERO, Some(error.class()));
    Action::requeue(error.retry_after())
}
