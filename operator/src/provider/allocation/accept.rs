//! The controller of GpuAllocations: each is reserved and signed, declined with a reason, or its status updated.

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
        workload::{labels, sample_pod},
    },
};
use leasehold_runtime::{
    Error, Process,
    api_writes::{self, NotFound as _},
    cache,
    queue::{ReconcileError, RequeueAfter},
};
use leasehold_telemetry::metrics::{Class, Controller};
use tokio::sync::MutexGuard;

use super::{capacity::CapacitySnapshot, seen::AllocationSeen};
use crate::provider::{MANAGER, Provider, digest::Digest, offer::Supplies, workload::admission};

/// The status is compared again after this long without an event.
const COMPARE_AFTER: Duration = Duration::from_secs(120);

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

/// What was gathered.
struct Gathered<'a> {
    allocation: GpuAllocation,
    /// Digest of the status that the market has.
    published: Option<Digest>,
    reservation: Option<Arc<GpuReservation>>,
    /// Held while capacity may be reserved; `None` when a reservation exists.
    capacity: Option<MutexGuard<'a, CapacitySnapshot>>,
}

/// Reconciles one allocation.
async fn reconcile(
    seen: Arc<AllocationSeen>,
    provider: Arc<Provider>,
) -> Result<RequeueAfter, ReconcileError> {
    let Some(mut gathered) = provider.gather_allocation(&seen).await? else {
        return Ok(None);
    };
    let plan = provider.decide_allocation(&mut gathered).await?;
    let status = provider.apply_allocation(&mut gathered, plan).await?;
    provider.report_allocation(&gathered, &status).await?;
    Ok(Some(COMPARE_AFTER))
}

impl Provider {
    fn allocations(&self) -> Api<GpuAllocation> {
        Api::namespaced(self.market.clone(), &self.namespace_at_market)
    }

