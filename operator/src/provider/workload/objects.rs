//! The objects of one share of a lease, from its reservation alone: a namespace that isolates a stranger, and the
//! workload in it. Pure: the same reservation always gives the same objects.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        batch::v1::{Job, JobSpec},
        core::v1::{
            Affinity, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort,
            EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, LimitRange, LimitRangeItem,
            LimitRangeSpec, Namespace, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec,
            PersistentVolumeClaimVolumeSource, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ResourceQuota, ResourceQuotaSpec, ResourceRequirements, SeccompProfile,
            SecurityContext, Service, ServiceAccount, ServicePort, ServiceSpec, TCPSocketAction, Toleration,
            Volume, VolumeMount, VolumeResourceRequirements,
        },
        networking::v1::{
            IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort, NetworkPolicySpec,
        },
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt as _;
use leasehold_crds::{
    ANNOTATION_ESCROW, GPU_RESOURCE, GpuReservation, LABEL_LEASE, LABEL_PROVIDER, PROVIDER_NAMESPACE_PREFIX,
    lease::workload::{Container as Wish, Port, Readiness, Workload},
    provider::{pool::Exposure, reservation::GpuReservationSpec},
};
use leasehold_planner::escrow::lease_name;

use super::{egress_denylist::Forbidden, results};

/// Name of the workload's container.
pub(crate) const CONTAINER: &str = "main";
/// Label with a node's rank in the lease.
pub(crate) const LABEL_RANK: &str = "leasehold.dev/rank";
/// Name of the workload, its ServiceAccount, its policies.
pub(crate) const NAME: &str = "lease";
/// ClusterRole with what `access.subjects` may do; the chart makes it.
const ACCESS_ROLE: &str = "leasehold-tenant-access";
/// Where `sshKeys` are put.
const SSH_PATH: &str = "/etc/leasehold/ssh";
/// Variable with a node's number at its provider.
const INDEX: &str = "LEASEHOLD_INDEX";
const GRACE_SECONDS: i64 = 30;
/// Group of volumes.
pub(crate) const FS_GROUP: i64 = 2000;

/// Everything of a share, in the order it is applied.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Objects {
    pub(crate) namespace: Namespace,
    pub(crate) quota: ResourceQuota,
    pub(crate) limits: LimitRange,
    pub(crate) policies: Vec<NetworkPolicy>,
    pub(crate) account: ServiceAccount,
    pub(crate) access: Option<RoleBinding>,
    pub(crate) ssh: Option<ConfigMap>,
    pub(crate) volumes: Vec<PersistentVolumeClaim>,
    pub(crate) services: Vec<Service>,
    pub(crate) set: Option<StatefulSet>,
    pub(crate) jobs: Vec<Job>,
}

/// Labels of a reservation and of whatever is made for it: of which lease it is, and whose.
pub(crate) fn labels(spec: &GpuReservationSpec) -> BTreeMap<String, String> {
    let provider = spec.allocation_namespace.strip_prefix(PROVIDER_NAMESPACE_PREFIX);
    [
        (LABEL_LEASE.to_owned(), lease_label(spec)),
        (LABEL_PROVIDER.to_owned(), provider.unwrap_or_default().to_owned()),
    ]
    .into()
}

fn lease_label(spec: &GpuReservationSpec) -> String {
    let id = spec.allocation.escrow.id.parse();
    id.map(lease_name).unwrap_or_default()
}

