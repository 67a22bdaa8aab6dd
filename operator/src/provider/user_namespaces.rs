//! Probes whether pods with a GPU run in user namespaces: creates and removes the probe pods, and keeps what they have shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ListParams, PostParams},
};
use leasehold_crds::{GpuPool, provider::pool::UserNamespaceProof};
use leasehold_planner::provider::{
    offer::supply::PoolSupply,
    user_namespaces::{
        Change, Decision, FailedStart, Finished, Outcome, ProbePod, ReportedStarts, World, decide, newest,
        not_created, probe_pod,
    },
};
use leasehold_runtime::{Error, api_writes, cache};
use leasehold_telemetry::metrics::ProbeOutcome;

use super::{MANAGER, Provider, offer::Supplies, workload::observe::API_DEADLINE};

/// The words of the kubelet about a sandbox are read this often while a probe pod does not start.
const EVENTS_EVERY: Duration = Duration::from_secs(5);
/// Reason of the Events in which a kubelet tells that it can't create the sandbox of a pod.
const NO_SANDBOX: &str = "FailedCreatePodSandBox";

/// What the probes have shown, by pool: the status of a pool in the cache may be older.
#[derive(Default)]
pub(crate) struct Probes(Mutex<State>);

#[derive(Default)]
struct State {
    proofs: BTreeMap<String, Vec<UserNamespaceProof>>,
    reported_starts: ReportedStarts,
    /// Words about the sandboxes of probe pods, by UID, and when they were read.
    sandboxes: BTreeMap<String, (Instant, Option<String>)>,
}

impl Probes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, pool: &GpuPool, proofs: Vec<UserNamespaceProof>) {
        self.state().proofs.insert(pool.name_any(), proofs);
    }
}

impl Provider {
    /// The pool with what is known of user namespaces in its status.
    pub(super) fn with_proofs(&self, pool: &GpuPool) -> GpuPool {
        let mut pool = pool.clone();
        let state = self.probes.state();
        let Some(own) = state.proofs.get(&pool.name_any()) else {
            return pool;
        };
        let status = pool.status.get_or_insert_default();
        status.user_namespaces = newest(own, &status.user_namespaces);
        pool
    }

    /// The pool with what was decided last in its status, which no longer lists nodes that are gone.
    pub(super) fn with_decided_proofs(&self, pool: &GpuPool) -> GpuPool {
        let mut pool = pool.clone();
        if let Some(own) = self.probes.state().proofs.get(&pool.name_any()) {
            pool.status
                .get_or_insert_default()
                .user_namespaces
                .clone_from(own);
        }
        pool
    }

    /// All pools with what is known of user namespaces in their status.
    pub(super) fn pools_with_proofs(&self) -> Vec<GpuPool> {
        let pools = self.caches.pools.state();
        pools.iter().map(|pool| self.with_proofs(pool)).collect()
    }

    /// Decides which nodes are probed, and creates and removes probe pods.
    pub(super) async fn probe(&self, supplies: &Supplies, now: Timestamp) {
        let Some(namespace) = self.args.checks_namespace.as_deref() else {
            return;
        };
        let failed_starts = self.failed_starts(now);
        let pods = self.probe_pods(namespace).await;
        let pools = self.caches.pools.state_filter(|pool| self.owns(pool));
        for pool in &pools {
            let name = pool.name_any();
            let Some(supply) = supplies.get(&name) else {
                continue;
            };
            let own: Vec<ProbePod> = pods.iter().filter(|p| p.pool == name).cloned().collect();
            let known = (own.as_slice(), failed_starts.as_slice());
            let mut decision = self.decide(pool, supply, known, now);
            let creates = |d: &Decision| d.changes.iter().any(|c| matches!(c, Change::Create { .. }));
            if creates(&decision) {
                // A GPU that the probe gets must not be promised to a lease at the same time: both are decided by one at a time.
                let mut capacity = self.reserving.lock().await;
                if let Some(supply) = self.supply_now(&name, now).await {
                    decision = self.decide(pool, &supply, known, now);
                    self.carry_out(pool, namespace, decision, now).await;
                    capacity.invalidate();
                }
                continue;
            }
            self.carry_out(pool, namespace, decision, now).await;
        }
        let pools: BTreeSet<String> = pools.iter().map(|p| p.name_any()).collect();
        self.probes.state().proofs.retain(|name, _| pools.contains(name));
        for pod in pods.iter().filter(|p| !p.is_leaving && !pools.contains(&p.pool)) {
            delete(&self.client, namespace, &pod.name, &pod.uid).await;
        }
    }

    /// What the pool can sell beside every reservation, assumed ones included. The caller holds the capacity lock.
    async fn supply_now(&self, pool: &str, now: Timestamp) -> Option<PoolSupply> {
        match self.reserved().await {
            Ok(reserved) => self.supplies(&reserved, now).remove(pool),
            Err(error) => {
                error.log("GpuPool", pool);
                None
            }
        }
    }

