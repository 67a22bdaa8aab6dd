//! Reports on a lease: its status, Events about what changed, and the end of its finalizer.

use std::sync::Arc;

use kube::{Api, ResourceExt as _};
use leasehold_crds::{FINALIZER_MARKET, GpuLease, lease::conditions::LeaseEvent};
use leasehold_planner::market::lease::{self, Plan, World};
use leasehold_runtime::{Error, api_writes};

use super::apply::Written;
use crate::market::{MANAGER, Market};

impl Market {
    /// Writes the status and Events about what changed; removes the finalizer of a lease that is over.
    pub(super) async fn report(
        &self,
        world: &World,
        plan: &Plan,
        written: Written,
        outcome: &Result<(), Error>,
    ) -> Result<(), Error> {
        let api =
            Api::<GpuLease>::namespaced(self.client.clone(), &world.lease.namespace().unwrap_or_default());
        let mut object = written.object;
        let before = world.lease.status.clone();
        if let Some(note) = world.deletion.note() {
            let reason = LeaseEvent::KindDeleted.as_str();
            self.events.repeat(world.lease.as_ref(), true, reason, note).await;
        }
        if before.as_ref() != Some(&written.status) {
            object =
                Arc::new(api_writes::apply_status(&api, object.as_ref(), MANAGER, &written.status).await?);
            for event in lease::events(before.as_ref(), &written.status) {
                let reason = event.reason.as_str();
                self.events
                    .publish(object.as_ref(), event.warning, reason, event.note)
                    .await;
            }
            if before.as_ref().map(|s| s.phase) != Some(written.status.phase)
                && let Some(phases) = &self.metrics.leases
            {
                phases.entered(written.status.phase);
            }
        }
        if plan.finalizer == Some(false) && outcome.is_ok() && !written.persist_only {
            let remaining: Vec<String> = object
                .finalizers()
                .iter()
                .filter(|f| *f != FINALIZER_MARKET)
                .cloned()
                .collect();
            let removed = api_writes::set_finalizers(&api, object.as_ref(), &remaining).await;
            api_writes::ignore_not_found(removed)?;
        }
        Ok(())
    }
}