/// Builds the objects of a reservation, whose pods reach nothing of `forbidden`.
pub(crate) fn build(reservation: &GpuReservation, forbidden: &Forbidden) -> Objects {
    let name = reservation.name_any();
    let spec = &reservation.spec.allocation;
    let labels = labels(&reservation.spec);
    let meta = |object: &str| ObjectMeta {
        name: Some(object.into()),
        namespace: Some(name.clone()),
        labels: Some(labels.clone()),
        ..ObjectMeta::default()
    };
    let ports = ports(&spec.workload);
    let results = results::kept(reservation);
    let is_session = spec.workload.session.is_some();
    let ssh_keys = spec
        .workload
        .session
        .as_ref()
        .map(|s| s.ssh_keys.clone())
        .filter(|k| !k.is_empty());
    let template = |of_job: Option<OfJob>| PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(reservation, is_session, ssh_keys.is_some(), of_job)),
    };
    let selector = LabelSelector {
        match_labels: Some(labels.clone()),
        ..LabelSelector::default()
    };
    let nodes = i32::try_from(spec.nodes).unwrap_or(1);
    let claim = |claim: &str, size: &str| PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(claim.into()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: reservation.spec.hosting.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(size.into()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    };
    let set = spec.workload.job.is_none().then(|| StatefulSet {
        metadata: meta(NAME),
        spec: Some(StatefulSetSpec {
            replicas: Some(nodes),
            pod_management_policy: Some("Parallel".into()),
            service_name: Some(NAME.into()),
            selector: selector.clone(),
            template: template(None),
            volume_claim_templates: spec.storage.as_ref().map(|s| vec![claim("data", &s.size)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    });
    let job = |name: String, completions: i32, of: OfJob| Job {
        metadata: meta(&name),
        spec: Some(JobSpec {
            completions: Some(completions),
            parallelism: Some(completions),
            completion_mode: Some("Indexed".into()),
            backoff_limit: Some(0),
            template: template(Some(of)),
            ..JobSpec::default()
        }),
        ..Job::default()
    };
    let names = job_names(reservation);
    let jobs = match &spec.storage {
        None => names
            .into_iter()
            .map(|n| job(n, nodes, OfJob::AllNodes))
            .collect(),
        // A volume is one node's, and a Job has no claims of its pods' own: each node gets a Job.
        Some(_) => (0..).zip(names).map(|(i, n)| job(n, 1, OfJob::Node(i))).collect(),
    };
    let on_volumes = spec.storage.as_ref().filter(|_| spec.workload.job.is_some());
    let volumes = on_volumes.map_or_else(Vec::new, |s| {
        let volume = |index| PersistentVolumeClaim {
            metadata: meta(&claim_name(index)),
            ..claim("data", &s.size)
        };
        (0..spec.nodes).map(volume).collect()
    });
    Objects {
        namespace: Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(
                    labels
                        .iter()
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .chain([
                            (
                                "pod-security.kubernetes.io/enforce".to_owned(),
                                "baseline".to_owned(),
                            ),
                            (
                                "pod-security.kubernetes.io/warn".to_owned(),
                                "baseline".to_owned(),
                            ),
                        ])
                        .collect(),
                ),
                annotations: Some([(ANNOTATION_ESCROW.to_owned(), spec.escrow.id.clone())].into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        },
        quota: quota(
            meta(NAME),
            reservation,
            ports.len() + usize::from(results.is_some()),
        ),
        limits: LimitRange {
            metadata: meta(NAME),
            spec: Some(LimitRangeSpec {
                limits: vec![LimitRangeItem {
                    type_: "Container".into(),
                    max: Some(
                        resources(reservation)
                            .into_iter()
                            .filter(|(k, _)| k != GPU_RESOURCE)
                            .collect(),
                    ),
                    ..LimitRangeItem::default()
                }],
            }),
        },
        policies: policies(&meta, &ports, forbidden)
            .into_iter()
            .chain(results::policy(reservation))
            .collect(),
        account: ServiceAccount {
            metadata: meta(NAME),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        },
        access: (!spec.subjects.is_empty()).then(|| RoleBinding {
            metadata: meta(NAME),
            role_ref: RoleRef {
                api_group: "rbac.authorization.k8s.io".into(),
                kind: "ClusterRole".into(),
                name: ACCESS_ROLE.into(),
            },
            subjects: Some(
                spec.subjects
                    .iter()
                    .map(|s| Subject {
                        kind: s.kind.clone(),
                        name: s.name.clone(),
                        api_group: Some("rbac.authorization.k8s.io".into()),
                        namespace: None,
                    })
                    .collect(),
            ),
        }),
        ssh: ssh_keys.map(|keys| ConfigMap {
            metadata: meta("ssh"),
            data: Some([("authorized_keys".to_owned(), keys.join("\n") + "\n")].into()),
            ..ConfigMap::default()
        }),
        volumes,
        services: services(&meta, reservation, &ports)
            .into_iter()
            .chain(results::services(reservation))
            .collect(),
        set,
        jobs,
    }
}

/// Which pods of a job a template is for.
#[derive(Clone, Copy)]
enum OfJob {
    /// All of them, without volumes.
    AllNodes,
    /// That of one node, by its number here, with that node's volume.
    Node(i64),
}

/// Names of the Jobs of a reservation, none for other workloads.
pub(crate) fn job_names(reservation: &GpuReservation) -> Vec<String> {
    let spec = &reservation.spec.allocation;
    let jobs = match (&spec.workload.job, &spec.storage) {
        (None, _) => 0,
        (Some(_), None) => 1,
        (Some(_), Some(_)) => spec.nodes,
    };
    (0..jobs).map(|index| numbered(NAME, index)).collect()
}

/// Name of the volume of one node of a job.
pub(crate) fn claim_name(index: i64) -> String {
    numbered("data", index)
}

fn numbered(name: &str, index: i64) -> String {
    match index {
        0 => name.to_owned(),
        index => format!("{name}-{index}"),
    }
}

fn ports(workload: &Workload) -> Vec<Port> {
    workload
        .session
        .as_ref()
        .map(|s| s.ports.clone())
        .or_else(|| workload.service.as_ref().map(|s| s.ports.clone()))
        .unwrap_or_default()
}

fn resources(reservation: &GpuReservation) -> BTreeMap<String, Quantity> {
    let node = &reservation.spec.allocation.per_node;
    [
        ("cpu".to_owned(), Quantity(node.cpu.clone())),
        ("memory".to_owned(), Quantity(node.memory.clone())),
        (
            "ephemeral-storage".to_owned(),
            Quantity(node.ephemeral_storage.clone()),
        ),
        (GPU_RESOURCE.to_owned(), Quantity(node.gpus.to_string())),
    ]
    .into()
}

fn quota(metadata: ObjectMeta, reservation: &GpuReservation, ports: usize) -> ResourceQuota {
    let spec = &reservation.spec.allocation;
    let nodes = spec.nodes;
    ResourceQuota {
        metadata,
        spec: Some(ResourceQuotaSpec {
            hard: Some(
                [
                    (
                        format!("requests.{GPU_RESOURCE}"),
                        (nodes * spec.per_node.gpus).to_string(),
                    ),
                    ("pods".to_owned(), nodes.to_string()),
                    (
                        "persistentvolumeclaims".to_owned(),
                        if spec.storage.is_some() { nodes } else { 0 }.to_string(),
                    ),
                    ("services".to_owned(), (nodes + 1).to_string()),
                    (
                        "services.nodeports".to_owned(),
                        (i64::try_from(ports).unwrap_or(16) * nodes).to_string(),
                    ),
                    ("configmaps".to_owned(), "4".to_owned()),
                    ("secrets".to_owned(), "0".to_owned()),
                ]
                .into_iter()
                .map(|(k, v)| (k, Quantity(v)))
                .collect(),
            ),
            ..ResourceQuotaSpec::default()
        }),
        ..ResourceQuota::default()
    }
}

/// Nothing in, nothing out; then DNS and the internet out, the lease's own pods both ways, its open ports in.
fn policies(meta: &impl Fn(&str) -> ObjectMeta, ports: &[Port], forbidden: &Forbidden) -> Vec<NetworkPolicy> {
    let everything = LabelSelector::default();
    let block = |cidr: &str, except: Vec<String>| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.into(),
            except: Some(except),
        }),
        ..NetworkPolicyPeer::default()
    };
    let own = NetworkPolicyPeer {
        pod_selector: Some(everything.clone()),
        ..NetworkPolicyPeer::default()
    };
    let dns = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some([("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned())].into()),
            ..LabelSelector::default()
        }),
        pod_selector: Some(LabelSelector {
            match_labels: Some([("k8s-app".to_owned(), "kube-dns".to_owned())].into()),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    let port = |protocol: &str, port: i64| NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(i32::try_from(port).unwrap_or(0))),
        ..NetworkPolicyPort::default()
    };
    let mut policies = vec![
        NetworkPolicy {
            metadata: meta("deny-all"),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(everything.clone()),
                policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
                ..NetworkPolicySpec::default()
            }),
        },
        NetworkPolicy {
            metadata: meta("allow-internet"),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(results::selector("DoesNotExist")),
                policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
                ingress: Some(vec![NetworkPolicyIngressRule {
                    from: Some(vec![own.clone()]),
                    ports: None,
                }]),
                egress: Some(vec![
                    NetworkPolicyEgressRule {
                        to: Some(vec![own]),
                        ports: None,
                    },
                    NetworkPolicyEgressRule {
                        to: Some(vec![dns]),
                        ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
                    },
                    NetworkPolicyEgressRule {
                        to: Some(vec![
                            block("0.0.0.0/0", forbidden.v4.clone()),
                            block("::/0", forbidden.v6.clone()),
                        ]),
                        ports: None,
                    },
                ]),
            }),
        },
    ];
    if !ports.is_empty() {
        policies.push(NetworkPolicy {
            metadata: meta("allow-ports"),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(everything),
                policy_types: Some(vec!["Ingress".into()]),
                ingress: Some(vec![NetworkPolicyIngressRule {
                    from: None,
                    ports: Some(ports.iter().map(|p| port("TCP", p.port)).collect()),
                }]),
                egress: None,
            }),
        });
    }
    policies
}