    fn decide(
        &self,
        pool: &GpuPool,
        supply: &PoolSupply,
        (pods, failed_starts): (&[ProbePod], &[FailedStart]),
        now: Timestamp,
    ) -> Decision {
        let pool = self.with_proofs(pool);
        let world = World {
            pool: &pool,
            supply,
            pods,
            failed_starts,
        };
        decide(&world, now)
    }

    async fn carry_out(&self, pool: &GpuPool, namespace: &str, decision: Decision, now: Timestamp) {
        // The proofs are kept first: a node that is being probed holds a GPU from now on.
        self.probes.keep(pool, decision.proofs.clone());
        for finished in &decision.finished {
            self.finished(pool, finished).await;
        }
        for change in &decision.changes {
            match change {
                Change::Delete { name, uid } => delete(&self.client, namespace, name, uid).await,
                Change::Create { node, identity } => {
                    let place = (
                        namespace,
                        self.args.provider_name.as_str(),
                        self.args.image.as_str(),
                    );
                    let pod = probe_pod(pool, (node, identity), place);
                    tracing::info!(pool = pool.name_any(), node, "probes user namespaces");
                    if let Err(error) = create(&self.client, &pod).await {
                        error.log("GpuPool", &pool.name_any());
                        let refusal = error.refusal();
                        let (proofs, finished) = not_created(decision.proofs.clone(), node, refusal, now);
                        self.probes.keep(pool, proofs);
                        if let Some(finished) = finished {
                            self.finished(pool, &finished).await;
                        }
                    }
                }
            }
        }
        if !decision.finished.is_empty() {
            self.changed.notify_one();
        }
    }

    async fn finished(&self, pool: &GpuPool, finished: &Finished) {
        let Finished {
            node,
            outcome,
            message,
        } = finished;
        tracing::info!(
            pool = pool.name_any(),
            node,
            ?outcome,
            message,
            "probed user namespaces"
        );
        let (outcome, is_warning) = match outcome {
            Outcome::Proven => (ProbeOutcome::Proven, false),
            Outcome::Failed => (ProbeOutcome::Failed, true),
            Outcome::Interrupted => (ProbeOutcome::Interrupted, false),
            Outcome::Withdrawn => (ProbeOutcome::Withdrawn, true),
        };
        if let Some(probes) = &self.metrics.probes {
            probes.count(outcome);
        }
        if is_warning && let Some(object) = cache::get(&self.caches.gpu_nodes, node, None) {
            let note = format!("pods with a GPU do not run in user namespaces: {message}");
            self.events
                .publish(object.as_ref(), true, "ProbeFailed", note)
                .await;
        }
    }

    /// Pods of leases that have not started in their user namespace and were not counted before.
    fn failed_starts(&self, now: Timestamp) -> Vec<FailedStart> {
        let pods = self.caches.pods.all().state();
        let troubled = pods.iter().filter_map(|pod| {
            let uid = pod.meta().uid.as_deref()?;
            Some((uid, pod.node.as_deref()?, pod.start_trouble.as_ref()?))
        });
        self.probes.state().reported_starts.of(troubled, now)
    }

    /// The probe pods of this provider, with what the kubelet says of those that do not start.
    async fn probe_pods(&self, namespace: &str) -> Vec<ProbePod> {
        let seen = self.caches.pods.of(namespace);
        let mut pods: Vec<ProbePod> = seen.iter().filter_map(|p| p.probe.clone()).collect();
        for pod in &mut pods {
            let starts = pod.is_bound && pod.end.is_none() && !pod.is_leaving;
            if starts && pod.trouble.is_none() {
                pod.trouble = self.sandbox(namespace, &pod.uid).await;
            }
        }
        self.probes
            .state()
            .sandboxes
            .retain(|uid, _| pods.iter().any(|p| p.uid == *uid));
        pods
    }

    /// Why the sandbox of a pod can't be created: nothing but Events tells it.
    async fn sandbox(&self, namespace: &str, uid: &str) -> Option<String> {
        let known = self.probes.state().sandboxes.get(uid).cloned();
        if let Some((at, words)) = known
            && (at.elapsed() < EVENTS_EVERY || words.is_some())
        {
            return words;
        }
        let words = no_sandbox(&self.client, namespace, uid).await;
        let read = (Instant::now(), words.clone());
        self.probes.state().sandboxes.insert(uid.to_owned(), read);
        words
    }
}

async fn no_sandbox(client: &Client, namespace: &str, uid: &str) -> Option<String> {
    let fields = format!("involvedObject.uid={uid},reason={NO_SANDBOX}");
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    let params = ListParams::default().fields(&fields).limit(10);
    let listed = tokio::time::timeout(API_DEADLINE, events.list(&params)).await;
    match listed {
        Ok(Ok(events)) => events.items.into_iter().filter_map(|e| e.message).next_back(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "Events of a probe pod can't be read");
            None
        }
        Err(_) => None,
    }
}

