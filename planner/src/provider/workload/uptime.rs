//! Since when the node of a pod lets its containers run, and until when they ran before, by what the kubelet and the agent
//! of the node report.
//!
//! A container that ends is started again in the sandbox of its pod, whatever ended it. The program of a tenant cannot end
//! the sandbox: it ends with the node, with the container runtime, or by a decision of the kubelet. So a sandbox that is
//! not ready, or that became ready again, tells the node's doing from a crash of the program.

use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ContainerStateTerminated, ContainerStatus, Pod},
};
use leasehold_crds::ANNOTATION_LAST_REPORT;

/// Condition of a pod whose sandbox is ready.
pub(crate) const SANDBOX_READY: &str = "PodReadyToStartContainers";
/// A sandbox is reported as ready at most so long after its last container has been started.
const REPORTED_WITHIN_SECONDS: i64 = 60;
/// After a restart of its node, a pod is reported as ended or is created again at most so long after the first report of the
/// agent.
const NOTICED_WITHIN_SECONDS: i64 = 120;
/// A longer silence of the agent is no restart of the node: that would be a lost node.
const SILENCE_SECONDS_MAX: i64 = 600;
/// Reasons of an end that nobody observed: the runtime, or the kubelet, found the container gone when it started itself.
const UNOBSERVED: [&str; 2] = ["Unknown", "ContainerStatusUnknown"];

/// A pod by what its kubelet reports. All times are Unix time in seconds by the clock of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uptime {
    /// UID of the pod.
    pub uid: String,
    /// Its node.
    pub node: Option<String>,
    /// When it was created.
    pub created_at: i64,
    /// Since when its sandbox is ready; `None` while it is not.
    pub up_since: Option<i64>,
    /// The last end of its containers; of several, the one that ended first. `None` if they run since before the sandbox
    /// became ready.
    pub ended: Option<ContainerEnd>,
}

/// The end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerEnd {
    /// When it ended; for an end that was not observed, when it was found.
    pub at: i64,
    /// Whether the runtime observed it.
    pub observed: bool,
}

impl Uptime {
    /// Reads a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let sandbox = conditions.iter().find(|c| c.type_ == SANDBOX_READY);
        let started = status.and_then(|s| s.start_time.as_ref());
        let up_since = match sandbox {
            Some(c) if c.status == "True" => c.last_transition_time.as_ref(),
            Some(_) => None,
            // The kubelet does not report sandboxes.
            None => started,
        };
        let up_since = up_since.map(|t| t.0.as_second());
        let containers = status.and_then(|s| s.container_statuses.as_deref());
        let containers = containers.unwrap_or_default();
        let created = pod.metadata.creation_timestamp.as_ref();
        let ended = containers.iter().filter_map(container_end).min();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            created_at: created.map_or(0, |t| t.0.as_second()),
            up_since,
            ended: ended.filter(|_| were_restarted(containers, up_since)),
        }
    }

    /// Until when its containers are known to have run before they ended for the last time; `None` if no end is known.
    #[must_use]
    pub fn ran_until(&self, agent: &AgentReports) -> Option<i64> {
        let end = self.ended?;
        Some(match end.observed {
            true => end.at,
            false => agent.ran_until(end.at),
        })
    }
}

/// Whether the containers that run were started in the sandbox that is ready since then, and not before. An earlier crash of
/// the program is no end by the node.
fn were_restarted(containers: &[ContainerStatus], up_since: Option<i64>) -> bool {
    let started = |c: &ContainerStatus| c.state.as_ref()?.running.as_ref()?.started_at.clone();
    let started = containers.iter().filter_map(started).map(|t| t.0.as_second());
    match (started.max(), up_since) {
        (None, _) => true,
        (Some(last), Some(up_since)) => last >= up_since - REPORTED_WITHIN_SECONDS,
        (Some(_), None) => false,
    }
}

fn container_end(status: &ContainerStatus) -> Option<ContainerEnd> {
    let states = [&status.state, &status.last_state];
    let ended = states
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref())?;
    let at = ended.finished_at.as_ref()?.0.as_second();
    (at > 0).then(|| ContainerEnd {
        at,
        observed: is_observed(ended),
    })
}

fn is_observed(end: &ContainerStateTerminated) -> bool {
    !end.reason
        .as_deref()
        .is_some_and(|reason| UNOBSERVED.contains(&reason))
}

/// When the agent of a node reported, Unix time in seconds by the clock of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentReports {
    /// Its last report.
    pub last: Option<i64>,
    /// Its last report before it was started, and its first one afterwards.
    pub restart: Option<(i64, i64)>,
    /// Seconds after which a report is overdue.
    pub overdue_seconds: i64,
}

impl AgentReports {
    /// Reads the Lease of an agent.
    #[must_use]
    pub fn of(lease: &Lease) -> Self {
        let spec = lease.spec.as_ref();
        let time = |text: &String| text.parse::<Timestamp>().ok();
        let before = lease.metadata.annotations.as_ref();
        let before = before.and_then(|a| a.get(ANNOTATION_LAST_REPORT)).and_then(time);
        let first = spec.and_then(|s| s.acquire_time.as_ref());
        Self {
            last: spec.and_then(|s| s.renew_time.as_ref()).map(|t| t.0.as_second()),
            // The Lease lasts for several periods of the agent.
            overdue_seconds: spec
                .and_then(|s| s.lease_duration_seconds)
                .map_or(0, |s| i64::from(s) / 2),
            restart: before
                .zip(first)
                .map(|(last, first)| (last.as_second(), first.0.as_second())),
        }
    }