/// One service a node, so that each has an address of its own; and a headless one, so that the nodes find each other.
fn services(
    meta: &impl Fn(&str) -> ObjectMeta,
    reservation: &GpuReservation,
    ports: &[Port],
) -> Vec<Service> {
    let spec = &reservation.spec.allocation;
    if spec.workload.job.is_some() {
        return Vec::new();
    }
    let labels = meta(NAME).labels;
    let headless = Service {
        metadata: meta(NAME),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: labels.clone(),
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    let kind = service_type(reservation);
    let exposed = (0..spec.nodes).filter(|_| !ports.is_empty()).map(|index| {
        let mut metadata = meta(&format!("{NAME}-{index}"));
        let mut selector = labels.clone().unwrap_or_default();
        selector.insert("apps.kubernetes.io/pod-index".into(), index.to_string());
        metadata
            .labels
            .get_or_insert_default()
            .insert(LABEL_RANK.into(), (spec.first_rank + index).to_string());
        Service {
            metadata,
            spec: Some(ServiceSpec {
                type_: Some(kind.into()),
                selector: Some(selector),
                external_traffic_policy: Some("Local".into()),
                ports: Some(
                    ports
                        .iter()
                        .map(|p| ServicePort {
                            name: Some(p.name.clone()),
                            port: i32::try_from(p.port).unwrap_or(0),
                            target_port: Some(IntOrString::String(p.name.clone())),
                            protocol: Some("TCP".into()),
                            ..ServicePort::default()
                        })
                        .collect(),
                ),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    });
    std::iter::once(headless).chain(exposed).collect()
}

pub(crate) const fn service_type(reservation: &GpuReservation) -> &'static str {
    match reservation.spec.hosting.exposure {
        Exposure::NodePort => "NodePort",
        Exposure::LoadBalancer => "LoadBalancer",
    }
}

/// Of the taint that device plugins' installers set on nodes with GPUs.
pub(crate) fn gpu_toleration() -> Toleration {
    tolerated(GPU_RESOURCE, "NoSchedule")
}

fn pod(reservation: &GpuReservation, is_session: bool, ssh: bool, of_job: Option<OfJob>) -> PodSpec {
    let user_namespaces = reservation.spec.hosting.user_namespaces;
    let spec = &reservation.spec.allocation;
    let one_a_node = LabelSelector {
        match_labels: Some([(LABEL_LEASE.to_owned(), lease_label(&reservation.spec))].into()),
        ..LabelSelector::default()
    };
    // Frameworks pass tensors between processes by shared memory; the runtime's 64 MiB are too few. It counts as memory.
    let mut volumes = vec![Volume {
        name: "shm".into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity(spec.per_node.memory.clone())),
        }),
        ..Volume::default()
    }];
    if ssh {
        volumes.push(Volume {
            name: "ssh".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: "ssh".into(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    if let Some(OfJob::Node(index)) = of_job {
        let source = PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(index),
            read_only: None,
        };
        volumes.push(Volume {
            name: "data".into(),
            persistent_volume_claim: Some(source),
            ..Volume::default()
        });
    }
    PodSpec {
        service_account_name: Some(NAME.into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // Without user namespaces nobody is root on the node's kernel: neither a session nor anything else.
        host_users: user_namespaces.then_some(false),
        restart_policy: Some(
            if spec.workload.job.is_some() {
                "Never"
            } else {
                "Always"
            }
            .into(),
        ),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        runtime_class_name: reservation.spec.hosting.runtime_class_name.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: (!user_namespaces).then_some(true),
            // An image that runs as somebody can write to its volume.
            fs_group: spec.storage.is_some().then_some(FS_GROUP),
            fs_group_change_policy: spec.storage.is_some().then(|| "OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        tolerations: Some(vec![
            gpu_toleration(),
            // A node that is lost is paused on the chain, and may come back with what runs on it: Kubernetes' own five
            // minutes would end a job that still runs, and begin it a second time.
            tolerated("node.kubernetes.io/unreachable", "NoExecute"),
            tolerated("node.kubernetes.io/not-ready", "NoExecute"),
        ]),
        affinity: Some(Affinity {
            node_affinity: Some(on_nodes(&reservation.spec.nodes)),
            pod_anti_affinity: Some(PodAntiAffinity {
                required_during_scheduling_ignored_during_execution: Some(vec![PodAffinityTerm {
                    label_selector: Some(one_a_node),
                    topology_key: "kubernetes.io/hostname".into(),
                    ..PodAffinityTerm::default()
                }]),
                ..PodAntiAffinity::default()
            }),
            ..Affinity::default()
        }),
        containers: vec![container(reservation, is_session, ssh, of_job)],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn tolerated(key: &str, effect: &str) -> Toleration {
    Toleration {
        key: Some(key.into()),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Toleration::default()
    }
}

/// Only on the nodes that are reserved. A term's field selector takes one name, terms are alternatives.
pub(crate) fn on_nodes(nodes: &[String]) -> NodeAffinity {
    let terms = nodes
        .iter()
        .map(|node| NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.clone()]),
            }]),
            match_expressions: None,
        })
        .collect();
    NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: terms,
        }),
        ..NodeAffinity::default()
    }
}