async fn create(client: &Client, pod: &Pod) -> Result<(), Error> {
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    match tokio::time::timeout(API_DEADLINE, pods.create(&params, pod)).await {
        Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(()),
        Ok(created) => created.map(|_| ()).map_err(Error::kube("create a probe pod")),
        // It may have been created: it is seen within a moment, or counts as deleted.
        Err(_) => Ok(()),
    }
}

async fn delete(client: &Client, namespace: &str, name: &str, uid: &str) {
    let params = api_writes::only_uid(uid);
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let deleted = tokio::time::timeout(API_DEADLINE, pods.delete(name, &params)).await;
    if let Ok(deleted) = deleted
        && let Err(error) = api_writes::ignore_not_found(deleted).map_err(Error::kube("delete a probe pod"))
    {
        error.log("Pod", name);
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use leasehold_crds::provider::pool::GpuPoolSpec;
    use serde_json::{Value, json};

    use super::*;

    const NAMESPACE: &str = "lease-checks-a";

    /// A client whose only request is answered with this, and that request: its line and its body.
    async fn answered<T>(
        code: u16,
        answer: Value,
        ask: impl AsyncFnOnce(Client) -> T,
    ) -> (T, String, Option<Value>) {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let serve = async {
            let (request, reply) = server.next_request().await.unwrap();
            let line = format!("{} {}", request.method(), request.uri());
            let body = request.into_body().collect_bytes().await.unwrap();
            let answer = Body::from(answer.to_string().into_bytes());
            reply.send_response(Response::builder().status(code).body(answer).unwrap());
            (line, serde_json::from_slice(&body).ok())
        };
        let (given, (line, body)) = tokio::join!(ask(client), serve);
        (given, line, body)
    }

    fn error(code: u16, reason: &str, message: &str) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
    }

    async fn created(code: u16, answer: Value) -> Result<(), Error> {
        let pool = GpuPool::new("h100", GpuPoolSpec::default());
        let pod = probe_pod(&pool, ("node-1", "boot 1"), (NAMESPACE, "a", "operator:1"));
        let (created, line, body) = answered(code, answer, async |client| create(&client, &pod).await).await;
        assert!(
            line.starts_with("POST /api/v1/namespaces/lease-checks-a/pods?"),
            "{line}"
        );
        let body = body.unwrap();
        assert_eq!(body["spec"]["hostUsers"], false);
        assert_eq!(
            body["metadata"]["annotations"]["leasehold.dev/probe-node"],
            "node-1"
        );
        created
    }

    #[tokio::test]
    async fn a_probe_pod_is_created_once_and_a_refusal_is_told_in_its_words() {
        let made = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "probe-h100"}});
        created(201, made).await.unwrap();
        // Another operator that acts as leader has created it.
        created(409, error(409, "AlreadyExists", "exists")).await.unwrap();
        let words = "the pods of a lease must have hostUsers: false";
        let refused = created(403, error(403, "Forbidden", words)).await.unwrap_err();
        assert_eq!(refused.refusal(), Some(words));
        let away = created(503, error(503, "ServiceUnavailable", "away"))
            .await
            .unwrap_err();
        assert_eq!(away.refusal(), None);
    }

    #[tokio::test]
    async fn only_the_probe_pod_that_was_read_is_deleted() {
        for (code, answer) in [
            (
                200,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
            ),
            (404, error(404, "NotFound", "gone")),
            (409, error(409, "Conflict", "another UID")),
        ] {
            let deleting = async |client| delete(&client, NAMESPACE, "probe-h100", "u").await;
            let ((), line, body) = answered(code, answer, deleting).await;
            assert!(
                line.starts_with("DELETE /api/v1/namespaces/lease-checks-a/pods/probe-h100"),
                "{line}"
            );
            assert_eq!(body.unwrap()["preconditions"], json!({"uid": "u"}));
        }
    }

    #[tokio::test]
    async fn why_a_probe_pod_has_no_sandbox_is_read_from_its_events() {
        let words = "Failed to create pod sandbox: user namespaces are not supported";
        let events = json!({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": [
            {"metadata": {"name": "e"}, "involvedObject": {"uid": "u"}, "reason": NO_SANDBOX, "message": words}]});
        let read = async |client| no_sandbox(&client, NAMESPACE, "u").await;
        let (told, line, _) = answered(200, events, read).await;
        assert_eq!(told.as_deref(), Some(words));
        let path = "GET /api/v1/namespaces/lease-checks-a/events?";
        assert!(
            line.starts_with(path) && line.contains("involvedObject.uid%3Du"),
            "{line}"
        );
        assert!(line.contains(NO_SANDBOX), "{line}");
        let denied = answered(403, error(403, "Forbidden", "no"), read).await.0;
        assert_eq!(denied, None);
    }
}