    /// Until when the node is known to have run before a time at which containers were found ended, or missing. If the agent
    /// was silent just before, the node was restarted, and that is its last report before.
    #[must_use]
    pub fn ran_until(&self, found_at: i64) -> i64 {
        let restarted = |(last, first): &(i64, i64)| {
            *last <= found_at && found_at <= first.saturating_add(NOTICED_WITHIN_SECONDS)
        };
        let before = self.restart.filter(restarted).map(|(last, _)| last);
        let silent = self.last.filter(|last| found_at - last > self.overdue_seconds);
        let last = before.or(silent);
        last.filter(|last| found_at - last <= SILENCE_SECONDS_MAX)
            .unwrap_or(found_at)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(sandbox: Value, states: Value) -> Uptime {
        let container = |state: &Value| {
            json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "state": state["state"], "lastState": state["last"]})
        };
        let containers: Vec<Value> = states.as_array().unwrap().iter().map(container).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u", "creationTimestamp": "1970-01-01T00:01:40Z"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"startTime": "1970-01-01T00:01:41Z", "conditions": sandbox, "containerStatuses": containers},
        }))
        .unwrap();
        Uptime::of(&pod)
    }

    fn sandbox(status: &str) -> Value {
        json!([{"type": SANDBOX_READY, "status": status, "lastTransitionTime": "1970-01-01T00:05:00Z"}])
    }

    fn ended(at: &str, reason: &str) -> Value {
        json!({"terminated": {"exitCode": 255, "reason": reason, "finishedAt": at}})
    }

    #[test]
    fn a_pod_is_up_since_its_sandbox_became_ready() {
        let running = json!([{"state": {"running": {"startedAt": "1970-01-01T00:05:01Z"}}}]);
        let up = pod(sandbox("True"), running.clone());
        let expected = Uptime {
            uid: "u".into(),
            node: Some("n".into()),
            created_at: 100,
            up_since: Some(300),
            ended: None,
        };
        assert_eq!(up, expected);
        assert_eq!(pod(sandbox("False"), running.clone()).up_since, None);
        assert_eq!(
            pod(json!([]), running).up_since,
            Some(101),
            "a kubelet that does not report sandboxes"
        );
    }

    #[test]
    fn an_observed_end_is_where_it_was_observed_and_of_several_the_first_counts() {
        let states = json!([
            {"state": {"running": {}}, "last": ended("1970-01-01T00:04:10Z", "Error")},
            {"state": ended("1970-01-01T00:04:05Z", "OOMKilled"), "last": ended("1970-01-01T00:00:05Z", "Unknown")},
        ]);
        let up = pod(sandbox("True"), states);
        let agent = AgentReports {
            last: Some(200),
            ..AgentReports::default()
        };
        assert_eq!(up.ran_until(&agent), Some(245));
        assert_eq!(Uptime::default().ran_until(&agent), None);
    }

    #[test]
    fn a_crash_of_the_program_long_before_is_no_end_by_the_node() {
        let states = json!([{
            "state": {"running": {"startedAt": "1970-01-01T00:02:00Z"}},
            "last": ended("1970-01-01T00:01:59Z", "Error"),
        }]);
        for status in ["True", "False"] {
            assert_eq!(pod(sandbox(status), states.clone()).ended, None);
        }
    }

    #[test]
    fn an_end_that_nobody_observed_is_at_the_last_report_of_the_agent_before() {
        let found = json!([{"state": {"running": {}}, "last": ended("1970-01-01T00:04:00Z", "Unknown")}]);
        let up = pod(sandbox("True"), found);
        let ran_until = |last, restart| {
            up.ran_until(&AgentReports {
                last,
                restart,
                overdue_seconds: 20,
            })
        };
        assert_eq!(ran_until(Some(199), None), Some(199), "the agent is not back yet");
        for first in [250, 230, 130] {
            assert_eq!(ran_until(Some(400), Some((110, first))), Some(110));
        }
        assert_eq!(
            ran_until(Some(400), Some((100, 110))),
            Some(240),
            "the agent was started again earlier and has reported since"
        );
        assert_eq!(ran_until(Some(221), None), Some(240), "no report is overdue");
        assert_eq!(ran_until(None, None), Some(240));
        let long = AgentReports {
            last: Some(1000),
            restart: Some((100, 2000)),
            overdue_seconds: 20,
        };
        assert_eq!(long.ran_until(700), 100);
        assert_eq!(
            long.ran_until(701),
            701,
            "an agent that does not work is no restart of the node"
        );
    }

    #[test]
    fn an_agent_s_lease_shows_when_it_was_started() {
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"annotations": {ANNOTATION_LAST_REPORT: "1970-01-01T00:03:19.5Z"}},
            "spec": {"leaseDurationSeconds": 40, "acquireTime": "1970-01-01T00:04:10.000000Z", "renewTime": "1970-01-01T00:06:40.000000Z"},
        }))
        .unwrap();
        let reports = AgentReports::of(&lease);
        let expected = AgentReports {
            last: Some(400),
            restart: Some((199, 250)),
            overdue_seconds: 20,
        };
        assert_eq!(reports, expected);
        assert_eq!(AgentReports::of(&Lease::default()), AgentReports::default());
    }
}
