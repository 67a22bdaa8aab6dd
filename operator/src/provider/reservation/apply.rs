//! Carries out the plan for a reservation: the objects of its workload, and calls to the chain.

use k8s_openapi::api::{apps::v1::StatefulSet, batch::v1::Job, core::v1::Namespace};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, PostParams, PropagationPolicy},
    core::NamespaceResourceScope,
};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{ANNOTATION_APPLIED, GpuReservation, provider::reservation::GpuReservationStatus};
use leasehold_planner::{
    escrow::Terms,
    ports::{PaymentError, Payments as _},
    provider::{
        reservation::{self as planner, LegCall, Plan, Workload, World},
        workload::{self, Objects, ResultsObjects},
    },
};
use leasehold_runtime::{Error, api_writes, cache};
use leasehold_telemetry::metrics::ChainAction;
use serde::{Serialize, de::DeserializeOwned};

use crate::provider::{MANAGER, Provider, digest::Digest};

impl Provider {
    /// Carries out the plan; a failed call to the chain is in the status that is returned.
    pub(super) async fn apply(
        &self,
        world: &World<'_>,
        chain: Option<&EvmEscrow>,
        plan: &Plan,
    ) -> (GpuReservationStatus, Result<(), Error>) {
        let reservation = world.reservation;
        let mut status = plan.status.clone();
        let applied = match &plan.workload {
            Workload::Keep => Ok(()),
            Workload::Run(objects) => self.run_workload(world, objects).await,
            Workload::Halt => self.halt(reservation).await,
            Workload::KeepResults(objects) => self.keep_results(reservation, objects).await,
            Workload::Remove => self.remove(&reservation.name_any()).await,
        };
        if let Err(error) = &applied
            && let Some(refusal) = error.refusal()
        {
            planner::object_refused(reservation, &mut status, refusal, self.now());
        }
        // A new intent is stored first; the next reconcile carries it out (M2).
        let stored = reservation.status.as_ref().and_then(|s| s.intent.clone()) == plan.status.intent;
        if let (Some(call), Some(chain), true) = (&plan.call, chain, stored)
            && let Err(error) = self.call(reservation, chain, call).await
        {
            tracing::warn!(reservation = reservation.name_any(), %error, "transaction failed");
            planner::chain_failure(reservation, &mut status, &error, self.now());
        }
        (status, applied)
    }

    async fn call(
        &self,
        reservation: &GpuReservation,
        chain: &EvmEscrow,
        call: &LegCall,
    ) -> Result<(), PaymentError> {
        let spec = &reservation.spec.allocation;
        let terms = Terms::from_wire(&spec.escrow).map_err(|e| PaymentError::Malformed(e.to_string()))?;
        let leg = u8::try_from(spec.leg.clamp(0, 15)).unwrap_or(0);
        let legs = 1u16 << leg;
        let (action, receipt) = match call {
            LegCall::Start => (
                ChainAction::Start,
                self.payments
                    .observed(ChainAction::Start, chain.start(&self.key, &terms, legs))
                    .await?,
            ),
            LegCall::Pause => (
                ChainAction::Pause,
                self.payments
                    .observed(ChainAction::Pause, chain.pause(&self.key, &terms, legs))
                    .await?,
            ),
            LegCall::CreditTo(total) => (
                ChainAction::Pause,
                self.payments
                    .observed(
                        ChainAction::Pause,
                        chain.credit_to(&self.key, &terms, leg, *total),
                    )
                    .await?,
            ),
            LegCall::End => (
                ChainAction::End,
                self.payments
                    .observed(ChainAction::End, chain.end_leg(&self.key, &terms, legs))
                    .await?,
            ),
            LegCall::Withdraw => {
                let rows = [(terms, legs)];
                (
                    ChainAction::Withdraw,
                    self.payments
                        .observed(ChainAction::Withdraw, chain.settle_many(&self.key, &rows))
                        .await?,
                )
            }
        };
        tracing::info!(reservation = reservation.name_any(), action = action.as_str(), transaction = %receipt.transaction, gas = receipt.gas_used, "mined");
        Ok(())
    }

    /// Applies all objects, unless the same were applied and their pods exist.
    async fn run_workload(&self, world: &World<'_>, objects: &Objects) -> Result<(), Error> {
        let reservation = world.reservation;
        let name = reservation.name_any();
        let digest = Digest::of(objects);
        let nodes = usize::try_from(reservation.spec.allocation.nodes).unwrap_or_default();
        let exists = world
            .running
            .known()
            .is_some_and(|r| r.namespace && r.pods_alive + r.pods_succeeded >= nodes)
            || reservation.status.as_ref().is_some_and(|s| s.job.is_some());
        let namespace = cache::get(&self.caches.namespaces, &name, None);
        let mark = namespace.as_ref().and_then(|n| n.applied.as_deref());
        if self.applied.is(&name, digest, exists, mark, self.now()) {
            return Ok(());
        }
        self.applied.begin(&name);
        if !self.apply_all(reservation, objects).await? {
            return Ok(());
        }
        let mut namespace = objects.namespace.clone();
        namespace
            .annotations_mut()
            .insert(ANNOTATION_APPLIED.to_owned(), digest.mark());
        api_writes::apply(&Api::<Namespace>::all(self.client.clone()), &namespace, MANAGER).await?;
        self.applied.done(&name, digest, self.now());
        Ok(())
    }

