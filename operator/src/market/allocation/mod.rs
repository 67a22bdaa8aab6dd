//! Lets allocations go: after the provider's word that it stopped, or when it must have stopped by itself.

use std::{sync::Arc, time::Duration};

use kube::{Api, ResourceExt as _, api::DeleteParams};
use leasehold_crds::{FINALIZER_MARKET, GpuAllocation};
use leasehold_planner::market::allocation::release;

use super::Market;
use crate::{
    api_writes, cache,
    error::Error,
    queue::{Again, Failed},
};

/// One pass over an allocation.
pub(crate) async fn reconcile(allocation: Arc<GpuAllocation>, market: Arc<Market>) -> Result<Again, Failed> {
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

/// Takes off our finalizer and deletes.
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
        api_writes::gone_is_fine(api.delete(&allocation.name_any(), &DeleteParams::default()).await)
            .map_err(Error::kube("delete an allocation"))?;
    }
    Ok(())
}
