//! The fields of each pod that are used here, some hundred bytes: a provider keeps all pods of its cluster in memory.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, api::ObjectMeta};
use leasehold_crds::LABEL_LEASE;
use leasehold_planner::{
    provider::{
        offer::pod_requests,
        reservation::NodePod,
        user_namespaces::{ProbePod, StartTrouble, start_trouble},
        workload::{End, LABEL_INDEX, LABEL_RESULTS, Uptime, end_of, has_run, main_container, removal_of},
    },
    request::Shape,
};
use serde::Deserialize;

/// A pod.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Pod")]
#[serde(from = "pod_requests::FullPod")]
pub(crate) struct PodSeen {
    /// Name, namespace, UID, version and finalizers; nothing else.
    metadata: ObjectMeta,
    /// When the API server created it.
    pub(crate) created_at: Option<Timestamp>,
    /// The node it was bound to.
    pub(crate) node: Option<String>,
    /// What the scheduler counts for it.
    pub(crate) requests: Shape,
    pub(crate) life: Life,
    /// Its containers are ready, and it is not being deleted.
    pub(crate) ready: bool,
    /// Its containers run or have run.
    pub(crate) has_run: bool,
    /// Since when it runs, as its kubelet reports it; `None` once it has ended or is being deleted, and for pods of others.
    pub(crate) uptime: Option<Uptime>,
    /// Whether it is being deleted.
    pub(crate) is_leaving: bool,
    /// Since when somebody else than its program removes it, in Unix seconds.
    pub(crate) removed_at: Option<i64>,
    /// How it ended.
    pub(crate) end: Option<End>,
    /// Why it is not ready, as reported by the kubelet and the scheduler.
    pub(crate) trouble: Option<String>,
    /// Whether it is of a lease.
    pub(crate) of_lease: bool,
    /// Whether it is in a user namespace (`hostUsers: false`), as the API server stored it.
    pub(crate) in_user_namespace: bool,
    /// Index of its node in the reservation.
    pub(crate) index: Option<i64>,
    /// Node of the lease whose results it serves.
    pub(crate) serves: Option<i64>,
    /// Why it has not started in its user namespace; `None` for pods of others.
    pub(crate) start_trouble: Option<StartTrouble>,
    /// What it tells of user namespaces, if it probes them.
    pub(crate) probe: Option<ProbePod>,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Not ended yet: it holds what it requests.
    Alive,
    Succeeded,
    Failed,
}

impl PodSeen {
    /// Whether it has ended and holds nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.life != Life::Alive
    }

    /// Whether all of it ended well.
    pub(crate) fn has_succeeded(&self) -> bool {
        self.life == Life::Succeeded
    }

    /// What decisions about a reservation need to know of its pod; `None` for other pods.
    pub(crate) fn of_node(&self) -> Option<NodePod> {
        Some(NodePod {
            index: self.index.filter(|_| self.of_lease)?,
            name: self.metadata.name.clone()?,
            uid: self.metadata.uid.clone()?,
            is_leaving: self.is_leaving,
            is_ready: self.ready,
            has_run: self.has_run,
            removed_at: self.removed_at,
            end: self.end.clone(),
            finalizers: self.metadata.finalizers.clone().unwrap_or_default(),
        })
    }
}

