//! What runs of a reservation, read off the caches: pods, readiness, GPUs held, ports, a job's end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease as Liveness,
        core::v1::{Namespace, Node, Service},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use leasehold_crds::{
    GpuReservation,
    lease::workload::{Endpoint, JobResult},
};
use leasehold_planner::{
    observed::Observed,
    provider::{
        health::{self, Health, KubeletReport, NodeReport},
        offer::refusals::Creation,
        reservation::{self as planner, JobEnd, Reading, Running, wants_live},
        workload::{self, AgentReports},
    },
};
use leasehold_runtime::cache;
use sha2::{Digest as _, Sha256};

use super::{log, pods::PodSeen};
use crate::provider::Provider;

/// An API server that takes longer does not answer, and nothing that must end in time waits for it.
pub(crate) const API_DEADLINE: Duration = Duration::from_secs(5);

impl Provider {
    /// Pods of a reservation's namespace, whether that is there, and how they were read.
    async fn pods_of(
        &self,
        reservation: &GpuReservation,
    ) -> Result<(Vec<Arc<PodSeen>>, bool, Reading), kube::Error> {
        let name = reservation.name_any();
        if !wants_live(reservation) {
            let mut pods = self.caches.pods.of(&name);
            pods.retain(|p| p.of_lease && p.serves.is_none());
            let namespace = cache::get(&self.caches.namespaces, &name, None).is_some();
            return Ok((pods, namespace, Reading::Cached));
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        if namespaces.get_opt(&name).await?.is_none() {
            return Ok((Vec::new(), false, Reading::Live));
        }
        let pods = Api::<PodSeen>::namespaced(self.client.clone(), &name);
        let mine = ListParams::default().labels(leasehold_crds::LABEL_LEASE);
        let pods = pods.list(&mine).await?.items;
        let pods = pods.into_iter().filter(|p| p.serves.is_none());
        Ok((pods.map(Arc::new).collect(), true, Reading::Live))
    }

    /// What runs of a reservation.
    pub(crate) async fn running(&self, reservation: &GpuReservation) -> Observed<Running> {
        let name = reservation.name_any();
        let (pods, namespace, reading) = match self.pods_of(reservation).await {
            Ok(read) => read,
            Err(error) => return Observed::Unknown(format!("what runs can't be read: {error}")),
        };
        let services = self.caches.services.of(&name);
        let nodes = usize::try_from(reservation.spec.allocation.nodes).unwrap_or_default();
        let mut running = Running {
            reading,
            namespace,
            uptimes: pods.iter().filter_map(|p| p.uptime.clone()).collect(),
            agents: self.agents_of(reservation),
            gpu_uuids: self.bound_gpus(reservation),
            endpoints: self.endpoints(reservation, &pods, &services),
            trouble: pods.iter().find_map(|p| p.trouble.clone()).unwrap_or_default(),
            results: self.results_seen(reservation, &services),
            without_isolation: without_isolation(reservation, &pods),
            ..Running::of(pods.iter().filter_map(|p| p.of_node()).collect())
        };
        let status = reservation.status.as_ref();
        if namespace && status.is_some_and(|s| s.phase.is_running()) {
            let creation = self.creation(&name, &pods, nodes);
            let allocation = &reservation.spec.allocation;
            self.refusals
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .observe(&allocation.pool, &allocation.escrow.payer, &creation);
            if let Creation::Refused(refusal) = creation {
                running.trouble = refusal.words;
            }
        }
        let known = status.is_some_and(|s| s.job.is_some());
        let end = planner::job_end(reservation, &running.pods).filter(|_| !known);
        let result = match end {
            Some(end) => Some(self.job_result(&name, end).await),
            None => None,
        };
        running.job = result;
        Observed::Known(running)
    }

    /// Whether the cluster created the pods of a reservation of so many nodes.
    fn creation(&self, name: &str, pods: &[Arc<PodSeen>], nodes: usize) -> Creation {
        if pods.len() >= nodes {
            let newest = pods.iter().filter_map(|p| p.created_at).max();
            return Creation::Created(newest.unwrap_or(Timestamp::UNIX_EPOCH));
        }
        let refusal = self.applied.refusal(name);
        refusal.map_or(Creation::Pending, Creation::Refused)
    }

    /// The result of a job with the log of the pod that decides. The log is optional: the result, and with it the end of the
    /// lease, never waits for it.
    async fn job_result(&self, namespace: &str, end: JobEnd<'_>) -> JobResult {
        let log_tail = log::tail(&self.client, namespace, end.pod).await;
        JobResult {
            exit_code: end.exit_code,
            log_digest: data_encoding::HEXLOWER.encode(&Sha256::digest(log_tail.as_bytes())),
            log_tail,
            finished_at: end
                .finished_at
                .map_or_else(|| self.now().to_string(), str::to_owned),
        }
    }

    /// When the agents of the nodes of a reservation reported.
    fn agents_of(&self, reservation: &GpuReservation) -> BTreeMap<String, AgentReports> {
        let reports = |node: &String| Some((node.clone(), AgentReports::of(&*self.agent_lease(node)?)));
        reservation.spec.nodes.iter().filter_map(reports).collect()
    }

    /// GPUs that the kubelets say the reservation's pods hold; those can run on its nodes alone.
    fn bound_gpus(&self, reservation: &GpuReservation) -> Vec<String> {
        let namespace = reservation.name_any();
        let mut uuids = Vec::new();
        for name in &reservation.spec.nodes {
            let node = cache::get(&self.caches.gpu_nodes, name, None);
            let holders = node.iter().filter_map(|n| n.status.as_ref());
            let holders = holders.flat_map(|s| &s.holders);
            let mine = holders.filter(|h| h.namespace == namespace);
            uuids.extend(mine.flat_map(|h| h.uuids.clone()));
        }
        uuids.sort();
        uuids
    }

    fn endpoints(
        &self,
        reservation: &GpuReservation,
        pods: &[Arc<PodSeen>],
        services: &[Arc<Service>],
    ) -> Vec<Endpoint> {
        let first = reservation.spec.allocation.first_rank;
        let node_host = |rank: i64| {
            let pod = pods.iter().find(|p| p.index.is_some_and(|i| i + first == rank));
            let node = pod
                .and_then(|p| p.node.as_deref())
                .and_then(|n| cache::get(&self.caches.nodes, n, None));
            self.node_port_host(node.as_deref())
        };
        workload::endpoints(reservation, services.iter().map(|s| &**s), node_host)
    }

    /// Where tenants reach ports of a node.
    pub(crate) fn node_port_host(&self, node: Option<&Node>) -> Option<String> {
        let everywhere = self.args.node_port_address.map(|a| a.to_string());
        everywhere.or_else(|| node.and_then(node_address))
    }

    /// How the GPUs are that a reservation holds.
    pub(crate) async fn health(&self, reservation: &GpuReservation, now: Timestamp) -> Health {
        let status = reservation.status.as_ref();
        let held = status.map_or(&[] as &[String], |s| s.gpu_uuids.as_slice());
        let names = &reservation.spec.nodes;
        let gpu_nodes: Vec<_> = names
            .iter()
            .map(|name| cache::get(&self.caches.gpu_nodes, name, None))
            .collect();
        let mut reports: Vec<_> = names
            .iter()
            .zip(&gpu_nodes)
            .map(|(name, node)| NodeReport {
                node: name,
                heard_at: self.agent_heard_at(name),
                status: node.as_ref().and_then(|n| n.status.as_ref()),
                kubelet: kubelet_report(cache::get(&self.caches.nodes, name, None).as_deref()),
            })
            .collect();
        let mut reachable_since = None;
        for report in reports.iter_mut().filter(|r| r.is_suspect()) {
            reachable_since = self.read_live(report).await;
        }
        health::assess(held, &reports, reachable_since, now)
    }

    /// Reads the Node and its agent's Lease from the API server, and returns the time since which the API server has
    /// answered.
    async fn read_live(&self, report: &mut NodeReport<'_>) -> Option<Timestamp> {
        let read = async {
            let nodes = Api::<Node>::all(self.client.clone());
            let leases = self.agent_lease(report.node).map(|lease| {
                let namespace = lease.namespace().unwrap_or_default();
                Api::<Liveness>::namespaced(self.client.clone(), &namespace)
            });
            let node = nodes.get_opt(report.node).await?;
            let lease = match &leases {
                Some(leases) => leases.get_opt(report.node).await?,
                None => None,
            };
            Ok::<_, kube::Error>((node, lease))
        };
        let answer = tokio::time::timeout(API_DEADLINE, read).await;
        let now = self.now();
        let answered = match answer {
            Ok(Ok((node, lease))) => {
                report.kubelet = kubelet_report(node.as_ref());
                report.heard_at = lease.as_ref().and_then(cache::renewed_at).max(report.heard_at);
                true
            }
            Ok(Err(_)) | Err(_) => false,
        };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers = answers.after(answered, now);
        answers.since()
    }

    fn agent_heard_at(&self, node: &str) -> Option<Timestamp> {
        self.agent_lease(node).and_then(|l| cache::renewed_at(&l))
    }

    /// An agent's sign of life is in the agent's namespace, which is ours but where a release of its own installed it.
    fn agent_lease(&self, node: &str) -> Option<Arc<Liveness>> {
        let agents = &self.caches.agents;
        cache::get(agents, node, Some(&self.args.common.process.namespace))
            .or_else(|| agents.find(|l| l.metadata.name.as_deref() == Some(node)))
    }

    /// Nodes whose agents were heard of lately.
    pub(crate) fn agents_heard(&self, now: Timestamp) -> BTreeSet<String> {
        let heard = |l: &Liveness| health::is_live(cache::renewed_at(l), now);
        let heard = self.caches.agents.state_filter(heard);
        heard.iter().map(|l| l.name_any()).collect()
    }
}

/// Pods of a reservation in user namespaces that are stored without one.
fn without_isolation(reservation: &GpuReservation, pods: &[Arc<PodSeen>]) -> Vec<String> {
    let wanted = reservation.spec.hosting.user_namespaces;
    let without = pods.iter().filter(|pod| wanted && !pod.in_user_namespace);
    without.map(|pod| pod.name_any()).collect()
}

/// The `Ready` condition; a Node without one has not begun to be ready.
fn kubelet_report(node: Option<&Node>) -> KubeletReport {
    let Some(node) = node else {
        return KubeletReport::Gone;
    };
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    let time = |t: &Option<Time>| t.as_ref().map(|t| t.0);
    match ready {
        Some(c) if c.status == "True" => KubeletReport::Ready,
        Some(c) => KubeletReport::NotReady {
            since: time(&c.last_transition_time).unwrap_or(Timestamp::MAX),
            heard_at: time(&c.last_heartbeat_time),
        },
        None => KubeletReport::NotReady {
            since: Timestamp::MAX,
            heard_at: None,
        },
    }
}

fn node_address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let of = |kind: &str| {
        addresses
            .iter()
            .find(|a| a.type_ == kind)
            .map(|a| a.address.clone())
    };
    of("ExternalIP").or_else(|| of("InternalIP"))
}