    /// Applies all objects in order; whether all of them exist now.
    async fn apply_all(&self, reservation: &GpuReservation, all: &Objects) -> Result<bool, Error> {
        let name = &reservation.name_any();
        let Objects {
            namespace,
            quota,
            limits,
            policies,
            account,
            budget,
            access,
            ssh,
            volumes,
            services,
            set,
            jobs,
        } = all;
        // Isolation first: no pod exists before what confines it.
        api_writes::apply(&Api::<Namespace>::all(self.client.clone()), namespace, MANAGER).await?;
        let (quota, limits, account, budget) = tokio::join!(
            self.put(name, quota),
            self.put(name, limits),
            self.put(name, account),
            self.put(name, budget)
        );
        quota.and(limits).and(account).and(budget)?;
        self.put_all(name, policies).await?;
        self.put_all(name, access).await?;
        self.put_all(name, ssh).await?;
        self.put_all(name, volumes).await?;
        self.put_all(name, services).await?;
        // Another process may have stored a stop, and stopped the workload, since this reservation was read: a job would
        // run twice.
        if !self.is_current(reservation).await? {
            return Ok(false);
        }
        if let Some(set) = set {
            self.create(name, set).await?;
        }
        for job in jobs {
            self.create(name, job).await?;
        }
        Ok(true)
    }

    /// Applies what serves results, unless the same was applied and its pods exist.
    async fn keep_results(
        &self,
        reservation: &GpuReservation,
        objects: &ResultsObjects,
    ) -> Result<(), Error> {
        let name = reservation.name_any();
        let pods = self.caches.pods.of(&name);
        let serving = pods.iter().filter(|p| p.serves.is_some()).count();
        let digest = Digest::of(objects);
        let exists = serving >= objects.jobs.len();
        if self.applied.is(&name, digest, exists, None, self.now()) {
            return Ok(());
        }
        self.applied.begin(&name);
        let ResultsObjects {
            namespace,
            policies,
            services,
            jobs,
        } = objects;
        api_writes::apply(&Api::<Namespace>::all(self.client.clone()), namespace, MANAGER).await?;
        self.put_all(&name, policies).await?;
        self.put_all(&name, services).await?;
        if !self.is_current(reservation).await? {
            return Ok(());
        }
        for job in jobs {
            self.create(&name, job).await?;
        }
        self.applied.done(&name, digest, self.now());
        Ok(())
    }

    /// Whether the reservation is unchanged since it was read. Otherwise its change enqueues another reconcile.
    async fn is_current(&self, read: &GpuReservation) -> Result<bool, Error> {
        let reservations = Api::<GpuReservation>::all(self.client.clone());
        let now = reservations
            .get_opt(&read.name_any())
            .await
            .map_err(Error::kube("read the reservation"))?;
        Ok(now.is_some_and(|r| r.resource_version() == read.resource_version()))
    }

    /// Creates what runs. It is never changed afterwards: an operator that would build its pods differently restarts none.
    async fn create<K>(&self, namespace: &str, object: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        let params = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        let created = Api::<K>::namespaced(self.client.clone(), namespace)
            .create(&params, object)
            .await;
        match created {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            created => created.map(|_| ()).map_err(Error::kube("create the workload")),
        }
    }

    async fn put<K>(&self, namespace: &str, object: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        api_writes::apply(
            &Api::<K>::namespaced(self.client.clone(), namespace),
            object,
            MANAGER,
        )
        .await
        .map(|_| ())
    }

    async fn put_all<'a, K>(
        &self,
        namespace: &str,
        objects: impl IntoIterator<Item = &'a K>,
    ) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug
            + 'a,
    {
        for object in objects {
            self.put(namespace, object).await?;
        }
        Ok(())
    }

    /// Deletes the pods; namespace and volumes stay.
    async fn halt(&self, reservation: &GpuReservation) -> Result<(), Error> {
        let name = &reservation.name_any();
        self.applied.forget(name);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        let sets = Api::<StatefulSet>::namespaced(self.client.clone(), name);
        api_writes::ignore_not_found(sets.delete(workload::NAME, &params).await)
            .map_err(Error::kube("stop the workload"))?;
        let jobs = Api::<Job>::namespaced(self.client.clone(), name);
        for job in workload::job_names(reservation) {
            api_writes::ignore_not_found(jobs.delete(&job, &params).await)
                .map_err(Error::kube("stop the job"))?;
        }
        Ok(())
    }

    /// Deletes the namespace with everything in it.
    async fn remove(&self, name: &str) -> Result<(), Error> {
        self.applied.forget(name);
        if cache::get(&self.caches.namespaces, name, None).is_some_and(|n| n.goes()) {
            return Ok(());
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        api_writes::ignore_not_found(namespaces.delete(name, &DeleteParams::default()).await)
            .map_err(Error::kube("delete the lease's namespace"))
    }
}
