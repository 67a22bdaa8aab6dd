//! Reports on a reservation: its status, Events about what changed, and its deletion when it is over.

use kube::{Api, ResourceExt as _, api::DeleteParams};
use leasehold_crds::{
    FINALIZER_PROVIDER, GpuReservation,
    market::allocation::{AllocationPhase, StopReason},
    provider::reservation::GpuReservationStatus,
};
use leasehold_planner::provider::reservation::{self as planner, Plan};
use leasehold_runtime::{Error, api_writes};

use crate::provider::{MANAGER, Provider};

impl Provider {
    /// Writes the status and its Events; deletes a reservation that is over.
    pub(super) async fn report(
        &self,
        reservation: &GpuReservation,
        status: GpuReservationStatus,
        plan: &Plan,
    ) -> Result<(), Error> {
        let api = Api::<GpuReservation>::all(self.client.clone());
        let before = reservation.status.as_ref();
        if before != Some(&status) {
            let written = api_writes::apply_status(&api, reservation, MANAGER, &status).await?;
            if before.map(|s| s.phase) != Some(status.phase) {
                tracing::info!(reservation = reservation.name_any(), phase = ?status.phase, reason = status.stop_reason.map(StopReason::as_str), "phase changed");
                if let Some(phases) = &self.metrics.reservations {
                    phases.entered(status.phase);
                }
                let note = match status.stop_reason {
                    Some(reason) => format!("stopped: {reason}"),
                    None => phase_note(reservation, status.phase),
                };
                self.events
                    .publish(&written, false, status.phase.as_str(), note)
                    .await;
            }
            if let Some(news) = planner::news_of_gpus(before, &status) {
                self.events
                    .publish(&written, news.bad, &news.reason, news.message)
                    .await;
            }
        }
        if plan.delete {
            let remaining: Vec<String> = reservation
                .finalizers()
                .iter()
                .filter(|f| *f != FINALIZER_PROVIDER)
                .cloned()
                .collect();
            let patch = serde_json::json!({"metadata": {"finalizers": remaining}});
            let patched = api
                .patch(
                    &reservation.name_any(),
                    &kube::api::PatchParams::default(),
                    &kube::api::Patch::Merge(&patch),
                )
                .await;
            api_writes::ignore_not_found(patched)
                .map_err(Error::kube("remove the reservation's finalizer"))?;
            let deleted = api
                .delete(&reservation.name_any(), &DeleteParams::default())
                .await;
            api_writes::ignore_not_found(deleted).map_err(Error::kube("delete the reservation"))?;
        }
        Ok(())
    }
}

/// Note of the Event about a phase; empty where the phase's name says all.
fn phase_note(reservation: &GpuReservation, phase: AllocationPhase) -> String {
    let lease = &reservation.spec.allocation.lease;
    match phase {
        AllocationPhase::Reserved => {
            let nodes = reservation.spec.nodes.join(", ");
            format!("for {}/{} on {nodes}", lease.namespace, lease.name)
        }
        _ => String::new(),
    }
}
