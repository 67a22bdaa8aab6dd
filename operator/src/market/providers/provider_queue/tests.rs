use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use leasehold_crds::{
    lease::{GpuLeaseSpec, GpuLeaseStatus, LeaseEscrow, LeaseLeg},
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

/// A plan that makes an allocation at the provider, or is queued at it.
fn plan(number: usize, queued: bool) -> Plan {
    let leg = LeaseLeg {
        provider: "p".into(),
        namespace: format!("q-{number}"),
        ..LeaseLeg::default()
    };
    let escrow = LeaseEscrow {
        legs: vec![leg],
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
        starts: Vec::new(),
        queued_at: queued.then(|| "p".into()),
        wake: Timestamp::MAX,
    }
}

fn allocation(number: usize, answered: bool) -> GpuAllocation {
    let mut allocation = GpuAllocation::new(&format!("q-{number}"), GpuAllocationSpec::default());
    allocation.metadata.namespace = Some(format!("{PROVIDER_NAMESPACE_PREFIX}p"));
    allocation.status = answered.then(|| GpuAllocationStatus {
        acceptance: Some(Acceptance::default()),
        ..GpuAllocationStatus::default()
    });
    allocation
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn open(queue: &ProviderQueue, number: usize) -> usize {
    let unanswered = queue.unanswered(&lease(number));
    unanswered.get("p").copied().unwrap_or_default()
}

#[test]
fn queued_leases_are_enqueued_oldest_first_as_allocations_are_answered() {
    let leases = Queue::<GpuLease>::default();
    let queue = ProviderQueue::new(leases.clone());
    // Leases that were enqueued since the last call.
    let enqueued = || leases.drain();
    for number in 0..UNANSWERED_PER_PROVIDER_MAX {
        assert_eq!(open(&queue, number), number);
        queue.begin(&lease(number), &plan(number, false));
    }
    // The younger lease is queued first; the older one still comes before it.
    for number in [102, 101] {
        assert_eq!(open(&queue, number), UNANSWERED_PER_PROVIDER_MAX);
        queue.begin(&lease(number), &plan(number, true));
    }
    queue.allocation_changed(&allocation(7, false), now());
    assert!(enqueued().is_empty(), "nothing is answered yet");

    queue.allocation_changed(&allocation(7, true), now());
    assert_eq!(enqueued(), ["team/lease-101"]);
    assert_eq!(
        open(&queue, 101),
        UNANSWERED_PER_PROVIDER_MAX - 1,
        "the slot is reserved for it"
    );
    assert_eq!(
        open(&queue, 200),
        UNANSWERED_PER_PROVIDER_MAX,
        "and for no other lease"
    );
    queue.begin(&lease(101), &plan(101, false));
    assert!(enqueued().is_empty());

    // A lease that does not use its reserved slot leaves it to the next queued one.
    queue.allocation_changed(&allocation(8, true), now());
    assert_eq!(enqueued(), ["team/lease-102"]);
    queue.begin(&lease(103), &plan(103, true));
    let mut gives_up = plan(102, true);
    gives_up.queued_at = None;
    queue.begin(&lease(102), &gives_up);
    assert_eq!(enqueued(), ["team/lease-103"]);

    // The allocation could not be written.
    queue.begin(&lease(103), &plan(103, false));
    queue.begin(&lease(104), &plan(104, true));
    queue.cancel(&lease(103), &plan(103, false));
    assert_eq!(enqueued(), ["team/lease-104"]);
}

#[test]
fn a_provider_that_does_not_answer_in_time_is_skipped_until_it_answers() {
    let queue = ProviderQueue::new(Queue::default());
    let taken_back = |number| {
        let mut allocation = allocation(number, false);
        allocation.metadata.creation_timestamp = Some(Time(now() - jiff::SignedDuration::from_secs(50)));
        allocation.metadata.deletion_timestamp = Some(Time(now()));
        allocation.spec.open_by = now().as_second();
        allocation
    };
    for number in 0..3 {
        assert!(queue.is_responsive("p", now()));
        queue.begin(&lease(number), &plan(number, false));
        // Its deletion has more than one event.
        queue.allocation_changed(&taken_back(number), now());
        queue.allocation_changed(&taken_back(number), now());
    }
    assert!(!queue.is_responsive("p", now()));
    assert!(
        queue.is_responsive("q", now()),
        "other providers receive allocations"
    );
    queue.begin(&lease(4), &plan(4, false));
    queue.allocation_changed(&allocation(4, true), now());
    assert!(queue.is_responsive("p", now()));
}

#[test]
fn what_a_provider_did_not_start_counts_after_a_restart_and_once() {
    let stored = GpuProviderStatus {
        missed_starts: 3,
        last_missed_at: Some(now().to_string()),
        ..GpuProviderStatus::default()
    };
    let queue = ProviderQueue::new(Queue::default());
    for _ in 0..2 {
        queue.restore("p", Some(&stored));
    }
    assert!(!queue.starts("p", now()));
    let over = now() + jiff::SignedDuration::from_mins(5);
    assert!(queue.starts("p", over), "it is counted once");
    let mut status = stored.clone();
    queue.record("p").store(&mut status);
    assert_eq!(status, stored);
}
