//! Pods that were interrupted while their leg was charged: by a restart of their node, or in the absence of the operator.

use leasehold_crds::{market::allocation::AllocationPhase, provider::reservation::ProvenPod};

use super::{
    super::*,
    scenario::{Scenario, serving},
};
use crate::provider::{
    reservation::NodePod,
    workload::{AgentReports, ContainerEnd, End, Uptime},
};

/// A pod that is up since a second, and whose containers ended at another one.
fn pod(uid: &str, up_since: Option<i64>, ended: Option<i64>) -> Uptime {
    Uptime {
        uid: uid.into(),
        node: Some("n".into()),
        created_at: 5,
        up_since,
        ended: ended.map(|at| ContainerEnd { at, observed: true }),
    }
}

/// A leg that was started with one pod, 5000 seconds ago.
fn charged() -> Scenario {
    let mut scenario = serving();
    scenario.account.running = 0;
    scenario.reservation.status.as_mut().unwrap().phase = AllocationPhase::Provisioning;
    scenario.running.uptimes = vec![pod("a", Some(10), None)];
    scenario.reconcile_times(2);
    assert_eq!(scenario.calls, [LegCall::Start]);
    let proven = ProvenPod {
        uid: "a".into(),
        up_since: 10,
    };
    assert_eq!(scenario.status().proven_pods, [proven]);
    scenario.reconcile_times(1);
    scenario.wait(5000);
    scenario
}

/// Seconds that the leg had served at a time, if nothing was credited.
fn served_at(scenario: &Scenario, second: u64) -> u64 {
    second - scenario.started
}

#[test]
fn a_restart_of_the_node_is_credited_since_its_containers_ran_last() {
    let mut scenario = charged();
    let before = served_at(&scenario, 4900);
    scenario.running.pods_run = 0;
    scenario.running.uptimes = vec![pod("a", None, Some(4900))];
    scenario.reconcile_times(5);
    assert_eq!((scenario.account.running, scenario.served()), (0, before));
    scenario.wait(100);
    scenario.reconcile_times(5);
    assert_eq!(
        scenario.served(),
        before,
        "nothing is charged while it does not run"
    );

    scenario.running.pods_run = 1;
    scenario.running.uptimes = vec![pod("a", Some(5110), Some(4900))];
    scenario.reconcile_times(5);
    assert_eq!(scenario.account.running, 1);
    assert_eq!(scenario.status().proven_pods[0].up_since, 5110);
    let calls = scenario.calls.len();
    scenario.reconcile_times(20);
    assert_eq!(scenario.calls.len(), calls, "it is credited once");
}

#[test]
fn what_happened_while_the_operator_was_away_is_credited() {
    let restarted = pod("a", Some(4950), Some(4900));
    let mut replaced = pod("b", Some(4950), None);
    replaced.created_at = 4900;
    for after in [restarted, replaced] {
        let mut scenario = charged();
        let before = served_at(&scenario, 4900);
        scenario.running.uptimes = vec![after];
        scenario.reconcile_times(5);
        assert_eq!(scenario.served(), before);
        scenario.reconcile_times(3);
        assert_eq!(scenario.account.running, 1, "the pod runs again already");
    }
}

/// A kubelet that starts before the device plugin rejects the pods that ran on its node.
#[test]
fn pods_that_are_rejected_after_a_restart_of_their_node_are_credited_since_its_agent_reported_last() {
    for (last, restart, expected) in [
        (4990, None, 4990),
        (5004, Some((4990, 5003)), 4990),
        (5004, None, 5005),
        (5004, Some((100, 120)), 5005),
    ] {
        let mut scenario = charged();
        let agent = AgentReports {
            last: Some(last),
            restart,
            overdue_seconds: 5,
        };
        scenario.running.agents.insert("n".into(), agent);
        scenario.wait(5005 - scenario.account.block_time);
        let before = served_at(&scenario, expected);
        scenario.running.pods_run = 0;
        scenario.running.uptimes.clear();
        scenario.reconcile_times(6);
        assert_eq!(
            (scenario.account.running, scenario.served()),
            (0, before),
            "{last} {restart:?}"
        );
    }
}

/// The operator comes back hours after the restart of a node, whose pod was rejected and still says so.
#[test]
fn a_pod_that_was_rejected_while_the_operator_was_away_is_credited_since_its_agent_reported_last() {
    for (restart, expected) in [(Some((1000, 1060)), 1000), (Some((3, 7)), 5005), (None, 5005)] {
        let mut scenario = charged();
        scenario.reservation.spec.nodes = vec!["n".into()];
        let agent = AgentReports {
            last: Some(5005),
            restart,
            overdue_seconds: 5,
        };
        scenario.running.agents.insert("n".into(), agent);
        scenario.wait(5005 - scenario.account.block_time);
        let before = served_at(&scenario, expected);
        (scenario.running.pods_run, scenario.running.pods_alive) = (0, 0);
        scenario.running.uptimes.clear();
        scenario.running.pods = vec![NodePod {
            end: Some(End::Refused("UnexpectedAdmissionError".into())),
            ..NodePod::default()
        }];
        scenario.reconcile_times(6);
        assert_eq!(
            (scenario.account.running, scenario.served()),
            (0, before),
            "{restart:?}"
        );
    }
}

#[test]
fn a_crash_of_the_program_is_no_interruption() {
    let mut scenario = charged();
    scenario.running.uptimes = vec![pod("a", Some(10), Some(4900))];
    scenario.reconcile_times(5);
    assert_eq!((scenario.calls.len(), scenario.account.running), (1, 1));
}

#[test]
fn an_interruption_without_a_known_end_credits_nothing() {
    let mut scenario = charged();
    scenario.running.uptimes = vec![pod("a", Some(4950), None)];
    scenario.reconcile_times(5);
    assert_eq!((scenario.calls.len(), scenario.account.running), (1, 1));
}
