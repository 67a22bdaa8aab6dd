//! Whether the containers of a pod have run, by the status that its kubelet reports.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

use super::uptime::SANDBOX_READY;

/// Whether every container of the pod runs, or has run since the pod was created. A container that crashes after it has
/// started counts; one whose image is being pulled, or whose command cannot be executed, does not. A kubelet starts
/// containers only when the init containers have finished. While the sandbox of a pod that has not ended is not ready,
/// for example after a restart of its node, no container can run.
#[must_use]
pub fn has_run(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().map_or(&[][..], |s| &s.containers);
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref());
    let status = |name: &str| statuses.unwrap_or_default().iter().find(|s| s.name == name);
    !containers.is_empty()
        && !is_sandbox_down(pod)
        && containers
            .iter()
            .all(|c| status(&c.name).is_some_and(container_has_run))
}

fn is_sandbox_down(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let mut conditions = status.conditions.iter().flatten();
    !has_ended && conditions.any(|c| c.type_ == SANDBOX_READY && c.status != "True")
}

fn container_has_run(status: &ContainerStatus) -> bool {
    let states = [&status.state, &status.last_state];
    states.into_iter().flatten().any(state_has_run)
}

fn state_has_run(state: &ContainerState) -> bool {
    state.running.is_some() || state.terminated.as_ref().is_some_and(was_started)
}

/// A runtime that could not start the container reports its end without a beginning, or with one in 1970.
fn was_started(end: &ContainerStateTerminated) -> bool {
    end.started_at.as_ref().is_some_and(|at| at.0.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(statuses: &[Value]) -> Pod {
        let names: Vec<Value> = statuses
            .iter()
            .map(|s| json!({"name": s["name"], "image": "i"}))
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {},
            "spec": {"containers": names},
            "status": {"phase": "Running", "containerStatuses": statuses},
        }))
        .unwrap()
    }

    fn status(name: &str, state: &Value, last: &Value) -> Value {
        json!({"name": name, "state": state, "lastState": last, "ready": false, "image": "i", "imageID": "", "restartCount": 1})
    }

    #[test]
    fn a_container_has_run_when_it_runs_or_has_ended_after_a_start() {
        let nothing = json!({});
        let runs = json!({"running": {"startedAt": "2027-01-15T08:00:00Z"}});
        let crashed = json!({"terminated": {"exitCode": 1, "startedAt": "2027-01-15T08:00:00Z", "finishedAt": "2027-01-15T08:00:01Z"}});
        let waits = |reason: &str| json!({"waiting": {"reason": reason}});
        let not_started = json!({"terminated": {"exitCode": 128, "reason": "StartError", "startedAt": "1970-01-01T00:00:00Z"}});
        let unknown = json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}});
        for (state, last, expected) in [
            (&runs, &nothing, true),
            (&crashed, &nothing, true),
            (&waits("CrashLoopBackOff"), &crashed, true),
            (&waits("ContainerCreating"), &nothing, false),
            (&waits("ErrImagePull"), &nothing, false),
            (&not_started, &nothing, false),
            (&waits("CrashLoopBackOff"), &not_started, false),
            (&unknown, &nothing, false),
        ] {
            assert_eq!(
                has_run(&pod(&[status("main", state, last)])),
                expected,
                "{state} {last}"
            );
        }
        let both = |second: &Value| {
            pod(&[
                status("main", &runs, &nothing),
                status("injected", second, &nothing),
            ])
        };
        assert!(has_run(&both(&crashed)));
        assert!(
            !has_run(&both(&waits("PodInitializing"))),
            "every container of the pod"
        );
    }

    #[test]
    fn nothing_runs_in_a_sandbox_that_is_not_ready() {
        let crashed = json!({"terminated": {"exitCode": 255, "reason": "Unknown", "startedAt": "2027-01-15T08:00:00Z"}});
        let waits = json!({"waiting": {"reason": "ContainerCreating"}});
        let mut restarted = pod(&[status("main", &waits, &crashed)]);
        for (sandbox, phase, expected) in [
            ("True", "Running", true),
            ("False", "Running", false),
            ("False", "Failed", true),
        ] {
            let seen = restarted.status.as_mut().unwrap();
            seen.phase = Some(phase.into());
            seen.conditions =
                serde_json::from_value(json!([{"type": SANDBOX_READY, "status": sandbox}])).unwrap();
            assert_eq!(has_run(&restarted), expected, "{sandbox} {phase}");
        }
    }

    #[test]
    fn a_pod_without_a_report_has_not_run() {
        let mut unseen = pod(&[status("main", &json!({"running": {}}), &json!({}))]);
        unseen.status.as_mut().unwrap().container_statuses = None;
        assert!(!has_run(&unseen));
        unseen.status = None;
        assert!(!has_run(&unseen));
        assert!(!has_run(&Pod::default()));
    }
}
