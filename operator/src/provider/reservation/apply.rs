//! Carries out the plan for a reservation: the objects of its workload, and calls to the chain.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{ANNOTATION_APPLIED, GpuReservation, provider::reservation::GpuReservationStatus};
use leasehold_planner::{
    escrow::Terms,
    ports::{PaymentError, Payments as _},
    provider::{
        offer::refusals::Refusal,
        reservation::{self as planner, LegCall, Plan, PodChange, Workload, World},
        workload::{FINALIZER_POD, Objects, ResultsObjects},
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
            Workload::Run { objects, pods } => self.run_workload(world, objects, pods).await,
            Workload::Halt(pods) => {
                self.applied.forget(&reservation.name_any());
                self.change_pods(reservation, pods).await
            }
            Workload::KeepResults(objects) => self.keep_results(reservation, objects).await,
            Workload::Remove => self.remove(&reservation.name_any()).await,
        };
        if let Err(error) = &applied
            && let Some(refusal) = error.refusal()
        {
            let at = self.now();
            let words = refusal.to_owned();
            self.applied
                .refused(&reservation.name_any(), Some(Refusal { at, words }));
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

    /// Applies all objects, unless the same were applied and their pods exist; then creates and removes pods.
    async fn run_workload(
        &self,
        world: &World<'_>,
        objects: &Objects,
        pods: &[PodChange],
    ) -> Result<(), Error> {
        let reservation = world.reservation;
        let name = reservation.name_any();
        let digest = Digest::of(objects);
        let creates = pods.iter().any(|change| matches!(change, PodChange::Create(_)));
        let exists = world.running.known().is_some_and(|r| r.namespace) && !creates;
        let namespace = cache::get(&self.caches.namespaces, &name, None);
        let mark = namespace.as_ref().and_then(|n| n.applied.as_deref());
        if !self.applied.is(&name, digest, exists, mark, self.now()) {
            self.applied.begin(&name);
            self.apply_all(reservation, objects).await?;
            let mut namespace = objects.namespace.clone();
            namespace
                .annotations_mut()
                .insert(ANNOTATION_APPLIED.to_owned(), digest.mark());
            api_writes::apply(&Api::<Namespace>::all(self.client.clone()), &namespace, MANAGER).await?;
            self.applied.done(&name, digest, self.now());
        }
        // Another process may have stored a stop, and removed the pods, since this reservation was read: a job would run twice.
        if creates && !self.is_current(reservation).await? {
            return Ok(());
        }
        self.change_pods(reservation, pods).await?;
        if creates {
            self.applied.refused(&name, None);
        }
        Ok(())
    }

    /// Creates and removes pods, in order.
    async fn change_pods(&self, reservation: &GpuReservation, changes: &[PodChange]) -> Result<(), Error> {
        let namespace = &reservation.name_any();
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        for change in changes {
            match change {
                PodChange::Create(pod) => self.create(namespace, &**pod).await?,
                PodChange::Remove {
                    name,
                    uid,
                    finalizers,
                    delete,
                } => {
                    if let Some(finalizers) = finalizers {
                        release(&pods, name, uid, finalizers).await?;
                    }
                    if *delete {
                        let params = api_writes::only_uid(uid);
                        unless_another(pods.delete(name, &params).await)
                            .map_err(Error::kube("delete a pod"))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Applies all objects in order.
    async fn apply_all(&self, reservation: &GpuReservation, all: &Objects) -> Result<(), Error> {
        let name = &reservation.name_any();
        let Objects {
            namespace,
            limits,
            policies,
            account,
            budget,
            access,
            ssh,
            volumes,
            services,
        } = all;
        // Isolation first: no pod exists before what confines it.
        api_writes::apply(&Api::<Namespace>::all(self.client.clone()), namespace, MANAGER).await?;
        let (limits, account, budget) = tokio::join!(
            self.put(name, limits),
            self.put(name, account),
            self.put(name, budget)
        );
        limits.and(account).and(budget)?;
        self.put_all(name, policies).await?;
        self.put_all(name, access).await?;
        self.put_all(name, ssh).await?;
        self.put_all(name, volumes).await?;
        self.put_all(name, services).await
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

    /// Deletes the namespace with everything in it.
    async fn remove(&self, name: &str) -> Result<(), Error> {
        self.applied.forget(name);
        self.release_pods(name).await?;
        if cache::get(&self.caches.namespaces, name, None).is_some_and(|n| n.goes()) {
            return Ok(());
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        api_writes::ignore_not_found(namespaces.delete(name, &DeleteParams::default()).await)
            .map_err(Error::kube("delete the lease's namespace"))
    }

    /// Removes our finalizer from the pods of a namespace, which would keep it.
    pub(crate) async fn release_pods(&self, namespace: &str) -> Result<(), Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        for pod in self.caches.pods.of(namespace) {
            if pod.finalizers().iter().any(|f| f == FINALIZER_POD) {
                let mut others = pod.finalizers().to_vec();
                others.retain(|f| f != FINALIZER_POD);
                release(&pods, &pod.name_any(), &pod.uid().unwrap_or_default(), &others).await?;
            }
        }
        Ok(())
    }
}

/// Leaves a pod these finalizers, if it still is this one.
async fn release(pods: &Api<Pod>, name: &str, uid: &str, finalizers: &[String]) -> Result<(), Error> {
    let patch = serde_json::json!({"metadata": {"uid": uid, "finalizers": finalizers}});
    let patched = pods
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    // Another pod has another UID, which is immutable. A policy of the cluster can refuse with the same code.
    let is_invalid = matches!(&patched, Err(kube::Error::Api(status)) if status.code == 422);
    if is_invalid {
        let read = pods.get_opt(name).await.map_err(Error::kube("read a pod"))?;
        if read.is_some_and(|pod| pod.uid().as_deref() == Some(uid)) {
            return patched.map(|_| ()).map_err(Error::kube("release a pod"));
        }
    }
    unless_another(patched).map_err(Error::kube("release a pod"))
}

/// `Ok` also when the object is gone, or another of its name is there.
fn unless_another<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        result => result.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::{Client, client::Body};
    use serde_json::{Value, json};

    use super::*;

    /// The release of a pod that the API server answers with that code. Then it has a pod with that UID.
    async fn released(code: u16, then: &str) -> Result<(), Error> {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let pods = Api::<Pod>::namespaced(Client::new(service, "default"), "lease-x");
        let serve = async {
            let (request, reply) = server.next_request().await.unwrap();
            assert_eq!(
                (request.method().as_str(), request.uri().path()),
                ("PATCH", "/api/v1/namespaces/lease-x/pods/lease-0")
            );
            let body = request.into_body().collect_bytes().await.unwrap();
            let patch: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(patch, json!({"metadata": {"uid": "u", "finalizers": ["a.b/c"]}}));
            let answer = match code {
                200 => json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lease-0"}}),
                code => {
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "code": code})
                }
            };
            let answer = Body::from(answer.to_string().into_bytes());
            reply.send_response(Response::builder().status(code).body(answer).unwrap());
            if code == 422 {
                let (_, reply) = server.next_request().await.unwrap();
                let pod =
                    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lease-0", "uid": then}});
                reply.send_response(Response::new(Body::from(pod.to_string().into_bytes())));
            }
        };
        let others = ["a.b/c".to_owned()];
        tokio::join!(release(&pods, "lease-0", "u", &others), serve).0
    }

    #[tokio::test]
    async fn only_the_pod_that_was_read_is_released() {
        for code in [200, 404, 409, 422] {
            released(code, "another").await.unwrap();
        }
        assert!(released(422, "u").await.is_err(), "a policy refused it");
        assert!(released(500, "u").await.is_err());
    }
}
