use leasehold_crds::{
    lease::workload::{Service, Workload},
    market::allocation::GpuAllocationSpec,
    provider::reservation::GpuReservationSpec,
};

use super::*;
use crate::provider::reservation;

/// The pods that these numbers count.
pub(in super::super) fn pods_of(running: &Running) -> Vec<NodePod> {
    let pod = |index: usize| NodePod {
        index: i64::try_from(index).unwrap(),
        name: format!("lease-{index}"),
        has_run: index < running.pods_run,
        ..NodePod::default()
    };
    let ended = |index: usize| NodePod {
        end: Some(End::Program {
            exit_code: 0,
            finished_at: None,
        }),
        ..pod(index)
    };
    (0..running.pods_alive)
        .map(pod)
        .chain((0..running.pods_ended).map(ended))
        .collect()
}

const NOW: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// An active reservation of two nodes.
fn reservation(is_job: bool) -> GpuReservation {
    let workload = Workload {
        job: is_job.then(Box::default),
        service: (!is_job).then(|| Box::new(Service::default())),
        ..Workload::default()
    };
    let allocation = GpuAllocationSpec {
        nodes: 2,
        workload,
        ..GpuAllocationSpec::default()
    };
    let spec = GpuReservationSpec {
        allocation,
        nodes: vec!["a".into(), "b".into()],
        ..GpuReservationSpec::default()
    };
    let mut reservation = GpuReservation::new("lease-x", spec);
    reservation.status = Some(GpuReservationStatus {
        phase: AllocationPhase::Active,
        ..GpuReservationStatus::default()
    });
    reservation
}

fn running(index: i64) -> NodePod {
    NodePod {
        index,
        name: format!("lease-{index}"),
        uid: format!("uid-{index}"),
        has_run: true,
        finalizers: vec!["a.b/c".into(), FINALIZER_POD.into()],
        ..NodePod::default()
    }
}

fn exited(index: i64, exit_code: i64) -> NodePod {
    NodePod {
        end: Some(End::Program {
            exit_code,
            finished_at: None,
        }),
        ..running(index)
    }
}

fn lost(index: i64) -> NodePod {
    NodePod {
        removed_at: Some(NOW - 20),
        end: Some(End::Lost("EvictionByEvictionAPI: drained".into())),
        ..running(index)
    }
}

fn leaving(pod: NodePod) -> NodePod {
    NodePod {
        is_leaving: true,
        removed_at: pod.removed_at.or(Some(NOW - 5)),
        ..pod
    }
}

/// The changes as `+name`, `-name` for a removal that deletes, and `~name` for one that only releases.
fn changes_of(
    reservation: &GpuReservation,
    pods: &[NodePod],
    now: i64,
) -> (Vec<String>, GpuReservationStatus) {
    let mut status = reservation.status.clone().unwrap();
    let (changes, _) = changes(reservation, pods, &mut status, at(now));
    let text = |change: &PodChange| match change {
        PodChange::Create(pod) => format!("+{}", pod.metadata.name.as_deref().unwrap()),
        PodChange::Remove {
            name,
            finalizers,
            delete,
            ..
        } => {
            assert_eq!(finalizers.as_deref(), Some(&["a.b/c".to_owned()][..]));
            format!("{}{name}", if *delete { '-' } else { '~' })
        }
    };
    (changes.iter().map(text).collect(), status)
}

fn is_of(reservation: &GpuReservation, pods: &[NodePod], expected: &[&str]) {
    let (changes, _) = changes_of(reservation, pods, NOW);
    assert_eq!(changes, expected, "{pods:?}");
}

#[test]
fn a_node_has_one_pod_at_a_time_and_a_lost_one_has_a_successor() {
    for is_job in [false, true] {
        let reservation = reservation(is_job);
        is_of(&reservation, &[], &["+lease-0", "+lease-1"]);
        is_of(&reservation, &[running(0), running(1)], &[]);
        is_of(&reservation, &[running(1)], &["+lease-0"]);
        is_of(&reservation, &[lost(0), running(1)], &["-lease-0"]);
        // It may still run: on a lost node, a pod that is being deleted stays until the node is back, or gone.
        is_of(&reservation, &[leaving(running(0)), running(1)], &[]);
        is_of(&reservation, &[leaving(lost(0)), running(1)], &["~lease-0"]);
        let refused = NodePod {
            end: Some(End::Refused("UnexpectedAdmissionError: no GPU".into())),
            ..running(0)
        };
        is_of(&reservation, &[refused, running(1)], &["-lease-0"]);
    }
}

