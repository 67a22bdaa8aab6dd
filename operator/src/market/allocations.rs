//! Lets allocations go: after the provider's word that it stopped, or when it must have stopped by itself.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::DeleteParams, runtime::controller::Action};
use leasehold_crds::{FINALIZER_MARKET, GpuAllocation, GpuLease};
use leasehold_telemetry::metrics::Controller;

use super::Market;
use crate::{cache, error::Error, objects};

/// Both clocks may be off by so much: a provider that can't be heard has stopped by `notAfter` and twice this.
const SKEW_SECONDS: i64 = 60;

/// One pass over an allocation.
pub(super) async fn reconcile(allocation: Arc<GpuAllocation>, market: Arc<Market>) -> Result<Action, Error> {
    let now = market.now();
    if !may_go(&allocation, now) {
        let left = allocation.spec.not_after.saturating_add(2 * SKEW_SECONDS) - now.as_second();
        return Ok(Action::requeue(Duration::from_secs(
            u64::try_from(left.clamp(5, 300)).unwrap_or(300),
        )));
    }
    // The job's result is on the lease before the allocation goes.
    let lease = cache::get(
        &market.leases,
        &allocation.spec.lease.name,
        Some(&allocation.spec.lease.namespace),
    );
    if lease.is_some_and(|lease| is_awaited(&lease, &allocation)) {
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    let api = Api::namespaced(market.client.clone(), &allocation.namespace().unwrap_or_default());
    remove(&api, &allocation).await?;
    Ok(Action::await_change())
}

/// Asked to stop and stopped, or past the time at which it stops in any case.
fn may_go(allocation: &GpuAllocation, now: Timestamp) -> bool {
    let stopped = allocation
        .status
        .as_ref()
        .is_some_and(|s| s.stopped_at.is_some() || s.declined.is_some());
    let over = now.as_second() > allocation.spec.not_after.saturating_add(2 * SKEW_SECONDS);
    let leaving = allocation.spec.release || allocation.metadata.deletion_timestamp.is_some();
    (leaving && stopped) || over
}

/// Whether the lease still has to read this allocation.
fn is_awaited(lease: &GpuLease, allocation: &GpuAllocation) -> bool {
    let same = lease.metadata.uid.as_deref() == Some(&allocation.spec.lease.uid);
    same && lease.status.as_ref().is_some_and(|s| {
        s.phase != leasehold_crds::lease::Phase::Closed
            && s.escrow
                .as_ref()
                .is_some_and(|e| e.terms.id == allocation.spec.escrow.id)
    })
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
pub(super) fn on_error(_: Arc<GpuAllocation>, error: &Error, market: Arc<Market>) -> Action {
    market
        .metrics
        .reconcile
        .observe(Controller::Allocation, Duration::ZERO, Some(error.class()));
    Action::requeue(error.retry_after())
}