    /// Reads the allocation and its reservation. `None` when the allocation was deleted.
    async fn gather_allocation(&self, seen: &AllocationSeen) -> Result<Option<Gathered<'_>>, Error> {
        let name = seen.name_any();
        let cached = || cache::get(&self.caches.reservations, &name, None);
        let mut reservation = cached();
        let (allocation, published) = match reservation.as_ref().filter(|r| seen.has(r)) {
            Some(reservation) => (seen.reserved(reservation), seen.published()),
            None => {
                let read = self.allocations().get_opt(&name).await;
                match read.map_err(Error::kube("read the allocation"))? {
                    Some(allocation) => {
                        let published = allocation.status.as_ref().map(Digest::of);
                        (allocation, published)
                    }
                    None => return Ok(None),
                }
            }
        };
        let mut capacity = None;
        if reservation.is_none() {
            capacity = Some(self.reserving.lock().await);
            // It may have been made while this waited for the lock. Assumed ones are read before the cache: a reservation
            // that is observed in between is in both, never in neither.
            let assumed = self.assumed.get(&name);
            reservation = cached().or(assumed);
        }
        Ok(Some(Gathered {
            allocation,
            published,
            reservation,
            capacity,
        }))
    }

    /// Decides by the current capacity snapshot; an allocation is only declined by a fresh one, since capacity may have
    /// been freed.
    async fn decide_allocation(&self, gathered: &mut Gathered<'_>) -> Result<Plan, Error> {
        let (allocation, reservation) = (&gathered.allocation, gathered.reservation.as_deref());
        let now = self.now();
        let Some(capacity) = gathered.capacity.as_mut().filter(|_| reservation.is_none()) else {
            return Ok(self.plan_allocation(allocation, reservation, &Supplies::new(), now));
        };
        let (supplies, is_fresh) = capacity.get(self).await?;
        let plan = self.plan_allocation(allocation, None, supplies, now);
        if is_fresh || !plan.declines(allocation) {
            return Ok(plan);
        }
        capacity.invalidate();
        let (supplies, _) = capacity.get(self).await?;
        Ok(self.plan_allocation(allocation, None, supplies, now))
    }

    fn plan_allocation(
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

    /// Reserves, then signs the acceptance in the same reconcile, because a tenant waits for it.
    async fn apply_allocation(
        &self,
        gathered: &mut Gathered<'_>,
        plan: Plan,
    ) -> Result<GpuAllocationStatus, Error> {
        let (allocation, before) = (&gathered.allocation, gathered.reservation.as_deref());
        let mut capacity = gathered.capacity.take();
        let name = allocation.name_any();
        if let (Some(capacity), None, Some(spec)) = (&mut capacity, before, &plan.reserve) {
            // The next allocation counts it from here on, and need not wait for the API server.
            self.assumed.assume(GpuReservation::new(&name, (**spec).clone()));
            capacity.subtract(spec);
        }
        drop(capacity);
        if let Some(words) = self.refusal(&plan, before).await {
            self.assumed.observed(&name);
            return Ok(plan.refused(&words).status);
        }
        if let Some(spec) = plan.reserve {
            let reserved = self.reserve(allocation, before, *spec).await;
            reserved.inspect_err(|_| self.assumed.observed(&name))?;
        }
        match plan.accept {
            Some(message) => self.sign(allocation, plan.status, &message).await,
            None => Ok(plan.status),
        }
    }

    /// Why the cluster would refuse the pods of a new reservation, in its own words.
    async fn refusal(&self, plan: &Plan, before: Option<&GpuReservation>) -> Option<String> {
        let (spec, namespace) = (plan.to_admit(before)?, self.args.checks_namespace.as_deref()?);
        let reservation = GpuReservation::new("", spec.clone());
        admission::refusal(&self.client, &sample_pod(&reservation, namespace)).await
    }

    async fn reserve(
        &self,
        allocation: &GpuAllocation,
        before: Option<&GpuReservation>,
        spec: GpuReservationSpec,
    ) -> Result<(), Error> {
        let name = allocation.name_any();
        let mut object = GpuReservation::new(&name, spec);
        let escrow = object.spec.allocation.escrow.id.clone();
        object.metadata = ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels(&object.spec)),
            finalizers: Some(vec![FINALIZER_PROVIDER.into()]),
            annotations: Some([(ANNOTATION_ESCROW.to_owned(), escrow)].into()),
            resource_version: before.and_then(kube::ResourceExt::resource_version),
            ..ObjectMeta::default()
        };
        api_writes::apply(&Api::all(self.client.clone()), &object, MANAGER).await?;
        if before.is_none() {
            tracing::info!(reservation = name, nodes = ?object.spec.nodes, "reserved");
        }
        Ok(())
    }

    async fn sign(
        &self,
        allocation: &GpuAllocation,
        mut status: GpuAllocationStatus,
        message: &AcceptanceMessage,
    ) -> Result<GpuAllocationStatus, Error> {
        let network = self.network_of(&allocation.spec.escrow).ok_or_else(|| {
            Error::Object("there is no PaymentNetwork for this allocation's currency".into())
        })?;
        let chain = self.payments.client(&network).await;
        let chain = chain.map_err(|error| Error::Dependency {
            doing: "connect to the allocation's chain",
            class: error.class(),
            source: error.into(),
        })?;
        let signature = chain.sign_acceptance(&self.key, message);
        let signature = signature.map_err(|error| Error::Dependency {
            doing: "sign the acceptance",
            class: Class::User,
            source: error.into(),
        })?;
        status.acceptance = Some(Acceptance {
            not_after: i64::try_from(message.not_after).unwrap_or(i64::MAX),
            deadline: i64::try_from(message.deadline).unwrap_or(i64::MAX),
            signature: format!("0x{}", data_encoding::HEXLOWER.encode(&signature)),
        });
        Ok(status)
    }

    /// Writes the status where it differs from what the market has. An allocation that was deleted meanwhile needs none.
    async fn report_allocation(
        &self,
        gathered: &Gathered<'_>,
        status: &GpuAllocationStatus,
    ) -> Result<(), Error> {
        if gathered.published == Some(Digest::of(status)) {
            return Ok(());
        }
        let written =
            api_writes::apply_status(&self.allocations(), &gathered.allocation, MANAGER, status).await;
        match written {
            Err(error) if error.is_not_found() => Ok(()),
            written => written.map(|_| ()),
        }
    }
}
