//! The pods of a workload, one for each node.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort,
        EmptyDirVolumeSource, EnvVar, HTTPGetAction, NodeAffinity, NodeSelector, NodeSelectorRequirement,
        NodeSelectorTerm, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, Probe,
        ResourceRequirements, SeccompProfile, SecurityContext, TCPSocketAction, Toleration, Volume,
        VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};
use leasehold_crds::{
    GPU_RESOURCE, GpuReservation,
    lease::workload::{Container as ContainerSpec, Port, Readiness, Storage, Workload},
    provider::pool::PoolToleration,
};

use super::{
    LABEL_INDEX, NAME, disruption, meta, name_of, rendezvous,
    storage::{VOLUME, claim_name},
};

/// Keeps a pod that was removed, or has ended, until the operator has stored what it tells.
pub const FINALIZER_POD: &str = "leasehold.dev/pod";
/// Name of the workload's container.
pub const CONTAINER: &str = "main";
/// Where `sshKeys` are mounted.
const SSH_PATH: &str = "/etc/leasehold/ssh";
/// Variable with a node's number in the reservation.
const INDEX: &str = "LEASEHOLD_INDEX";
const GRACE_SECONDS: i64 = 30;
/// Variables by which an image could request devices of the node beside its GPUs from NVIDIA's container runtime, and the
/// values that request none: storage, network, NVSwitch and GDRCopy devices, the control of MIG, and IMEX channels. A
/// variable of the pod overrides that of the image. `NVIDIA_VISIBLE_DEVICES` is not among them: the device plugin sets it.
/// Source: `internal/modifier/gated.go` and `cmd/nvidia-container-runtime-hook` of NVIDIA/nvidia-container-toolkit.
const NO_HOST_DEVICES: [(&str, &str); 7] = [
    ("NVIDIA_GDS", "disabled"),
    ("NVIDIA_MOFED", "disabled"),
    ("NVIDIA_NVSWITCH", "disabled"),
    ("NVIDIA_GDRCOPY", "disabled"),
    ("NVIDIA_MIG_CONFIG_DEVICES", ""),
    ("NVIDIA_MIG_MONITOR_DEVICES", ""),
    ("NVIDIA_IMEX_CHANNELS", ""),
];
/// Capabilities of a session: those that containers have by default without NET_RAW, with which a pod forges packets, and
/// MKNOD. sshd needs SYS_CHROOT, AUDIT_WRITE and the change of users; package managers change owners and modes.
const SESSION_CAPABILITIES: [&str; 12] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Group that owns the volumes.
pub(super) const FS_GROUP: i64 = 2000;

