//! One pass over an allocation: reserve and sign, decline with a reason, or report what became of it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ObjectMeta};
use leasehold_crds::{
    ANNOTATION_ESCROW, FINALIZER_PROVIDER, GpuAllocation, GpuReservation,
    market::allocation::{Acceptance, GpuAllocationStatus},
    provider::reservation::GpuReservationSpec,
};
use leasehold_planner::{
    ports::{AcceptanceMessage, Payments as _},
    provider::{
        allocation::accept::{self, Plan, PoolSeen, World},
        offer::supply::PoolSupply,
        workload::labels,
    },
};
use leasehold_runtime::{
    Error, Process, api_writes, cache,
    queue::{ReconcileError, RequeueAfter},
};

use leasehold_telemetry::metrics::Controller;

use super::seen::AllocationSeen;
use crate::provider::{MANAGER, Provider, digest::Digest, offer::Supplies};

/// Its status is compared again so often, though nothing told of a change.
const LOOK_AGAIN: Duration = Duration::from_secs(120);

/// Adds the controller of GpuAllocations.
pub(crate) fn register(process: &mut Process, provider: &Arc<Provider>) {
    let context = provider.clone();
    process.add_controller(
        Controller::Allocation,
        64,
        (&provider.queues.allocations, &provider.caches.allocations),
        move |allocation| reconcile(allocation, context.clone()),
    );
}

/// Reconciles one allocation.
async fn reconcile(
    seen: Arc<AllocationSeen>,
    provider: Arc<Provider>,
) -> Result<RequeueAfter, ReconcileError> {
    let name = seen.name_any();
    let api = Api::<GpuAllocation>::namespaced(provider.market.clone(), &provider.namespace_at_market);
    let cached = || cache::get(&provider.caches.reservations, &name, None);
    let there = cached();
    let (allocation, told) = match there.as_ref().filter(|r| seen.has(r)) {
        Some(reservation) => (seen.reserved(reservation), seen.told()),
        None => match api
            .get_opt(&name)
            .await
            .map_err(Error::kube("read the allocation"))?
        {
            Some(now) => {
                let told = now.status.as_ref().map(Digest::of);
                (now, told)
            }
            None => return Ok(None),
        },
    };
    let (mut capacity, reservation) = match there {
        Some(there) => (None, Some(there)),
        None => {
            let capacity = provider.reserving.lock().await;
            // It may have come while others had their turn. Made before shown: never in neither.
            let made = provider.assumed.get(&name);
            (Some(capacity), cached().or(made))
        }
    };
    let now = provider.now();
    let mut plan = match (&mut capacity, &reservation) {
        (Some(capacity), None) => {
            let (supplies, new) = capacity.get(&provider).await?;
            let plan = provider.decide(&allocation, None, supplies, now);
            let refuses =
                allocation.status.as_ref().and_then(|s| s.declined.as_ref()) != plan.status.declined.as_ref();
            if refuses && !new {
                // Of what was counted a moment ago some may be free again.
                capacity.invalidate();
                provider.decide(&allocation, None, capacity.get(&provider).await?.0, now)
            } else {
                plan
            }
        }
        (_, reservation) => provider.decide(&allocation, reservation.as_deref(), &Supplies::new(), now),
    };
    if let Some(spec) = plan.reserve.take() {
        if let (Some(capacity), None) = (&mut capacity, &reservation) {
            // The next question counts it from here on, so that its turn need not wait for the API server.
            provider
                .assumed
                .assume(GpuReservation::new(&name, (*spec).clone()));
            capacity.subtract(&spec);
        }
        drop(capacity);
        let made = provider.reserve(&allocation, reservation.as_deref(), *spec).await;
        let made = made.inspect_err(|_| provider.assumed.observed(&name))?;
        // What is reserved is signed at once: a tenant waits.
        plan = provider.decide(&allocation, Some(&made), &Supplies::new(), now);
    } else {
        drop(capacity);
    }
    let status = match plan.accept {
        Some(message) => provider.sign(&allocation, plan.status, &message).await?,
        None => plan.status,
    };
    if told != Some(Digest::of(&status)) {
        match api_writes::apply_status(&api, &allocation, MANAGER, &status).await {
            // Taken back meanwhile: nobody is left to be told.
            Err(Error::Kube { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.code == 404) => {}
            other => {
                other?;
            }
        }
    }
    Ok(Some(LOOK_AGAIN))
}

impl Provider {
    /// The answer, by what each pool can sell.
    fn decide(
        &self,
        allocation: &GpuAllocation,
        reservation: Option<&GpuReservation>,
        supplies: &Supplies,
        now: Timestamp,
    ) -> Plan {
        let pool = cache::get(&self.caches.pools, &allocation.spec.pool, None).filter(|p| self.owns(p));
        let none = PoolSupply::default();
        let world = World {
            allocation,
            reservation,
            pool: pool.as_deref().map(|pool| PoolSeen {
                pool,
                supply: supplies.get(&pool.name_any()).unwrap_or(&none),
                currency: self.payment(pool),
            }),
            identity: &self.identity,
        };
        accept::decide(&world, now)
    }

    async fn reserve(
        &self,
        allocation: &GpuAllocation,
        before: Option<&GpuReservation>,
        spec: GpuReservationSpec,
    ) -> Result<GpuReservation, Error> {
        let name = allocation.name_any();
        let mut object = GpuReservation::new(&name, spec);
        object.metadata = ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels(&object.spec)),
            finalizers: Some(vec![FINALIZER_PROVIDER.into()]),
            annotations: Some(
                [(
                    ANNOTATION_ESCROW.to_owned(),
                    object.spec.allocation.escrow.id.clone(),
                )]
                .into(),
            ),
            resource_version: before.and_then(kube::ResourceExt::resource_version),
            ..ObjectMeta::default()
        };
        let made = api_writes::apply(&Api::all(self.client.clone()), &object, MANAGER).await?;
        if before.is_none() {
            tracing::info!(share = name, nodes = ?object.spec.nodes, "reserved");
        }
        Ok(made)
    }

    async fn sign(
        &self,
        allocation: &GpuAllocation,
        mut status: GpuAllocationStatus,
        message: &AcceptanceMessage,
    ) -> Result<GpuAllocationStatus, Error> {
        let network = self
            .network_of(&allocation.spec.escrow)
            .ok_or_else(|| Error::Object("there is no PaymentNetwork for this allocation's money".into()))?;
        let chain = self.payments.client(&network).await.map_err(Error::Object)?;
        let signature = chain
            .sign_acceptance(&self.key, message)
            .map_err(|e| Error::Object(e.to_string()))?;
        status.acceptance = Some(Acceptance {
            not_after: i64::try_from(message.not_after).unwrap_or(i64::MAX),
            deadline: i64::try_from(message.deadline).unwrap_or(i64::MAX),
            signature: format!("0x{}", data_encoding::HEXLOWER.encode(&signature)),
        });
        Ok(status)
    }
}
