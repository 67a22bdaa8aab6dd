//! The pod that probes a node: like the pod of a session with one GPU, but with a program that looks where it is and ends.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, Pod, PodSecurityContext, PodSpec, ResourceRequirements,
        SeccompProfile, SecurityContext,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use leasehold_crds::{GPU_RESOURCE, GpuPool, LABEL_PROBE, LABEL_PROVIDER};

use crate::provider::workload::{
    CONTAINER, End, NAME, end_of, main_container, no_host_devices, on_nodes, tolerations,
};

/// Annotation of a probe pod: its node.
const ANNOTATION_NODE: &str = "leasehold.dev/probe-node";
/// Annotation of a probe pod: what it proves; see [`identity`](super::identity).
const ANNOTATION_IDENTITY: &str = "leasehold.dev/probe-identity";
/// The kubelet ends the pod after this long, also if no operator runs.
const DEADLINE_SECONDS: i64 = 120;
/// Reason with which the kubelet ends a pod after its deadline.
const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

/// Name of the probe pod of a pool. It has at most one.
pub(super) fn name(pool: &str) -> String {
    format!("probe-{pool}")
}

/// The probe pod of a pool for one of its nodes, in the namespace of the checks of that provider. `image` is the operator's.
#[must_use]
pub fn probe_pod(
    pool: &GpuPool,
    (node, identity): (&str, &str),
    (namespace, provider, image): (&str, &str, &str),
) -> Pod {
    let pool_name = pool.metadata.name.as_deref().unwrap_or_default();
    let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Pod {
        metadata: ObjectMeta {
            name: Some(name(pool_name)),
            namespace: Some(namespace.to_owned()),
            labels: Some(
                [(LABEL_PROBE, pool_name), (LABEL_PROVIDER, provider)]
                    .map(pair)
                    .into(),
            ),
            annotations: Some(
                [(ANNOTATION_NODE, node), (ANNOTATION_IDENTITY, identity)]
                    .map(pair)
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            service_account_name: Some(NAME.into()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            host_users: Some(false),
            restart_policy: Some("Never".into()),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            termination_grace_period_seconds: Some(1),
            runtime_class_name: pool.spec.runtime_class_name.clone(),
            security_context: Some(PodSecurityContext {
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            tolerations: Some(tolerations(&pool.spec.tolerations).collect()),
            affinity: Some(Affinity {
                node_affinity: Some(on_nodes(&[node.to_owned()])),
                ..Affinity::default()
            }),
            containers: vec![container(image)],
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(image: &str) -> Container {
    let amounts = |cpu: &str, memory: &str| {
        let all = [("cpu", cpu), ("memory", memory), (GPU_RESOURCE, "1")];
        all.map(|(what, amount)| (what.to_owned(), Quantity(amount.to_owned())))
            .into_iter()
            .collect::<BTreeMap<_, _>>()
    };
    Container {
        name: CONTAINER.into(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: Some(vec!["check-user-namespace".into()]),
        env: Some(no_host_devices().collect()),
        resources: Some(ResourceRequirements {
            requests: Some(amounts("10m", "32Mi")),
            limits: Some(amounts("1", "64Mi")),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

/// A probe pod, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Name of the GpuPool.
    pub pool: String,
    /// Name of the Node that it probes.
    pub node: String,
    /// What it proves; see [`identity`](super::identity).
    pub identity: String,
    /// Whether it was bound to the node.
    pub is_bound: bool,
    /// Whether it is being deleted.
    pub is_leaving: bool,
    /// Why it does not start, in the words of the kubelet or of the scheduler.
    pub trouble: Option<String>,
    /// How it ended.
    pub end: Option<ProbeEnd>,
}

/// How a probe pod ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeEnd {
    /// Its program found what it looked for.
    Proven,
    /// Its program did not run, or did not find what it looked for. In the words of the program or of the kubelet.
    Failed(String),
    /// The cluster removed it, which tells nothing. In the words of the cluster.
    Lost(String),
}

impl ProbePod {
    /// Reads a pod, with the reason why it does not start; `None` if it is not a probe pod.
    #[must_use]
    pub fn of(pod: &Pod, trouble: Option<String>) -> Option<Self> {
        let meta = &pod.metadata;
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        Some(Self {
            pool: meta.labels.as_ref()?.get(LABEL_PROBE)?.clone(),
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            node: annotation(ANNOTATION_NODE).unwrap_or_default(),
            identity: annotation(ANNOTATION_IDENTITY).unwrap_or_default(),
            is_bound: pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()),
            is_leaving: meta.deletion_timestamp.is_some(),
            trouble,
            end: end(pod),
        })
    }
}

fn end(pod: &Pod) -> Option<ProbeEnd> {
    let is_overdue = pod.status.as_ref().and_then(|s| s.reason.as_deref()) == Some(DEADLINE_EXCEEDED);
    Some(match end_of(pod)? {
        End::Program { exit_code: 0, .. } => ProbeEnd::Proven,
        End::Program { exit_code, .. } => {
            let state = main_container(pod).and_then(|c| c.state.as_ref());
            let ended = state.and_then(|s| s.terminated.as_ref());
            let said = ended.and_then(|t| t.message.as_deref()).map(str::trim);
            let said = said.filter(|message| !message.is_empty());
            ProbeEnd::Failed(
                said.map_or_else(|| format!("it ended with exit code {exit_code}"), str::to_owned),
            )
        }
        End::Lost(words) | End::Refused(words) if is_overdue => ProbeEnd::Failed(words),
        End::Lost(words) | End::Refused(words) => ProbeEnd::Lost(words),
    })
}