/// What each container of the workload requests and is limited to.
pub(super) fn resources(reservation: &GpuReservation) -> BTreeMap<String, Quantity> {
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

/// The pod of a node, by the index of the node in the reservation.
#[must_use]
pub fn pod_of(reservation: &GpuReservation, index: i64) -> Pod {
    let mut metadata = meta(reservation, &format!("{NAME}-{index}"));
    metadata
        .labels
        .get_or_insert_default()
        .insert(LABEL_INDEX.into(), index.to_string());
    metadata.annotations = Some(disruption::annotations());
    metadata.finalizers = Some(vec![FINALIZER_POD.into()]);
    // Drains refuse pods without a controller.
    metadata.owner_references = reservation.metadata.uid.as_ref().map(|uid| {
        vec![OwnerReference {
            api_version: "leasehold.dev/v1alpha1".into(),
            kind: "GpuReservation".into(),
            name: name_of(reservation),
            uid: uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]
    });
    Pod {
        metadata,
        spec: Some(spec(reservation, index)),
        status: None,
    }
}

/// A pod like those of the workload, in that namespace, for a dry run: whether the cluster admits it.
#[must_use]
pub fn sample_pod(reservation: &GpuReservation, namespace: &str) -> Pod {
    let mut pod = pod_of(reservation, 0);
    pod.metadata.namespace = Some(namespace.into());
    (pod.metadata.finalizers, pod.metadata.owner_references) = (None, None);
    pod
}

fn spec(reservation: &GpuReservation, index: i64) -> PodSpec {
    let user_namespaces = reservation.spec.hosting.user_namespaces;
    let spec = &reservation.spec.allocation;
    let restart_policy = if spec.workload.job.is_some() {
        "Never"
    } else {
        "Always"
    };
    PodSpec {
        service_account_name: Some(NAME.into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // Without user namespaces nobody is root on the node's kernel, not even a session.
        host_users: user_namespaces.then_some(false),
        restart_policy: Some(restart_policy.into()),
        hostname: Some(format!("{NAME}-{index}")),
        subdomain: rendezvous::subdomain(reservation),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        runtime_class_name: reservation.spec.hosting.runtime_class_name.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: (!user_namespaces).then_some(true),
            // An image that runs as another user can write to its volume.
            fs_group: spec.storage.is_some().then_some(FS_GROUP),
            fs_group_change_policy: spec.storage.is_some().then(|| "OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        tolerations: Some(
            tolerations(&reservation.spec.hosting.tolerations)
                .chain([
                    // A lost node is paused on the chain, and may come back with what runs on it: the five minutes that
                    // Kubernetes sets by default would end a job that still runs, and start it a second time.
                    tolerated("node.kubernetes.io/unreachable", "NoExecute"),
                    tolerated("node.kubernetes.io/not-ready", "NoExecute"),
                ])
                .collect(),
        ),
        affinity: Some(Affinity {
            node_affinity: Some(on_nodes(nodes_of(reservation, index))),
            ..Affinity::default()
        }),
        containers: vec![container(reservation, index)],
        volumes: Some(volumes(reservation, index)),
        ..PodSpec::default()
    }
}

/// The reserved node of a pod, to which its successors return.
fn nodes_of(reservation: &GpuReservation, index: i64) -> &[String] {
    let nodes = &reservation.spec.nodes;
    let own = usize::try_from(index).ok().and_then(|i| nodes.get(i..=i));
    own.unwrap_or(nodes)
}

fn volumes(reservation: &GpuReservation, index: i64) -> Vec<Volume> {
    let spec = &reservation.spec.allocation;
    // Frameworks pass tensors between processes by shared memory; the runtime's 64 MiB are too few. It counts as memory.
    let mut volumes = vec![Volume {
        name: "shm".into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity(spec.per_node.memory.clone())),
        }),
        ..Volume::default()
    }];
    if has_ssh(&spec.workload) {
        volumes.push(Volume {
            name: "ssh".into(),
            config_map: Some(ConfigMapVolumeSource {
                name: "ssh".into(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    if spec.storage.is_some() {
        let source = PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(index),
            read_only: None,
        };
        volumes.push(Volume {
            name: VOLUME.into(),
            persistent_volume_claim: Some(source),
            ..Volume::default()
        });
    }
    volumes
}

/// The ConfigMap with a session's SSH keys.
pub(super) fn ssh_keys(reservation: &GpuReservation) -> Option<ConfigMap> {
    let session = reservation.spec.allocation.workload.session.as_ref()?;
    (!session.ssh_keys.is_empty()).then(|| ConfigMap {
        metadata: meta(reservation, "ssh"),
        data: Some([("authorized_keys".to_owned(), session.ssh_keys.join("\n") + "\n")].into()),
        ..ConfigMap::default()
    })
}

fn has_ssh(workload: &Workload) -> bool {
    workload.session.as_ref().is_some_and(|s| !s.ssh_keys.is_empty())
}

/// Tolerations of the taint that the installers of device plugins set on nodes with GPUs, with any effect, and of the
/// taints that the pool tolerates.
pub(crate) fn tolerations(of_pool: &[PoolToleration]) -> impl Iterator<Item = Toleration> {
    let gpu = Toleration {
        key: Some(GPU_RESOURCE.into()),
        operator: Some("Exists".into()),
        ..Toleration::default()
    };
    std::iter::once(gpu).chain(of_pool.iter().map(|t| Toleration {
        key: Some(t.key.clone()),
        operator: Some(if t.value.is_some() { "Equal" } else { "Exists" }.into()),
        value: t.value.clone(),
        effect: t.effect.clone(),
        ..Toleration::default()
    }))
}

fn tolerated(key: &str, effect: &str) -> Toleration {
    Toleration {
        key: Some(key.into()),
        operator: Some("Exists".into()),
        effect: Some(effect.into()),
        ..Toleration::default()
    }
}

/// Only the reserved nodes. A field selector takes one name; terms are alternatives.
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

fn container(reservation: &GpuReservation, index: i64) -> Container {
    let spec = &reservation.spec.allocation;
    let default = ContainerSpec::default();
    let wanted = spec.workload.container().unwrap_or(&default);
    let ports = spec.workload.ports();
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let port = |p: &Port| ContainerPort {
        name: Some(p.name.clone()),
        container_port: i32::try_from(p.port).unwrap_or(0),
        ..ContainerPort::default()
    };
    let readiness = spec.workload.service.as_ref().and_then(|s| s.readiness.as_ref());
    // A session's tenant is root in its container: su, package managers and sshd need root and some capabilities.
    let is_root = spec.workload.session.is_some() && reservation.spec.hosting.user_namespaces;
    let all = resources(reservation);
    Container {
        name: CONTAINER.into(),
        image: Some(wanted.image.clone()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: some(&wanted.command),
        args: some(&wanted.args),
        env: Some(environment(reservation, wanted, index)),
        ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
        readiness_probe: readiness.map(probe),
        resources: Some(ResourceRequirements {
            limits: Some(all.clone()),
            requests: Some(all),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(mounts(&spec.workload, spec.storage.as_ref())),
        security_context: Some(SecurityContext {
            run_as_user: wanted.run_as_user,
            allow_privilege_escalation: Some(is_root),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: is_root.then(|| SESSION_CAPABILITIES.map(str::to_owned).into()),
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

/// The tenant's variables, then those that tell a node its place in the lease and those that the image must not set.
fn environment(reservation: &GpuReservation, wanted: &ContainerSpec, index: i64) -> Vec<EnvVar> {
    let spec = &reservation.spec.allocation;
    let lease = format!("{}/{}", spec.lease.namespace, spec.lease.name);
    let own = wanted.env.iter().map(|e| plain(&e.name, e.value.clone()));
    // A program may meet in another way: what the tenant sets itself is not set a second time.
    let mut rendezvous = rendezvous::variables(reservation, index);
    rendezvous.retain(|ours| wanted.env.iter().all(|e| e.name != ours.name));
    own.chain(rendezvous)
        .chain([
            plain("LEASEHOLD_LEASE", lease),
            plain("LEASEHOLD_NODES", spec.nodes.to_string()),
            plain("LEASEHOLD_FIRST_RANK", spec.first_rank.to_string()),
            plain(INDEX, index.to_string()),
        ])
        .chain(no_host_devices())
        .collect()
}

/// Variables with which no image opens devices of the node.
pub(crate) fn no_host_devices() -> impl Iterator<Item = EnvVar> {
    NO_HOST_DEVICES
        .map(|(name, value)| plain(name, value.into()))
        .into_iter()
}

fn plain(name: &str, value: String) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value),
        ..EnvVar::default()
    }
}

fn mounts(workload: &Workload, storage: Option<&Storage>) -> Vec<VolumeMount> {
    let mut mounts: Vec<VolumeMount> = storage
        .iter()
        .map(|s| VolumeMount {
            name: VOLUME.into(),
            mount_path: s.mount_path.clone(),
            ..VolumeMount::default()
        })
        .collect();
    mounts.push(VolumeMount {
        name: "shm".into(),
        mount_path: "/dev/shm".into(),
        ..VolumeMount::default()
    });
    if has_ssh(workload) {
        mounts.push(VolumeMount {
            name: "ssh".into(),
            mount_path: SSH_PATH.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
    mounts
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
