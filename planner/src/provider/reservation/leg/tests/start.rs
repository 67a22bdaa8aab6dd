//! What the start of a leg waits for, at first and after a pause.

use leasehold_crds::{
    lease::{
        OnFundsEnd,
        workload::{Endpoint, JobResult, Port, Service},
    },
    market::allocation::{AllocationPhase, StopReason},
};

use super::{
    super::*,
    scenario::{RATE, Scenario, serving},
};
use crate::provider::offer::resumption::Room;

#[test]
fn nothing_starts_before_the_kubelets_say_which_gpus_it_has() {
    let mut scenario = unstarted();
    scenario.reservation.spec.allocation.per_node.gpus = 2;
    for bound in 0..2 {
        scenario.running.gpu_uuids = (0..bound).map(|n| format!("GPU-{n}")).collect();
        scenario.reconcile_times(3);
        assert!(scenario.calls.is_empty());
        let (status, reason, message) = scenario.condition("Provisioned");
        assert_eq!((status.as_str(), reason.as_str()), ("False", "GpusNotBound"));
        assert!(message.contains(&format!("{bound} of 2 GPUs")), "{message}");
    }
    scenario.running.gpu_uuids = vec!["GPU-0".into(), "GPU-1".into()];
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls, [LegCall::Start]);
    // An agent that begins anew knows of no holder: that is no reason to say anything of what serves.
    scenario.running.gpu_uuids.clear();
    scenario.reconcile_times(3);
    assert_eq!(scenario.condition("Provisioned").0, "True");
    assert_eq!(scenario.account.running, 1);
}

#[test]
fn a_job_that_is_done_already_waits_for_no_gpu() {
    let mut scenario = unstarted();
    scenario.reservation.spec.allocation.workload.job = Some(Box::default());
    scenario.reservation.spec.allocation.nodes = 2;
    scenario.reservation.spec.allocation.per_node.gpus = 1;
    scenario.running.pods_ended = 1;
    scenario.reconcile_times(3);
    assert!(scenario.calls.is_empty(), "one of its pods still holds a GPU");
    (scenario.running.pods_alive, scenario.running.pods_run) = (0, 0);
    scenario.running.pods_ended = 2;
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls, [LegCall::Start]);
}

/// Paid, and nothing has been charged yet.
fn unstarted() -> Scenario {
    let mut scenario = serving();
    scenario.account.running = 0;
    scenario.reservation.status.as_mut().unwrap().phase = AllocationPhase::Provisioning;
    scenario
}

/// Whoever stays unready would otherwise compute without payment.
#[test]
fn a_leg_starts_when_its_containers_have_run_whether_they_are_ready_or_not() {
    let mut scenario = unstarted();
    scenario.reservation.spec.allocation.nodes = 2;
    scenario.running = Running {
        pods_alive: 2,
        pods_ready: 0,
        pods_run: 1,
        trouble: "lease-1: ErrImagePull no such image".into(),
        ..scenario.running
    };
    scenario.reconcile_times(3);
    assert!(scenario.calls.is_empty(), "pulling an image is free");
    let message = "the containers of 1 of 2 pods have run; charging starts when all have: lease-1: ErrImagePull no such image";
    let expected = ("False".into(), "ContainersNotStarted".into(), message.into());
    assert_eq!(scenario.condition("Provisioned"), expected);
    scenario.running.pods_run = 2;
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls, [LegCall::Start]);
    assert_eq!(scenario.condition("Provisioned").1, "Started");
    assert_eq!(scenario.condition("Ready").1, "PodsNotReady");
}

#[test]
fn a_program_that_crashes_is_charged_and_a_pod_that_was_evicted_has_not_run() {
    for (is_job, calls) in [(true, vec![LegCall::Start]), (false, vec![])] {
        let mut scenario = unstarted();
        scenario.reservation.spec.allocation.workload.job = is_job.then(Box::default);
        scenario.running = Running {
            pods_alive: 0,
            pods_ready: 0,
            pods_run: 0,
            pods_ended: 1,
            ..scenario.running
        };
        scenario.reconcile_times(3);
        assert_eq!(scenario.calls, calls);
    }
}

