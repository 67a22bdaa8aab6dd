use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use leasehold_crds::{
    lease::{GpuLeaseSpec, GpuLeaseStatus, LeaseEscrow, Share},
    market::allocation::{Acceptance, GpuAllocationSpec, GpuAllocationStatus},
};

use super::*;

fn lease(number: usize) -> GpuLease {
    let mut lease = GpuLease::new(&format!("lease-{number:03}"), GpuLeaseSpec::default());
    lease.metadata.namespace = Some("team".into());
    let second = i64::try_from(number).unwrap();
    lease.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
    lease
}

/// A plan that asks the provider, or waits until it can be asked.
fn plan(number: usize, queued: bool) -> Plan {
    let share = Share {
        provider: "p".into(),
        namespace: format!("q-{number}"),
        ..Share::default()
    };
    let escrow = LeaseEscrow {
        shares: vec![share],
        ..LeaseEscrow::default()
    };
    Plan {
        finalizer: None,
        allocations: Vec::new(),
        call: None,
        status: GpuLeaseStatus {
            escrow: (!queued).then_some(escrow),
            ..GpuLeaseStatus::default()
        },
        queued_at: queued.then(|| "p".into()),
        wake: Timestamp::MAX,
    }
}

fn question(number: usize, answered: bool) -> GpuAllocation {
    let mut question = GpuAllocation::new(&format!("q-{number}"), GpuAllocationSpec::default());
    question.metadata.namespace = Some(format!("{PROVIDER_NAMESPACE_PREFIX}p"));
    question.status = answered.then(|| GpuAllocationStatus {
        acceptance: Some(Acceptance::default()),
        ..GpuAllocationStatus::default()
    });
    question
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn open(line: &Line, number: usize) -> usize {
    let unanswered = line.unanswered(&lease(number));
    unanswered.get("p").copied().unwrap_or_default()
}

#[test]
fn who_waits_is_woken_in_turn_as_answers_come() {
    let queue = Queue::<GpuLease>::default();
    let line = Line::new(queue.clone());
    // Those that were woken since the last call.
    let woken = || queue.drain();
    for number in 0..UNANSWERED_PER_PROVIDER_MAX {
        assert_eq!(open(&line, number), number);
        line.begin(&lease(number), &plan(number, false));
    }
    // The younger comes first, and the older is before it all the same.
    for number in [102, 101] {
        assert_eq!(open(&line, number), UNANSWERED_PER_PROVIDER_MAX);
        line.begin(&lease(number), &plan(number, true));
    }
    line.touched(&question(7, false), now());
    assert!(woken().is_empty(), "nothing is answered yet");

    line.touched(&question(7, true), now());
    assert_eq!(woken(), ["team/lease-101"]);
    assert_eq!(
        open(&line, 101),
        UNANSWERED_PER_PROVIDER_MAX - 1,
        "the place is kept for it"
    );
    assert_eq!(
        open(&line, 200),
        UNANSWERED_PER_PROVIDER_MAX,
        "and for nobody else"
    );
    line.begin(&lease(101), &plan(101, false));
    assert!(woken().is_empty());

    // The next one was called and does not ask: its place goes on to whoever waits.
    line.touched(&question(8, true), now());
    assert_eq!(woken(), ["team/lease-102"]);
    line.begin(&lease(103), &plan(103, true));
    let mut gives_up = plan(102, true);
    gives_up.queued_at = None;
    line.begin(&lease(102), &gives_up);
    assert_eq!(woken(), ["team/lease-103"]);

    // What was to be asked could not be written.
    line.begin(&lease(103), &plan(103, false));
    line.begin(&lease(104), &plan(104, true));
    line.take_back(&lease(103), &plan(103, false));
    assert_eq!(woken(), ["team/lease-104"]);
}

#[test]
fn who_lets_questions_lapse_is_passed_over_until_it_answers() {
    let line = Line::new(Queue::default());
    let taken_back = |number| {
        let mut question = question(number, false);
        question.metadata.creation_timestamp = Some(Time(now() - jiff::SignedDuration::from_secs(50)));
        question.metadata.deletion_timestamp = Some(Time(now()));
        question.spec.open_by = now().as_second();
        question
    };
    for number in 0..3 {
        assert!(line.is_asked("p", now()));
        line.begin(&lease(number), &plan(number, false));
        // It is told of more than once while it goes.
        line.touched(&taken_back(number), now());
        line.touched(&taken_back(number), now());
    }
    assert!(!line.is_asked("p", now()));
    assert!(line.is_asked("q", now()), "others are");
    line.begin(&lease(4), &plan(4, false));
    line.touched(&question(4, true), now());
    assert!(line.is_asked("p", now()));
}