#[test]
fn a_program_that_ended_is_not_run_again_but_beside_a_loss() {
    let job = reservation(true);
    is_of(&job, &[exited(0, 0), running(1)], &[]);
    is_of(&job, &[exited(0, 1), running(1)], &[]);
    // Whoever deletes it: what it did is done, and its object stays until the result is stored.
    is_of(&job, &[leaving(exited(0, 0)), running(1)], &[]);
    is_of(&job, &[exited(0, 0), lost(1)], &["-lease-1"]);
    is_of(&job, &[exited(0, 1), lost(1)], &["-lease-0", "-lease-1"]);
    let mut stored = reservation(true);
    stored.status.as_mut().unwrap().job = Some(leasehold_crds::lease::workload::JobResult::default());
    is_of(&stored, &[], &[]);
    let service = reservation(false);
    is_of(&service, &[exited(0, 1), running(1)], &["-lease-0"]);
}

#[test]
fn a_job_ends_by_the_exits_of_its_own_program() {
    let job = reservation(true);
    let end_of = |pods: &[NodePod]| job_end(&job, pods).map(|end| (end.pod.to_owned(), end.exit_code));
    let some = |name: &str, code: i64| Some((name.to_owned(), code));
    assert_eq!(end_of(&[exited(0, 0), exited(1, 0)]), some("lease-0", 0));
    assert_eq!(end_of(&[leaving(exited(1, 0)), exited(0, 0)]), some("lease-0", 0));
    assert_eq!(end_of(&[running(0), exited(1, 7)]), some("lease-1", 7));
    for pods in [
        vec![],
        vec![exited(0, 0)],
        vec![exited(0, 0), running(1)],
        vec![exited(0, 0), lost(1)],
        vec![exited(0, 7), lost(1)],
        vec![exited(0, 7)],
        vec![exited(0, 7), leaving(running(1))],
        // The successor of a lost pod waits for its image.
        vec![
            exited(0, 7),
            NodePod {
                has_run: false,
                ..running(1)
            },
        ],
    ] {
        assert_eq!(end_of(&pods), None, "{pods:?}");
    }
    assert_eq!(job_end(&reservation(false), &[exited(0, 0), exited(1, 0)]), None);
}

#[test]
fn creations_in_a_row_wait_longer_and_longer() {
    let mut reservation = reservation(false);
    let (mut now, mut created) = (NOW, Vec::new());
    for _ in 0..300 {
        let (changes, status) = changes_of(&reservation, &[running(1)], now);
        reservation.status = Some(status);
        if !changes.is_empty() {
            created.push(now - NOW);
        }
        now += 1;
    }
    assert_eq!(created, [0, 3, 9, 21, 45, 93, 153, 213, 273]);
    // A pod that was refused stays until its successor is due.
    let refused = NodePod {
        end: Some(End::Refused("OutOfcpu: no".into())),
        ..running(0)
    };
    assert_eq!(changes_of(&reservation, &[refused, running(1)], now).0.len(), 0);
    let (changes, status) = changes_of(&reservation, &[running(1)], now + 601);
    assert_eq!(changes.len(), 1);
    assert_eq!(status.pod_creations.as_ref().unwrap().times, 1);
    // The clock of the operator that created it was an hour ahead.
    reservation.status = Some(status);
    let behind = at(now + 601 - 3600);
    let mut status = reservation.status.clone().unwrap();
    let (_, due) = super::changes(&reservation, &[running(1)], &mut status, behind);
    assert_eq!(due, Some(later(behind, 60)));
}

/// A pod tells since when it was lost, and is removed.
#[test]
fn a_loss_is_stored_before_the_pod_that_tells_it_is_removed() {
    let mut plan = reservation::Plan {
        workload: reservation::Workload::Keep,
        call: None,
        delete: false,
        status: GpuReservationStatus::default(),
        wake: at(NOW),
    };
    assert!(!plan.must_persist_first(None));
    plan.status.fault_since = Some(NOW);
    assert!(plan.must_persist_first(Some(&GpuReservationStatus::default())));
    let stored = plan.status.clone();
    assert!(!plan.must_persist_first(Some(&stored)));
}

#[test]
fn pods_are_counted_by_what_they_serve() {
    let not_run = NodePod {
        has_run: false,
        ..running(2)
    };
    let pods = vec![
        running(0),
        lost(1),
        not_run,
        leaving(running(3)),
        exited(4, 0),
        exited(5, 1),
    ];
    let counted = Running::of(pods);
    assert_eq!((counted.pods_alive, counted.pods_run), (3, 1));
    assert_eq!((counted.pods_ended, counted.pods_succeeded), (2, 1));
    assert_eq!(counted.lost_at, Some(NOW - 20));
    let mut changes = removals(&counted.pods).into_iter();
    assert!(matches!(
        changes.next(),
        Some(PodChange::Remove { delete: true, .. })
    ));
    assert_eq!(changes.len(), 5, "each is released");
}