#[test]
fn nothing_is_charged_before_every_port_has_an_address_of_its_load_balancer() {
    let port = |name: &str| Port {
        name: name.into(),
        port: 8080,
        ..Port::default()
    };
    let address = |name: &str| Endpoint {
        name: name.into(),
        host: Some("198.51.100.1".into()),
        port: Some(8080),
        ..Endpoint::default()
    };
    let mut scenario = unstarted();
    let spec = &mut scenario.reservation.spec;
    spec.hosting.exposure = Exposure::LoadBalancer;
    spec.allocation.workload.service = Some(Box::new(Service {
        ports: vec![port("http"), port("grpc")],
        ..Service::default()
    }));
    for endpoints in [vec![], vec![address("http")]] {
        let message = format!(
            "{} of 2 ports have an address of a load balancer; charging starts when all have",
            endpoints.len()
        );
        scenario.running.endpoints = endpoints;
        scenario.reconcile_times(3);
        assert!(scenario.calls.is_empty());
        let expected = ("False".into(), "EndpointPending".into(), message);
        assert_eq!(scenario.condition("Provisioned"), expected);
    }
    scenario.running.endpoints = vec![address("grpc"), address("http")];
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls, [LegCall::Start]);
}

/// Its address is that of the market's gateway: nothing in this cluster has to be waited for.
#[test]
fn a_leg_behind_the_gateway_starts_without_an_address() {
    let mut scenario = unstarted();
    let spec = &mut scenario.reservation.spec;
    spec.hosting.exposure = Exposure::Tunnel;
    spec.allocation.workload.service = Some(Box::new(Service {
        ports: vec![Port {
            name: "http".into(),
            port: 8080,
            ..Port::default()
        }],
        ..Service::default()
    }));
    scenario.running.endpoints.clear();
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls, [LegCall::Start]);
}

/// Suspended since second 100; then somebody added funds for that many seconds.
fn topped_up(seconds: u128) -> Scenario {
    let mut scenario = serving();
    scenario.account = Account {
        balance_scaled: RATE.0 * seconds,
        block_time: 200,
        paid_until: 100,
        exhausted_at: 100,
        running: 0,
        ..scenario.account
    };
    let allocation = &mut scenario.reservation.spec.allocation;
    allocation.on_funds_end = OnFundsEnd::Pause;
    allocation.escrow.pause_for = 3600;
    scenario.reservation.status.as_mut().unwrap().phase = AllocationPhase::Suspended;
    scenario
}

#[test]
fn a_leg_starts_again_after_a_pause_whether_its_pods_are_ready_or_not() {
    let mut scenario = topped_up(10);
    scenario.running.pods_ready = 0;
    scenario.running.pods_run = 0;
    scenario.reconcile_times(3);
    assert!(scenario.calls.is_empty());
    assert_eq!(scenario.status().resuming_since, Some(200));
    scenario.running.pods_run = 1;
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls, [LegCall::Start]);
    assert_eq!(scenario.status().resuming_since, None);
}

/// Another allocation was accepted during the pause, and its pods come.
#[test]
fn a_reservation_resumes_only_where_its_room_was_not_promised_to_another() {
    let mut scenario = topped_up(10);
    scenario.running.pods_run = 0;
    scenario.room = Room::Taken("n1".into());
    scenario.reconcile_times(3);
    assert!(!scenario.status().holds_room && !scenario.runs_pods);
    assert_eq!(scenario.condition("Reserved").1, "RoomTaken");
    scenario.room = Room::Free;
    scenario.reconcile_times(1);
    assert!(
        scenario.status().holds_room && !scenario.runs_pods,
        "stored first"
    );
    scenario.room = Room::Taken("n1".into());
    scenario.reconcile_times(1);
    assert!(
        !scenario.status().holds_room,
        "another one was accepted meanwhile"
    );
    scenario.room = Room::Free;
    scenario.reconcile_times(2);
    assert!(scenario.status().holds_room && scenario.runs_pods);
    scenario.running.pods_run = 1;
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls, [LegCall::Start]);
}