impl From<pod_requests::FullPod> for PodSeen {
    fn from(seen: pod_requests::FullPod) -> Self {
        let requests = pod_requests::pod_requests(&seen);
        let pod = seen.pod;
        let number = |key: &str| pod.metadata.labels.as_ref()?.get(key)?.parse().ok();
        let labels = pod.metadata.labels.as_ref();
        let of_lease = labels.is_some_and(|l| l.contains_key(LABEL_LEASE));
        let leaves = pod.metadata.deletion_timestamp.is_some();
        let life = match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
            Some("Succeeded") => Life::Succeeded,
            Some("Failed") => Life::Failed,
            _ => Life::Alive,
        };
        let runs = life == Life::Alive && !leaves;
        let trouble = trouble(&pod);
        Self {
            created_at: pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            requests,
            life,
            ready: is_ready(&pod),
            has_run: has_run(&pod),
            uptime: (of_lease && runs).then(|| Uptime::of(&pod)),
            is_leaving: leaves,
            removed_at: removal_of(&pod).map(|r| r.at.as_second()),
            end: end_of(&pod),
            start_trouble: start_trouble(&pod).filter(|_| of_lease),
            probe: ProbePod::of(&pod, trouble.clone()),
            trouble,
            of_lease,
            in_user_namespace: pod.spec.as_ref().is_some_and(|s| s.host_users == Some(false)),
            index: number(LABEL_INDEX),
            serves: number(LABEL_RESULTS),
            metadata: ObjectMeta {
                name: pod.metadata.name,
                namespace: pod.metadata.namespace,
                uid: pod.metadata.uid,
                resource_version: pod.metadata.resource_version,
                finalizers: pod.metadata.finalizers,
                ..ObjectMeta::default()
            },
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn trouble(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    match end_of(pod) {
        Some(End::Lost(words) | End::Refused(words)) => return Some(format!("{name}: {words}")),
        Some(End::Program { .. }) => return None,
        None => {}
    }
    if let Some(removal) = removal_of(pod) {
        return Some(format!("{name}: {}", removal.words));
    }
    let waiting = main_container(pod).and_then(|c| c.state.as_ref()?.waiting.as_ref());
    if let Some(waiting) = waiting
        && let Some(reason) = waiting
            .reason
            .as_deref()
            .filter(|r| *r != "ContainerCreating" && *r != "PodInitializing")
    {
        let message = waiting.message.as_deref().unwrap_or_default();
        return Some(format!("{name}: {reason} {message}"));
    }
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let unscheduled = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let message = unscheduled.message.as_deref().unwrap_or("not scheduled");
    Some(format!("{name}: {message}"))
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use leasehold_planner::provider::workload::CONTAINER;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_used_fields_of_a_pod_are_kept() {
        let pod = |status: serde_json::Value| -> PodSeen {
            serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "workload-1", "namespace": "lease-x", "resourceVersion": "7", "uid": "u",
                    "finalizers": ["a.b/c"],
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {LABEL_LEASE: "lease-x", LABEL_INDEX: "1"},
                },
                "spec": {
                    "nodeName": "n",
                    "overhead": {"memory": "1Mi"},
                    "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "3"}}}],
                    "containers": [
                        {"name": CONTAINER, "resources": {"requests": {"cpu": "1", "nvidia.com/gpu": "2"}}},
                        {"name": "b", "resources": {"requests": {"cpu": "500m", "memory": "2Mi"}}},
                    ],
                },
                "status": status,
            }))
            .unwrap()
        };
        let waits = pod(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}));
        assert_eq!(
            (waits.name_any().as_str(), waits.namespace().as_deref()),
            ("workload-1", Some("lease-x"))
        );
        assert_eq!(waits.resource_version().as_deref(), Some("7"));
        assert!(waits.created_at.is_some());
        assert_eq!(waits.node.as_deref(), Some("n"));
        assert_eq!(
            waits.requests,
            Shape {
                gpus: 2,
                millicores: 3_000,
                memory: 3 << 20,
                scratch: 0
            }
        );
        assert!(waits.of_lease && waits.index == Some(1) && waits.serves.is_none());
        assert!(!waits.has_ended() && !waits.ready && !waits.in_user_namespace);
        let trouble = waits.trouble.unwrap();
        assert_eq!(trouble, "workload-1: 0/1 nodes are available");

        let state = |state: serde_json::Value| {
            json!([{"name": CONTAINER, "state": state, "ready": true,
            "image": "i", "imageID": "", "restartCount": 0}])
        };
        let pulls = state(json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}));
        let pulls = pod(json!({"phase": "Pending", "containerStatuses": pulls}));
        assert_eq!(
            pulls.trouble.as_deref(),
            Some("workload-1: ErrImagePull no such image")
        );
        let ready = pod(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        assert!(ready.ready && ready.trouble.is_none());
        let ended = state(json!({"terminated": {"exitCode": 3, "finishedAt": "2026-01-01T00:00:00Z"}}));
        let ended = pod(json!({"phase": "Failed", "containerStatuses": ended}));
        assert!(ended.has_ended() && !ended.has_succeeded());
        let expected = End::Program {
            exit_code: 3,
            finished_at: Some("2026-01-01T00:00:00Z".into()),
        };
        let of_node = ended.of_node().unwrap();
        assert_eq!(of_node.end, Some(expected));
        assert_eq!((of_node.uid.as_str(), of_node.index), ("u", 1));
        assert_eq!(of_node.finalizers, ["a.b/c"]);
    }
}
