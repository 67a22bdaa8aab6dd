//! The cause of a lease's deletion: its tenant, or the deletion of its CRD, which no tenant asked for (U5).

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use leasehold_crds::GpuLease;
use leasehold_planner::{
    market::lease::{Deletion, needs_deletion_cause},
    observed::Observed,
};

use crate::market::Market;

/// Name of the CRD.
const CRD: &str = "gpuleases.leasehold.dev";

impl Market {
    /// The deletion of a lease; reads the CRD where the cause matters.
    pub(super) async fn deletion(&self, lease: &GpuLease) -> Deletion {
        let crd_is_deleted = if needs_deletion_cause(lease) {
            Some(self.crd_is_deleted().await)
        } else {
            None
        };
        Deletion::of(lease, crd_is_deleted)
    }

    async fn crd_is_deleted(&self) -> Observed<bool> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        match api.get_metadata_opt(CRD).await {
            Ok(crd) => Observed::Known(crd.is_none_or(|crd| crd.metadata.deletion_timestamp.is_some())),
            Err(error) => Observed::Unknown(format!(
                "cannot read whether the tenant deleted this lease, or its CRD is being deleted: {error}"
            )),
        }
    }
}