fn container(reservation: &GpuReservation, is_session: bool, ssh: bool, of_job: Option<OfJob>) -> Container {
    let user_namespaces = reservation.spec.hosting.user_namespaces;
    let spec = &reservation.spec.allocation;
    let default = Wish::default();
    let wish = spec.workload.container().unwrap_or(&default);
    let ports = ports(&spec.workload);
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let plain = |name: &str, value: String| EnvVar {
        name: name.into(),
        value: Some(value),
        ..EnvVar::default()
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.into(),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let index = match of_job {
        None => field(INDEX, "metadata.labels['apps.kubernetes.io/pod-index']"),
        Some(OfJob::AllNodes) => field(
            INDEX,
            "metadata.labels['batch.kubernetes.io/job-completion-index']",
        ),
        Some(OfJob::Node(index)) => plain(INDEX, index.to_string()),
    };
    let env = wish.env.iter().map(|e| plain(&e.name, e.value.clone())).chain([
        plain(
            "LEASEHOLD_LEASE",
            format!("{}/{}", spec.lease.namespace, spec.lease.name),
        ),
        plain("LEASEHOLD_NODES", spec.nodes.to_string()),
        plain("LEASEHOLD_FIRST_RANK", spec.first_rank.to_string()),
        index,
    ]);
    let mut mounts: Vec<VolumeMount> = spec
        .storage
        .iter()
        .map(|s| VolumeMount {
            name: "data".into(),
            mount_path: s.mount_path.clone(),
            ..VolumeMount::default()
        })
        .collect();
    mounts.push(VolumeMount {
        name: "shm".into(),
        mount_path: "/dev/shm".into(),
        ..VolumeMount::default()
    });
    if ssh {
        mounts.push(VolumeMount {
            name: "ssh".into(),
            mount_path: SSH_PATH.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    let all = resources(reservation);
    Container {
        name: CONTAINER.into(),
        image: Some(wish.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: some(&wish.command),
        args: some(&wish.args),
        env: Some(env.collect()),
        ports: (!ports.is_empty()).then(|| {
            ports
                .iter()
                .map(|p| ContainerPort {
                    name: Some(p.name.clone()),
                    container_port: i32::try_from(p.port).unwrap_or(0),
                    ..ContainerPort::default()
                })
                .collect()
        }),
        readiness_probe: spec
            .workload
            .service
            .as_ref()
            .and_then(|s| s.readiness.as_ref())
            .map(probe),
        resources: Some(ResourceRequirements {
            limits: Some(all.clone()),
            requests: Some(all),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(mounts),
        security_context: Some(SecurityContext {
            // A session's tenant is root in its box: su, package managers and sshd need it and the default set.
            allow_privilege_escalation: Some(is_session && user_namespaces),
            capabilities: (!(is_session && user_namespaces)).then(|| Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

fn probe(readiness: &Readiness) -> Probe {
    let port = IntOrString::Int(i32::try_from(readiness.port).unwrap_or(0));
    let (http_get, tcp_socket) = match &readiness.path {
        Some(path) => (
            Some(HTTPGetAction {
                path: Some(path.clone()),
                port,
                ..HTTPGetAction::default()
            }),
            None,
        ),
        None => (None, Some(TCPSocketAction { port, host: None })),
    };
    Probe {
        http_get,
        tcp_socket,
        period_seconds: Some(1),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests;