#[test]
fn a_leg_that_does_not_start_again_in_time_stops() {
    let mut scenario = topped_up(10);
    scenario.running.pods_run = 0;
    let mut stopped_at = None;
    for _ in 0..120 {
        scenario.reconcile_times(1);
        if scenario.status().stop_reason.is_some() {
            stopped_at = Some(scenario.account.block_time - 1);
            break;
        }
        scenario.wait(9);
    }
    assert_eq!(scenario.status().stop_reason, Some(StopReason::NotResumed));
    assert_eq!(stopped_at, Some(200 + 910));
}

#[test]
fn a_leg_that_is_to_start_again_stops_by_two_reads_alone() {
    let mut scenario = topped_up(10);
    scenario.account.paid_until = 100_000;
    scenario.running.pods_run = 0;
    scenario.reconcile_times(1);
    scenario.wait(2000);
    let running = Account {
        running: 1,
        ..scenario.account.clone()
    };
    scenario.reconcile_with(&scenario.account.clone(), &running);
    assert_eq!(
        scenario.status().stop_reason,
        None,
        "another process has started it"
    );
    for (first, second) in [(false, true), (true, false), (false, false)] {
        scenario.reads = (first, second);
        scenario.reconcile_with(&scenario.account.clone(), &scenario.account.clone());
        assert_eq!(scenario.status().stop_reason, None, "nothing is known");
    }
    scenario.reads = (true, true);
    scenario.reconcile_with(&scenario.account.clone(), &scenario.account.clone());
    assert_eq!(scenario.status().stop_reason, Some(StopReason::NotResumed));
}

/// Seconds from now after which the leg stops, with one pod of two.
fn stops_without_a_pod(scenario: &mut Scenario) -> Option<u64> {
    let begun = scenario.account.block_time;
    scenario.running.pods_run = 1;
    while scenario.account.block_time < begun + 3600 {
        scenario.reconcile_times(1);
        if scenario.status().stop_reason.is_some() {
            return Some(scenario.account.block_time - 1 - begun);
        }
    }
    None
}

/// A tenant fills the disk of one node, so that its pod is evicted, and computes on the other one.
#[test]
fn who_loses_a_pod_computes_unpaid_for_no_longer_than_a_start_takes() {
    let mut scenario = serving();
    scenario.reservation.spec.allocation.nodes = 2;
    scenario.running.pods_run = 2;
    scenario.wait(5000);
    scenario.reconcile_times(2);
    assert_eq!(stops_without_a_pod(&mut scenario), Some(901));
    assert_eq!(scenario.status().stop_reason, Some(StopReason::NotResumed));
}

/// What comes back for a moment begins no time anew.
#[test]
fn all_losses_together_take_no_longer_than_a_start_and_a_quarter_of_what_was_served() {
    let mut scenario = serving();
    scenario.reservation.spec.allocation.nodes = 2;
    for served in [400, 0] {
        scenario.running.pods_run = 2;
        scenario.reconcile_times(5);
        scenario.wait(served);
        scenario.running.pods_run = 1;
        scenario.reconcile_times(4);
        scenario.wait(400);
    }
    assert_eq!(scenario.status().stop_reason, None);
    scenario.running.pods_run = 2;
    scenario.reconcile_times(5);
    assert_eq!(
        (scenario.status().stop_reason, scenario.account.running),
        (None, 1)
    );
    let resumed = u64::try_from(scenario.status().resumed_seconds).unwrap();
    let left = 900 + scenario.served() / 4 - resumed;
    assert!(left < 200, "{left}");
    assert_eq!(stops_without_a_pod(&mut scenario), Some(left + 1));
}

