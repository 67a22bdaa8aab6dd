//! What serves a job's results after its end: on each volume a pod of the operator's own image, without GPUs, without rights
//! and without egress, and a Service in front of it. The Service exists before the job runs, so that its address is known
//! before the lease is closed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Affinity, Capabilities, Container, ContainerPort, EnvVar, Namespace,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, SeccompProfile, SecurityContext, Service, ServicePort, ServiceSpec,
            TCPSocketAction, Volume, VolumeMount,
        },
        networking::v1::{NetworkPolicy, NetworkPolicyPort, NetworkPolicySpec},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use leasehold_crds::{ANNOTATION_RESULTS_UNTIL, GpuReservation, shared::quantity};
use serde::Serialize;

use super::{
    ConnectorPods, EgressDenylist, NAME, Objects,
    connector::ingress,
    meta,
    pod::{FS_GROUP, on_nodes, tolerations},
    results::Retention,
    service::service_type,
    storage::claim_name,
};

/// Every object that serves a job's results, in the order in which they are applied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResultsObjects {
    /// The namespace of the reservation, with the time until which results are retained.
    pub namespace: Namespace,
    /// Traffic that is allowed.
    pub policies: Vec<NetworkPolicy>,
    /// Addresses of the results.
    pub services: Vec<Service>,
    /// The pods that serve them.
    pub jobs: Vec<Job>,
}

impl ResultsObjects {
    /// Builds the objects of a reservation, served by `image` until `until`, Unix seconds.
    #[must_use]
    pub fn of(
        reservation: &GpuReservation,
        denylist: &EgressDenylist,
        connector: &ConnectorPods,
        image: &str,
        until: Option<i64>,
    ) -> Self {
        let Objects {
            mut namespace,
            policies,
            ..
        } = Objects::of(reservation, denylist, connector);
        let until = until.and_then(|s| Timestamp::from_second(s).ok());
        namespace
            .metadata
            .annotations
            .get_or_insert_default()
            .extend(until.map(|t| (ANNOTATION_RESULTS_UNTIL.to_owned(), t.to_string())));
        Self {
            namespace,
            policies,
            services: services(reservation),
            jobs: jobs(reservation, image),
        }
    }
}

/// Label of the pods and Services that serve results: the node's rank in the lease.
pub const LABEL_RESULTS: &str = "leasehold.dev/results";
/// Port at which results are served.
pub const RESULTS_PORT: u16 = 8080;
/// The same in the type of Kubernetes.
pub const PORT: i32 = RESULTS_PORT as i32;
/// Where the volume is mounted.
const VOLUME: &str = "/results";
/// User that serves them where nobody may be root.
const UNPRIVILEGED: i64 = 65532;
/// Most memory of one of these pods, bytes.
const MEMORY: u64 = 128 << 20;

/// Selects the pods that serve results (`Exists`), or all others (`DoesNotExist`).
pub(super) fn selector(operator: &str) -> LabelSelector {
    LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: LABEL_RESULTS.into(),
            operator: operator.into(),
            values: None,
        }]),
        match_labels: None,
    }
}

/// Name of the Service and of the Job of the node with that index in the reservation.
pub(crate) fn service_name(index: i64) -> String {
    format!("results-{index}")
}

fn results_meta(reservation: &GpuReservation, index: i64) -> ObjectMeta {
    let rank = reservation.spec.allocation.first_rank + index;
    let mut metadata = meta(reservation, &service_name(index));
    metadata
        .labels
        .get_or_insert_default()
        .insert(LABEL_RESULTS.to_owned(), rank.to_string());
    metadata
}

/// The Services, one for each node.
pub(super) fn services(reservation: &GpuReservation) -> Vec<Service> {
    if Retention::of_reservation(reservation).is_none() {
        return Vec::new();
    }
    let service = |index| {
        let metadata = results_meta(reservation, index);
        Service {
            spec: Some(ServiceSpec {
                type_: Some(service_type(reservation).into()),
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

/// Allows traffic from anywhere, or from the connector, to the one port of these pods. They reach nothing: no policy allows them any egress.
pub(super) fn policy(reservation: &GpuReservation, connector: &ConnectorPods) -> Option<NetworkPolicy> {
    Retention::of_reservation(reservation)?;
    Some(NetworkPolicy {
        metadata: meta(reservation, "allow-results"),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector("Exists")),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![ingress(
                reservation,
                connector,
                vec![NetworkPolicyPort {
                    protocol: Some("TCP".into()),
                    port: Some(IntOrString::Int(PORT)),
                    ..NetworkPolicyPort::default()
                }],
            )]),
            egress: None,
        }),
    })
}

/// The Jobs that serve results: each succeeds when its results have been fetched, and is restarted when it fails.
pub(super) fn jobs(reservation: &GpuReservation, image: &str) -> Vec<Job> {
    let Some(retention) = Retention::of_reservation(reservation) else {
        return Vec::new();
    };
    let job = |index| {
        let metadata = results_meta(reservation, index);
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
                    spec: Some(pod(reservation, &retention, image, index)),
                },
                ..JobSpec::default()
            }),
            metadata,
            ..Job::default()
        }
    };
    (0..reservation.spec.allocation.nodes).map(job).collect()
}

fn pod(reservation: &GpuReservation, retention: &Retention, image: &str, index: i64) -> PodSpec {
    // In a user namespace root reads whatever the tenant's program wrote, and has no rights outside; elsewhere a member of
    // the group reads files of the group and of everybody.
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
        tolerations: Some(tolerations(&reservation.spec.hosting.tolerations).collect()),
        affinity: Some(Affinity {
            node_affinity: Some(on_nodes(&reservation.spec.nodes)),
            ..Affinity::default()
        }),
        containers: vec![container(reservation, retention, image, root)],
        volumes: Some(vec![Volume {
            name: "data".into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(index),
                read_only: None,
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn container(reservation: &GpuReservation, retention: &Retention, image: &str, root: bool) -> Container {
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
    let directory = Some(&retention.directory).filter(|d| !d.is_empty());
    let recipients = output.recipients.iter().map(|key| format!("--recipient={key}"));
    // The namespace limits a container to the tenant's node; nothing is requested, so that the whole node can be sold.
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

#[cfg(test)]
mod tests;
