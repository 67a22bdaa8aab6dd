//! What is read off pods: how a probe ended, and why a pod of a lease does not start.

use serde_json::{Value, json};

use super::*;
use crate::provider::workload::CONTAINER;

fn pod(meta: Value, status: Value) -> k8s_openapi::api::core::v1::Pod {
    let mut pod = json!({
        "metadata": {"name": "probe-h100", "uid": "u", "labels": {"leasehold.dev/probe": "h100"},
            "annotations": {"leasehold.dev/probe-node": "a", "leasehold.dev/probe-identity": "boot 1"}},
        "spec": {"nodeName": "a", "hostUsers": false, "containers": [{"name": CONTAINER}]},
        "status": status,
    });
    let Value::Object(meta) = meta else {
        panic!("metadata")
    };
    pod["metadata"].as_object_mut().unwrap().extend(meta);
    serde_json::from_value(pod).unwrap()
}

fn state(state: Value) -> Value {
    json!([{"name": CONTAINER, "state": state, "ready": false, "image": "i", "imageID": "", "restartCount": 0}])
}

#[test]
fn the_end_of_a_probe_pod_is_read_from_its_status() {
    let end = |status: Value| ProbePod::of(&pod(json!({}), status), None).unwrap().end;
    let ended = |code: i64, message: &str| {
        let ended = json!({"terminated": {"exitCode": code, "message": message, "startedAt": "2027-01-15T08:00:00Z",
            "finishedAt": "2027-01-15T08:00:01Z"}});
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        end(json!({"phase": phase, "containerStatuses": state(ended)}))
    };
    let failed = |words: &str| Some(ProbeEnd::Failed(words.to_owned()));
    assert_eq!(ended(0, ""), Some(ProbeEnd::Proven));
    assert_eq!(ended(1, "has 0 GPUs\n"), failed("has 0 GPUs"));
    assert_eq!(ended(137, ""), failed("it ended with exit code 137"));
    assert_eq!(end(json!({"phase": "Running"})), None);
    let overdue =
        json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active too long"});
    assert_eq!(end(overdue), failed("DeadlineExceeded: Pod was active too long"));
    let refused = json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no devices"});
    let lost = ProbeEnd::Lost("UnexpectedAdmissionError: no devices".into());
    assert_eq!(end(refused), Some(lost));
    let read = ProbePod::of(
        &pod(json!({"deletionTimestamp": "2027-01-15T08:00:00Z"}), json!({})),
        None,
    )
    .unwrap();
    assert!(read.is_leaving && read.is_bound);
    assert_eq!(
        (read.pool.as_str(), read.node.as_str(), read.identity.as_str()),
        ("h100", "a", "boot 1")
    );
    assert_eq!(ProbePod::of(&pod(json!({"labels": {}}), json!({})), None), None);
}

#[test]
fn a_pod_of_a_lease_tells_once_that_it_did_not_start_in_its_user_namespace() {
    let trouble = |status: Value| start_trouble(&pod(json!({"name": "lease-0"}), status));
    let waits = |message: &str| {
        let waits = json!({"waiting": {"reason": "CreateContainerError", "message": message}});
        trouble(json!({"phase": "Pending", "containerStatuses": state(waits)}))
    };
    let told = waits("failed to set MOUNT_ATTR_IDMAP on /data").unwrap();
    assert_eq!(
        told.words,
        "pod lease-0 of a lease: failed to set MOUNT_ATTR_IDMAP on /data"
    );
    assert_eq!(waits("exec: \"serve\": not found"), None, "the tenant's doing");
    let sandbox = |status: &str| {
        trouble(json!({"phase": "Pending", "conditions": [
            {"type": "PodReadyToStartContainers", "status": status, "lastTransitionTime": time(0)}]}))
    };
    let down = sandbox("False").unwrap();
    assert_eq!(sandbox("True"), None);
    let runs = json!({"running": {"startedAt": "2027-01-15T08:00:00Z"}});
    assert_eq!(
        trouble(json!({"phase": "Running", "containerStatuses": state(runs)})),
        None
    );

    let mut reported_starts = ReportedStarts::default();
    let mut at = |second: i64| {
        let pods = [("u1", "a", &down), ("u2", "b", &told)];
        let failed = reported_starts.of(pods, time(second));
        failed.into_iter().map(|f| f.node).collect::<Vec<_>>()
    };
    assert_eq!(at(59), ["b"]);
    assert_eq!(at(60), ["a"]);
    assert_eq!(at(61), [""; 0]);
}