/// The address of a port went away during a fault of a GPU: the pods compute, and the leg does not run.
#[test]
fn what_does_not_start_again_after_a_fault_stops() {
    let mut scenario = serving();
    scenario.wait(50);
    scenario.at_fault(5);
    scenario.reconcile_times(5);
    scenario.wait(5000);
    scenario.reconcile_times(1);
    assert_eq!(
        scenario.status().resuming_since,
        None,
        "a fault is the provider's"
    );
    scenario.fault = Observed::Known(None);
    scenario.reservation.spec.allocation.per_node.gpus = 1;
    scenario.reconcile_times(1);
    scenario.wait(1000);
    scenario.reconcile_times(1);
    assert_eq!(scenario.status().stop_reason, Some(StopReason::NotResumed));
}

/// Its pods would run longer than they are paid, until they are stopped.
#[test]
fn what_pays_for_less_than_ten_seconds_resumes_nothing() {
    let mut scenario = topped_up(9);
    scenario.reconcile_times(20);
    assert!(scenario.calls.is_empty());
    assert_eq!(scenario.status().resuming_since, None);
    assert_eq!(scenario.status().phase, AllocationPhase::Suspended);
}

/// Drained, evicted, preempted or deleted: the provider's side took the pod away, and it can't compute.
#[test]
fn a_pod_that_is_gone_is_paused_and_credited_until_its_containers_run_again() {
    let mut scenario = serving();
    scenario.wait(50);
    scenario.reconcile_times(2);
    assert!(scenario.calls.is_empty());
    (scenario.running.pods_ready, scenario.running.pods_run) = (0, 0);
    scenario.running.trouble = "lease-0: 0/1 nodes are available: 1 node(s) were unschedulable".into();
    scenario.reconcile_times(20);
    assert_eq!(
        scenario.served(),
        52,
        "nothing is charged from when the pod was seen to be gone"
    );
    assert!(
        matches!(scenario.calls[..], [LegCall::Pause, LegCall::CreditTo(_)]),
        "{:?}",
        scenario.calls
    );
    let (status, reason, message) = scenario.condition("Provisioned");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "ContainersNotStarted")
    );
    assert!(message.ends_with("1 node(s) were unschedulable"), "{message}");
    scenario.running.pods_run = 1;
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls.last(), Some(&LegCall::Start));
    assert_eq!(scenario.condition("Provisioned").1, "Started");
}

#[test]
fn a_job_that_has_ended_and_a_crash_are_no_lost_pods() {
    let mut scenario = serving();
    scenario.reservation.spec.allocation.workload.job = Some(Box::default());
    (scenario.running.pods_alive, scenario.running.pods_run) = (0, 0);
    scenario.running.pods_ended = 1;
    scenario.reconcile_times(5);
    assert!(scenario.calls.is_empty(), "its pod is there");
    scenario.running.pods_ended = 0;
    scenario.running.job = Some(JobResult::default());
    scenario.reconcile_times(5);
    assert!(scenario.calls.is_empty(), "it is done");
    let mut scenario = serving();
    scenario.running.pods_ready = 0;
    scenario.reconcile_times(5);
    assert!(scenario.calls.is_empty(), "a crash leaves the pod");
}

#[test]
fn an_operator_that_was_away_credits_from_the_time_that_the_pod_tells() {
    let mut scenario = serving();
    scenario.wait(50);
    scenario.reconcile_times(2);
    // For 30 seconds it did not run; meanwhile the pod was evicted.
    scenario.wait(30);
    (scenario.running.pods_ready, scenario.running.pods_run) = (0, 0);
    scenario.running.lost_at = Some(60);
    scenario.reconcile_times(20);
    assert_eq!(scenario.served(), 60);
}
