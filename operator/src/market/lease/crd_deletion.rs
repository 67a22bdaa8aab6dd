//! A lease that goes because its kind is being deleted: none of the tenants asked for that, and what is paid is served on
//! (U5). Whoever deletes the kind waits for the finalizers, and is told so.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use leasehold_crds::{GpuLease, lease::GpuLeaseStatus};
use leasehold_planner::observed::Observed;

use crate::market::Market;

/// Name of the kind's definition.
const KIND: &str = "gpuleases.leasehold.dev";
/// The kind is asked for again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Market {
    /// The lease with the deletion that its tenant asked for, and without one that its kind brought; and when to ask again.
    pub(crate) async fn ignoring_crd_deletion(&self, lease: Arc<GpuLease>) -> (Arc<GpuLease>, Duration) {
        let deleting = lease.metadata.deletion_timestamp.is_some();
        if !deleting || !lease.status.as_ref().is_some_and(is_paid) {
            return (lease, Duration::MAX);
        }
        let why = match self.kind_goes().await {
            Observed::Known(false) => return (lease, Duration::MAX),
            Observed::Known(true) => {
                format!("{KIND} is being deleted; this lease is paid for, so it is served to its end")
            }
            Observed::Unknown(why) => why,
        };
        self.events.repeat(lease.as_ref(), true, "KindDeleted", why).await;
        let mut meant = (*lease).clone();
        meant.metadata.deletion_timestamp = None;
        (Arc::new(meant), LOOK_AGAIN)
    }

    async fn kind_goes(&self) -> Observed<bool> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        match api.get_metadata_opt(KIND).await {
            Ok(kind) => Observed::Known(kind.is_none_or(|k| k.metadata.deletion_timestamp.is_some())),
            Err(error) => Observed::Unknown(format!(
                "whether the tenant deleted this lease, or somebody its kind, can't be asked: {error}"
            )),
        }
    }
}

/// Whether it holds money that serves, and nothing has begun to end it.
fn is_paid(status: &GpuLeaseStatus) -> bool {
    status.phase.is_paid() && status.close_reason.is_none()
}
