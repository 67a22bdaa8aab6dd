//! What serves a job's results after its end: on each volume a pod of this operator's own image, without GPUs, without
//! rights and without a way out; a Service in front of it, which is there before the job runs so that its address is known
//! before the lease is closed; and what is seen of them.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Affinity, Capabilities, Container, ContainerPort, EnvVar, Namespace,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, SeccompProfile, SecurityContext, Service, ServicePort, ServiceSpec,
            TCPSocketAction, Volume, VolumeMount,
        },
        networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::{Api, ResourceExt as _};
use leasehold_crds::{
    ANNOTATION_RESULTS_UNTIL, GpuReservation, lease::workload::ResultsAt, shared::quantity,
};
use leasehold_planner::provider::{reservation::ResultsSeen, workload::results::Kept};
use leasehold_runtime::{Error, api_writes, cache};

use super::{
    objects::{self as build, FS_GROUP, NAME, labels},
    observe,
};
use crate::provider::{MANAGER, Provider, digest::Digest};

/// Label of the pods and Services that serve results: the node's rank in the lease.
pub(crate) const LABEL_RESULTS: &str = "leasehold.dev/results";
const PORT: i32 = 8080;
/// Where the volume is mounted.
const VOLUME: &str = "/results";
/// Who it runs as where nobody may be root.
const UNPRIVILEGED: i64 = 65532;
/// Most memory of one of these pods, bytes.
const MEMORY: u64 = 128 << 20;

/// What the reservation asks to be kept.
pub(crate) fn kept(reservation: &GpuReservation) -> Option<Kept> {
    let spec = &reservation.spec.allocation;
    Kept::of(&spec.workload, spec.storage.as_ref()).ok().flatten()
}

/// Which pods they are, or which they are not.
pub(crate) fn selector(operator: &str) -> LabelSelector {
    LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: LABEL_RESULTS.into(),
            operator: operator.into(),
            values: None,
        }]),
        match_labels: None,
    }
}

