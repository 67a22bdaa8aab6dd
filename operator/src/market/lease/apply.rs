//! Carries out the plan for a lease: its finalizer, its allocations, and calls to the chain.

use std::sync::Arc;

use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams},
};
use leasehold_crds::{
    ANNOTATION_ESCROW, ANNOTATION_KNOWN, FINALIZER_MARKET, GpuAllocation, GpuLease, LABEL_LEASE,
    LABEL_LEASE_UID, lease::GpuLeaseStatus,
};
use leasehold_planner::{
    escrow::lease_name,
    market::lease::{self, AllocationWrite, ChainCall, Plan, World},
    ports::{PaymentError, Payments as _},
};
use leasehold_runtime::{Error, api_writes};
use leasehold_telemetry::metrics::ChainAction;
use serde_json::json;

use super::gather::Handles;
use crate::market::{MANAGER, Market, allocation};

/// What was written, and what is to be reported.
pub(super) struct Written {
    pub(super) object: Arc<GpuLease>,
    pub(super) status: GpuLeaseStatus,
    /// Nothing but the status is to be written.
    pub(super) persist_only: bool,
}

impl Market {
    /// Carries out the plan. What must be stored before it is done (M2) is written first, and nothing else in that
    /// reconcile.
    pub(super) async fn apply(
        &self,
        world: &World,
        handles: &Handles,
        plan: Plan,
    ) -> (Written, Result<(), Error>) {
        let api =
            Api::<GpuLease>::namespaced(self.client.clone(), &world.lease.namespace().unwrap_or_default());
        let mut written = Written {
            object: world.lease.clone(),
            status: plan.status.clone(),
            persist_only: false,
        };
        let before = world.lease.status.clone().unwrap_or_default();
        let status_if_incomplete = plan.status_if_incomplete(&before);
        let mut finalizers = world.lease.finalizers().to_vec();
        if plan.finalizer == Some(true) && !finalizers.iter().any(|f| f == FINALIZER_MARKET) {
            finalizers.push(FINALIZER_MARKET.into());
            match api_writes::add_finalizer(&api, world.lease.as_ref(), &finalizers, ANNOTATION_KNOWN).await {
                Ok(object) => written.object = Arc::new(object),
                Err(error) => {
                    written.status = status_if_incomplete;
                    return (written, Err(error));
                }
            }
        }
        if plan.must_persist_first(world.lease.status.as_ref()) {
            written.persist_only = true;
            return (written, Ok(()));
        }
        let mut incomplete = Ok(());
        for write in plan.allocations {
            if let Err(error) = self.write_allocation(world, write).await {
                written.status = status_if_incomplete;
                incomplete = Err(error);
                break;
            }
        }
        // An allocation that the API server refuses to create again keeps no lease that is served from being paid.
        let may_call = |call: &ChainCall| incomplete.is_ok() || matches!(call, ChainCall::Fund { .. });
        if let Some(call) = plan.call.filter(may_call) {
            let called = self.call(handles, &call).await;
            if let Err(error) = called {
                let generation = world.lease.metadata.generation.unwrap_or_default();
                tracing::warn!(lease = world.lease.name_any(), namespace = world.lease.namespace(), %error, "transaction failed");
                lease::chain_failure(&mut written.status, &call, &error, generation, self.now());
                return (written, incomplete);
            }
        }
        (written, incomplete)
    }

    async fn write_allocation(&self, world: &World, write: AllocationWrite) -> Result<(), Error> {
        let api = |namespace: &str| Api::<GpuAllocation>::namespaced(self.client.clone(), namespace);
        match write {
            AllocationWrite::Create {
                namespace,
                name,
                escrow_id,
                spec,
            } => {
                let mut object = GpuAllocation::new(&name, *spec);
                object.metadata = ObjectMeta {
                    finalizers: Some(vec![FINALIZER_MARKET.into()]),
                    annotations: Some([(ANNOTATION_ESCROW.to_owned(), escrow_id.to_string())].into()),
                    ..api_writes::meta(
                        &name,
                        Some(&namespace),
                        &[
                            (LABEL_LEASE, &lease_name(escrow_id)),
                            (LABEL_LEASE_UID, &world.lease.uid().unwrap_or_default()),
                        ],
                    )
                };
                api_writes::apply(&api(&namespace), &object, MANAGER)
                    .await
                    .map(|_| ())
            }
            AllocationWrite::Release {
                namespace,
                name,
                drop_results,
            } => {
                let spec = json!({"release": true, "dropResults": drop_results});
                self.patch_spec(&api(&namespace), &name, spec).await
            }
            AllocationWrite::Prolong {
                namespace,
                name,
                not_after,
            } => {
                self.patch_spec(&api(&namespace), &name, json!({"notAfter": not_after}))
                    .await
            }
            AllocationWrite::Delete { namespace, name } => {
                let api = api(&namespace);
                match api
                    .get_opt(&name)
                    .await
                    .map_err(Error::kube("read an allocation"))?
                {
                    Some(object) => allocation::remove(&api, &object).await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn patch_spec(
        &self,
        api: &Api<GpuAllocation>,
        name: &str,
        spec: serde_json::Value,
    ) -> Result<(), Error> {
        let patch = Patch::Merge(json!({"spec": spec}));
        let params = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        };
        api_writes::ignore_not_found(api.patch(name, &params, &patch).await)
            .map_err(Error::kube("write an allocation"))
    }

    async fn call(&self, handles: &Handles, call: &ChainCall) -> Result<(), PaymentError> {
        let chain = handles
            .chain
            .as_ref()
            .ok_or_else(|| PaymentError::Unreachable("there is no usable PaymentNetwork".into()))?;
        let payer = || {
            handles
                .key
                .as_ref()
                .ok_or_else(|| PaymentError::Unreachable("the payer's key can't be read now".into()))
        };
        let receipt = match call {
            ChainCall::Open {
                terms,
                deposit,
                valid_until,
            } => self
                .payments
                .observed(
                    ChainAction::Open,
                    chain.open(payer()?, terms, *deposit, *valid_until),
                )
                .await
                .map(Some),
            ChainCall::Fund { terms, total } => {
                self.payments
                    .observed(ChainAction::Fund, chain.fund_to(payer()?, terms, *total))
                    .await
            }
            ChainCall::Close { terms, payouts } => self
                .payments
                .observed(ChainAction::Close, chain.close(&self.closer, terms, *payouts))
                .await
                .map(Some),
        }?;
        if let Some(receipt) = receipt {
            tracing::info!(transaction = %receipt.transaction, gas = receipt.gas_used, ?call, "mined");
        }
        Ok(())
    }
}
