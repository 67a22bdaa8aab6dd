//! How a pod ended: by the program of the tenant, or by the provider's side. By the status that the kubelet and the control
//! plane report; an end that nothing explains is not the tenant's.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use super::pod::CONTAINER;

/// Condition of a pod that the control plane or the kubelet removes for reasons of the cluster: preemption, eviction, a taint,
/// a node that is gone or shuts down. A pod that exceeds its own limits does not get it.
const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Reasons with which kubelet and containerd report a container that is gone, for example after a reboot of the node.
const GONE: [&str; 2] = ["ContainerStatusUnknown", "Unknown"];
/// Reason of a pod that the kubelet evicted.
const EVICTED: &str = "Evicted";

/// How a pod ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The program ended by itself, or exceeded the limits of the lease.
    Program {
        /// Exit code, 0 to 255; -1 if it is unknown.
        exit_code: i64,
        /// When, RFC 3339.
        finished_at: Option<String>,
    },
    /// The provider's side removed the pod, or lost it. In the words of the cluster.
    Lost(String),
    /// The node did not start the pod. In the words of the kubelet.
    Refused(String),
}

impl End {
    /// Whether the program ended with exit code 0.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Program { exit_code: 0, .. })
    }
}

/// How the pod ended; `None` while its containers run, may run, or are being stopped.
#[must_use]
pub fn end_of(pod: &Pod) -> Option<End> {
    let status = pod.status.as_ref();
    let removal = removal_of(pod);
    let is_scheduled = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    if !matches!(
        status.and_then(|s| s.phase.as_deref()),
        Some("Succeeded" | "Failed")
    ) {
        // No kubelet reports the end of a pod that was never on a node.
        let leaves = pod.metadata.deletion_timestamp.is_some() && !is_scheduled;
        return leaves.then(|| End::Lost("deleted before it was scheduled".to_owned()));
    }
    let main = main_container(pod);
    let ended = main.and_then(|c| c.state.as_ref()?.terminated.as_ref());
    let is_evicted = status.and_then(|s| s.reason.as_deref()) == Some(EVICTED);
    let by_condition = condition(pod).is_some();
    if let Some(end) = ended.filter(|end| !is_gone(end))
        && removal.as_ref().is_none_or(|r| is_before(end, r.at))
    {
        return Some(program(Some(end)));
    }
    if is_evicted && !by_condition {
        return Some(program(ended));
    }
    let words = |said: Option<String>| said.unwrap_or_else(|| "the pod ended".to_owned());
    if let Some(removal) = removal {
        return Some(End::Lost(removal.words));
    }
    let has_begun = main.is_some_and(|c| [&c.state, &c.last_state].into_iter().flatten().any(was_started));
    let said = status.and_then(|s| told(s.reason.as_deref(), s.message.as_deref()));
    let said = said.or_else(|| ended.and_then(|e| told(e.reason.as_deref(), e.message.as_deref())));
    Some(if has_begun || ended.is_some() {
        End::Lost(words(said))
    } else {
        End::Refused(words(said))
    })
}

/// The removal of a pod by somebody else than its program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// When it began.
    pub at: Timestamp,
    /// Why, in the words of the cluster.
    pub words: String,
}

/// Whether the pod is being removed, or was: it is deleted, or the condition `DisruptionTarget` is true.
#[must_use]
pub fn removal_of(pod: &Pod) -> Option<Removal> {
    let meta = &pod.metadata;
    let grace = SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(0));
    // The time of deletion is that at which the grace period is over.
    let deleted = meta.deletion_timestamp.as_ref();
    let deleted = deleted.and_then(|t| t.0.checked_sub(grace).ok());
    let condition = condition(pod);
    let at = [deleted, condition.as_ref().map(|(at, _)| *at)];
    let at = at.into_iter().flatten().min()?;
    let words = condition.map_or_else(|| "deleted".to_owned(), |(_, words)| words);
    Some(Removal { at, words })
}

fn condition(pod: &Pod) -> Option<(Timestamp, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|c| c.type_ == DISRUPTION_TARGET && c.status == "True")?;
    let at = found
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::MAX, |t| t.0);
    let words = told(found.reason.as_deref(), found.message.as_deref());
    Some((at, words.unwrap_or_else(|| DISRUPTION_TARGET.to_owned())))
}

fn told(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    let parts = [reason, message].into_iter().flatten().filter(|s| !s.is_empty());
    let parts: Vec<&str> = parts.collect();
    (!parts.is_empty()).then(|| parts.join(": "))
}

fn program(end: Option<&ContainerStateTerminated>) -> End {
    End::Program {
        exit_code: end.map_or(-1, |e| i64::from(e.exit_code).clamp(-1, 255)),
        finished_at: end.and_then(|e| e.finished_at.as_ref()).map(|t| t.0.to_string()),
    }
}

/// A container that ended in the second in which its removal began was most likely ended by it.
fn is_before(end: &ContainerStateTerminated, removal: Timestamp) -> bool {
    let finished = end.finished_at.as_ref().map(|t| t.0.as_second());
    finished.is_some_and(|finished| finished < removal.as_second())
}

fn is_gone(end: &ContainerStateTerminated) -> bool {
    end.reason.as_deref().is_some_and(|reason| GONE.contains(&reason))
}