fn meta(reservation: &GpuReservation, index: i64) -> ObjectMeta {
    let rank = reservation.spec.allocation.first_rank + index;
    let mut labels = labels(&reservation.spec);
    labels.insert(LABEL_RESULTS.to_owned(), rank.to_string());
    ObjectMeta {
        name: Some(format!("results-{index}")),
        namespace: Some(reservation.name_any()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

/// The addresses, one a node.
pub(crate) fn services(reservation: &GpuReservation) -> Vec<Service> {
    if kept(reservation).is_none() {
        return Vec::new();
    }
    let service = |index| {
        let metadata = meta(reservation, index);
        Service {
            spec: Some(ServiceSpec {
                type_: Some(build::service_type(reservation).into()),
                selector: metadata.labels.clone(),
                ports: Some(vec![ServicePort {
                    name: Some("results".into()),
                    port: PORT,
                    target_port: Some(IntOrString::Int(PORT)),
                    protocol: Some("TCP".into()),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            metadata,
            ..Service::default()
        }
    };
    (0..reservation.spec.allocation.nodes).map(service).collect()
}

/// To these pods from anywhere, to their one port. They reach nothing: no other policy lets them out.
pub(crate) fn policy(reservation: &GpuReservation) -> Option<NetworkPolicy> {
    kept(reservation)?;
    let mut metadata = meta(reservation, 0);
    metadata.name = Some("allow-results".into());
    if let Some(labels) = &mut metadata.labels {
        labels.remove(LABEL_RESULTS);
    }
    Some(NetworkPolicy {
        metadata,
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector("Exists")),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: None,
                ports: Some(vec![NetworkPolicyPort {
                    protocol: Some("TCP".into()),
                    port: Some(IntOrString::Int(PORT)),
                    ..NetworkPolicyPort::default()
                }]),
            }]),
            egress: None,
        }),
    })
}

/// What serves them: it ends with success when they have been fetched, and is started again whenever else it ends.
pub(crate) fn jobs(reservation: &GpuReservation, image: &str) -> Vec<Job> {
    let Some(kept) = kept(reservation) else {
        return Vec::new();
    };
    let job = |index| {
        let metadata = meta(reservation, index);
        Job {
            spec: Some(JobSpec {
                completions: Some(1),
                parallelism: Some(1),
                backoff_limit: Some(1_000_000),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: metadata.labels.clone(),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(pod(reservation, &kept, image, index)),
                },
                ..JobSpec::default()
            }),
            metadata,
            ..Job::default()
        }
    };
    (0..reservation.spec.allocation.nodes).map(job).collect()
}

fn pod(reservation: &GpuReservation, kept: &Kept, image: &str, index: i64) -> PodSpec {
    // In a user namespace root reads whatever the tenant's program wrote, and is nobody outside; elsewhere a group's
    // member reads what is the group's or everybody's.
    let root = reservation.spec.hosting.user_namespaces;
    let user = if root { 0 } else { UNPRIVILEGED };
    PodSpec {
        service_account_name: Some(NAME.into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        host_users: root.then_some(false),
        restart_policy: Some("OnFailure".into()),
        termination_grace_period_seconds: Some(5),
        security_context: Some(PodSecurityContext {
            run_as_non_root: (!root).then_some(true),
            run_as_user: Some(user),
            run_as_group: Some(user),
            supplemental_groups: Some(vec![FS_GROUP]),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        tolerations: Some(vec![build::gpu_toleration()]),
        affinity: Some(Affinity {
            node_affinity: Some(build::on_nodes(&reservation.spec.nodes)),
            ..Affinity::default()
        }),
        containers: vec![container(reservation, kept, image, root)],
        volumes: Some(vec![Volume {
            name: "data".into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: build::claim_name(index),
                read_only: None,
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn container(reservation: &GpuReservation, kept: &Kept, image: &str, root: bool) -> Container {
    let spec = &reservation.spec.allocation;
    let output = spec.workload.job.as_ref().and_then(|j| j.output.clone());
    let output = output.unwrap_or_default();
    let size = spec.storage.as_ref().and_then(|s| quantity::bytes(&s.size).ok());
    let flags = [
        format!("--volume={VOLUME}"),
        format!("--name={}", output.path.rsplit('/').next().unwrap_or("results")),
        format!("--path={}", reservation.spec.allocation_uid),
        format!("--bytes-max={}", size.unwrap_or(0)),
        format!("--listen=0.0.0.0:{PORT}"),
    ];
    let directory = Some(&kept.directory).filter(|d| !d.is_empty());
    let recipients = output.recipients.iter().map(|key| format!("--recipient={key}"));
    // The namespace's limits are the tenant's node; nothing is requested, so that the node is sold whole.
    let at_most = |of: &str, most: u64| {
        let whole = quantity::bytes(of).unwrap_or(most);
        Quantity(whole.min(most).to_string())
    };
    let none = |what: &str| (what.to_owned(), Quantity("0".into()));
    Container {
        name: "results".into(),
        image: Some(image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(
            ["results".to_owned()]
                .into_iter()
                .chain(flags)
                .chain(directory.map(|d| format!("--directory={d}")))
                .chain(recipients)
                .collect(),
        ),
        env: Some(vec![EnvVar {
            name: "NVIDIA_VISIBLE_DEVICES".into(),
            value: Some("void".into()),
            ..EnvVar::default()
        }]),
        ports: Some(vec![ContainerPort {
            container_port: PORT,
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::Int(PORT),
                host: None,
            }),
            period_seconds: Some(2),
            ..Probe::default()
        }),
        resources: Some(ResourceRequirements {
            requests: Some([none("cpu"), none("memory"), none("ephemeral-storage")].into()),
            limits: Some(BTreeMap::from([
                ("memory".to_owned(), at_most(&spec.per_node.memory, MEMORY)),
                (
                    "ephemeral-storage".to_owned(),
                    at_most(&spec.per_node.ephemeral_storage, MEMORY),
                ),
            ])),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(vec![VolumeMount {
            name: "data".into(),
            mount_path: VOLUME.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        }]),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                // To read what is its owner's alone; the volume is mounted read-only.
                add: root.then(|| vec!["DAC_OVERRIDE".to_owned()]),
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

impl Provider {
    /// What is seen of a reservation's results.
    pub(crate) fn results_seen(
        &self,
        reservation: &GpuReservation,
        services: &[Arc<Service>],
    ) -> ResultsSeen {
        if kept(reservation).is_none() {
            return ResultsSeen::default();
        }
        let name = reservation.name_any();
        let mut pods = self.caches.pods.of(&name);
        pods.retain(|p| p.serves.is_some());
        let spec = &reservation.spec.allocation;
        let ranks = || spec.first_rank..spec.first_rank + spec.nodes;
        let fetched = |rank| pods.iter().any(|p| p.serves == Some(rank) && p.has_succeeded());
        ResultsSeen {
            at: ranks()
                .zip(&reservation.spec.nodes)
                .filter_map(|(rank, node)| {
                    let url = self.results_url(reservation, services, rank, node)?;
                    Some(ResultsAt {
                        node: rank,
                        url,
                        until: None,
                    })
                })
                .collect(),
            fetched: ranks().all(fetched),
            ready: pods.iter().filter(|p| p.ready || p.has_succeeded()).count(),
            trouble: pods.iter().find_map(|p| p.trouble.clone()).unwrap_or_default(),
        }
    }

    /// The allocation's uid in it keeps away who only scans ports.
    fn results_url(
        &self,
        reservation: &GpuReservation,
        services: &[Arc<Service>],
        rank: i64,
        node: &str,
    ) -> Option<String> {
        let service = services
            .iter()
            .find(|s| s.labels().get(LABEL_RESULTS) == Some(&rank.to_string()))?;
        let (host, port) = match observe::balanced(service) {
            Some(host) => (host, PORT),
            // Any node answers for the pod, wherever that runs.
            None => (
                self.node_port_host(cache::get(&self.caches.nodes, node, None).as_deref())?,
                service.spec.as_ref()?.ports.as_ref()?.first()?.node_port?,
            ),
        };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Some(format!(
            "http://{host}:{port}/{}",
            reservation.spec.allocation_uid
        ))
    }

    /// Applies what serves the results, unless the same was applied and pods are there.
    pub(crate) async fn keep_results(
        &self,
        reservation: &GpuReservation,
        until: Option<i64>,
    ) -> Result<(), Error> {
        let name = reservation.name_any();
        let all = build::build(reservation, &self.forbidden());
        let jobs = jobs(reservation, &self.args.image);
        let policy = policy(reservation);
        let pods = self.caches.pods.of(&name);
        let there = pods.iter().filter(|p| p.serves.is_some()).count();
        let digest = Digest::of(&(&jobs, &policy, until));
        if self
            .applied
            .is(&name, digest, there >= jobs.len(), None, self.now())
        {
            return Ok(());
        }
        self.applied.begin(&name);
        let mut namespace = all.namespace;
        let until = until.and_then(|s| jiff::Timestamp::from_second(s).ok());
        namespace
            .annotations_mut()
            .extend(until.map(|t| (ANNOTATION_RESULTS_UNTIL.to_owned(), t.to_string())));
        api_writes::apply(&Api::<Namespace>::all(self.client.clone()), &namespace, MANAGER).await?;
        for policy in all.policies.iter().chain(&policy) {
            self.put(&name, policy).await?;
        }
        for service in &services(reservation) {
            self.put(&name, service).await?;
        }
        if !self.is_current(reservation).await? {
            return Ok(());
        }
        for job in &jobs {
            self.make(&name, job).await?;
        }
        self.applied.done(&name, digest, self.now());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