fn was_started(state: &ContainerState) -> bool {
    state.running.is_some()
        || state
            .terminated
            .as_ref()
            .and_then(|end| end.started_at.as_ref())
            .is_some_and(|at| at.0.as_second() > 0)
}

/// Status of the container of the workload.
#[must_use]
pub fn main_container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == CONTAINER)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const EARLY: &str = "2027-01-15T08:00:00Z";
    const LATE: &str = "2027-01-15T08:10:00Z";

    fn pod(meta: &Value, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {"nodeName": "a", "containers": [{"name": CONTAINER, "image": "i"}]}, "status": status,
        }))
        .unwrap()
    }

    fn exited(code: i64, reason: &str, at: &str) -> Value {
        let end = json!({"exitCode": code, "reason": reason, "startedAt": "2027-01-15T07:00:00Z", "finishedAt": at});
        json!([{"name": CONTAINER, "state": {"terminated": end}, "ready": false, "image": "i", "imageID": "", "restartCount": 0}])
    }

    fn disrupted(reason: &str, at: &str) -> Value {
        json!([{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "the node is drained",
            "lastTransitionTime": at}])
    }

    fn is_program(end: Option<&End>, code: i64) -> bool {
        matches!(end, Some(End::Program { exit_code, .. }) if *exit_code == code)
    }

    #[test]
    fn a_program_ends_by_its_own_exit() {
        let none = json!({});
        for (phase, code, reason) in [
            ("Succeeded", 0, "Completed"),
            ("Failed", 3, "Error"),
            ("Failed", 137, "OOMKilled"),
            ("Failed", 128, "StartError"),
        ] {
            let status = json!({"phase": phase, "containerStatuses": exited(code, reason, EARLY)});
            let end = end_of(&pod(&none, &status));
            assert!(is_program(end.as_ref(), code), "{end:?}");
        }
        for phase in ["Pending", "Running"] {
            assert_eq!(end_of(&pod(&none, &json!({"phase": phase}))), None);
        }
        // A kubelet evicts a pod that exceeds its own limits without the condition.
        let own = json!({"phase": "Failed", "reason": "Evicted", "message": "ephemeral storage usage exceeds the limit"});
        assert!(is_program(end_of(&pod(&none, &own)).as_ref(), -1));
    }

    #[test]
    fn an_end_by_the_provider_s_side_is_not_that_of_the_program() {
        let none = json!({});
        for reason in [
            "EvictionByEvictionAPI",
            "PreemptionByScheduler",
            "DeletionByTaintManager",
            "DeletionByPodGC",
            "TerminationByKubelet",
        ] {
            // A program may exit with 0 when it is told to end.
            for code in [0, 143] {
                let phase = if code == 0 { "Succeeded" } else { "Failed" };
                let status = json!({"phase": phase, "conditions": disrupted(reason, EARLY),
                    "containerStatuses": exited(code, "Error", LATE)});
                let expected = End::Lost(format!("{reason}: the node is drained"));
                assert_eq!(end_of(&pod(&none, &status)), Some(expected));
            }
        }
        let deleted = json!({"deletionTimestamp": "2027-01-15T08:00:30Z", "deletionGracePeriodSeconds": 30});
        let status = json!({"phase": "Succeeded", "containerStatuses": exited(0, "Completed", EARLY)});
        assert_eq!(end_of(&pod(&deleted, &status)), Some(End::Lost("deleted".into())));
        // After a reboot the runtime knows nothing of the container.
        for (code, reason) in [(255, "Unknown"), (137, "ContainerStatusUnknown")] {
            let status = json!({"phase": "Failed", "containerStatuses": exited(code, reason, EARLY)});
            assert_eq!(end_of(&pod(&none, &status)), Some(End::Lost(reason.into())));
        }
    }

    #[test]
    fn what_ended_before_its_removal_ended_by_itself() {
        let deleted = json!({"deletionTimestamp": LATE, "deletionGracePeriodSeconds": 0});
        let status = json!({"phase": "Succeeded", "containerStatuses": exited(0, "Completed", EARLY)});
        assert!(is_program(end_of(&pod(&deleted, &status)).as_ref(), 0));
        let status = json!({"phase": "Succeeded", "conditions": disrupted("DeletionByPodGC", LATE),
            "containerStatuses": exited(0, "Completed", EARLY)});
        assert!(is_program(end_of(&pod(&json!({}), &status)).as_ref(), 0));
    }

    #[test]
    fn a_pod_that_its_node_does_not_start_was_refused() {
        for reason in [
            "UnexpectedAdmissionError",
            "NodeAffinity",
            "OutOfcpu",
            "NodeShutdown",
        ] {
            let status = json!({"phase": "Failed", "reason": reason, "message": "no"});
            let expected = End::Refused(format!("{reason}: no"));
            assert_eq!(end_of(&pod(&json!({}), &status)), Some(expected));
        }
        let mut unscheduled = pod(
            &json!({"deletionTimestamp": LATE, "deletionGracePeriodSeconds": 0}),
            &json!({"phase": "Pending"}),
        );
        assert_eq!(end_of(&unscheduled), None, "its kubelet reports the end");
        unscheduled.spec.as_mut().unwrap().node_name = None;
        assert!(matches!(end_of(&unscheduled), Some(End::Lost(_))));
    }
}
