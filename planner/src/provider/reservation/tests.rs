//! The results of a job, reconcile by reconcile: kept after its end, served, then fetched or expired, and deleted.

use std::sync::Arc;

use leasehold_crds::{
    GpuReservation,
    lease::workload::{Job, JobOutput, JobResult, ResultsAt, Storage},
    market::allocation::{AllocationPhase, GpuAllocationSpec, StopReason},
    payment::{
        escrow::EscrowSnapshot,
        money::{Rate, TokenAmount},
    },
    provider::reservation::{GpuReservationSpec, GpuReservationStatus},
};

use super::{pods::tests::pods_of, *};
use crate::{
    escrow::{AccountRead, Address, Hash, Leg, LegState, Terms, allocation_name},
    ports::Head,
    provider::{health::Health, offer::resumption::Room},
};

mod chain;
mod deadlines;
mod refused;

const NOW: i64 = 1_800_000_000;
const KEEP: i64 = 3600;

struct Scenario {
    reservation: GpuReservation,
    running: Running,
    account: Account,
    /// What the second read shows, if not the same.
    second: Option<Account>,
    unreadable: bool,
    grace: u64,
    /// Whether the newest block is final.
    is_final: bool,
    /// What the newest final block shows, if not the same.
    final_account: Option<Account>,
    now: i64,
}

/// Of one leg.
pub(crate) fn terms(start_by: u64, rate: Rate) -> Terms {
    Terms {
        payer: Address([1; 20]),
        market: Address([2; 20]),
        token: Address([3; 20]),
        closer: Address([4; 20]),
        salt: Hash([5; 32]),
        start_by,
        notice_seconds: 0,
        pause_for: 0,
        legs: vec![Leg {
            payee: Address([6; 20]),
            controller: Address([7; 20]),
            rate,
        }],
    }
}

/// The account of such terms, whose leg runs.
pub(crate) fn account() -> Account {
    Account {
        closed: false,
        deposited: TokenAmount(1 << 40),
        balance_scaled: u128::MAX >> 1,
        block_time: NOW.unsigned_abs(),
        paid_until: 1 << 32,
        exhausted_at: 0,
        started_at: 1,
        paid_seconds: 0,
        running: 1,
        ended: 0,
        legs: vec![LegState::default()],
    }
}

/// An answer of the block of that time.
pub(crate) fn known(read: AccountRead, time: u64) -> Observed<AccountAt> {
    let block = Head {
        number: time,
        hash: Hash::default(),
        time,
    };
    Observed::Known(AccountAt { block, read })
}

/// Name of the reservation of an allocation.
pub(crate) fn named(spec: &GpuReservationSpec) -> String {
    allocation_name(spec.allocation.escrow.id.parse().unwrap(), 0)
}

/// A job that serves.
fn job() -> Scenario {
    let output = JobOutput {
        path: "/data/out".into(),
        keep_results_for: format!("{KEEP}s"),
        recipients: vec!["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj".into()],
    };
    let mut allocation = GpuAllocationSpec {
        nodes: 1,
        not_after: 1 << 32,
        deposit: "0".into(),
        escrow: terms(1 << 32, Rate(500_000_000_000_000)).to_wire(1, Address([9; 20])),
        storage: Some(Storage {
            size: "1Gi".into(),
            mount_path: "/data".into(),
        }),
        ..GpuAllocationSpec::default()
    };
    allocation.workload.job = Some(Box::new(Job {
        output: Some(output),
        ..Job::default()
    }));
    let spec = GpuReservationSpec {
        allocation,
        ..GpuReservationSpec::default()
    };
    let mut reservation = GpuReservation::new(&named(&spec), spec);
    reservation.status = Some(GpuReservationStatus {
        phase: AllocationPhase::Active,
        ..GpuReservationStatus::default()
    });
    let at = ResultsAt {
        node: 0,
        url: "http://192.0.2.1:30000/uid".into(),
        until: None,
    };
    Scenario {
        reservation,
        running: Running {
            namespace: true,
            pods_alive: 1,
            pods_ready: 1,
            pods_run: 1,
            results: ResultsSeen {
                at: vec![at],
                ..ResultsSeen::default()
            },
            ..Running::default()
        },
        is_final: true,
        final_account: None,
        account: account(),
        second: None,
        unreadable: false,
        grace: 0,
        now: NOW,
    }
}

fn keeps_results(plan: &Plan) -> bool {
    matches!(plan.workload, Workload::KeepResults(_))
}

impl Scenario {
    fn reconcile(&mut self) -> Plan {
        let read = |account: &Account| match self.unreadable {
            true => Observed::Unknown("the chain is away".into()),
            false => known(AccountRead::Present(account.clone()), account.block_time),
        };
        let second = read(self.second.as_ref().unwrap_or(&self.account));
        let last = read(self.final_account.as_ref().unwrap_or(&self.account));
        let read = read(&self.account);
        let second = match wants_second(&self.reservation, &read) {
            true => second,
            false => Observed::Unknown("not read".into()),
        };
        if wants_live(&self.reservation) {
            self.running.reading = Reading::Live;
        }
        self.running.pods = pods_of(&self.running);
        let world = World {
            reservation: &self.reservation,
            account: read,
            second,
            settled: None,
            final_reads: if self.is_final { vec![last; 2] } else { Vec::new() },
            running: Observed::Known(self.running.clone()),
            allocation_exists: Observed::Known(false),
            grace_seconds: self.grace,
            health: Health {
                fault: Observed::Known(None),
                due: None,
            },
            room: Room::Free,
            withdraw: None,
            denylist: Arc::default(),
            connector: &crate::provider::workload::ConnectorPods::default(),
            results_image: "operator",
        };
        let plan = decide(&world, Timestamp::from_second(self.now).unwrap());
        self.reservation.status = Some(plan.status.clone());
        match plan.workload {
            Workload::Halt(_) => (self.running.pods_alive, self.running.pods_ready) = (0, 0),
            Workload::Remove => {
                self.running.namespace = false;
                self.running.results = ResultsSeen::default();
            }
            Workload::Keep | Workload::Run { .. } | Workload::KeepResults(_) => {}
        }
        plan
    }

    fn status(&self) -> &GpuReservationStatus {
        self.reservation.status.as_ref().unwrap()
    }

    /// The market has closed the account and asks to stop.
    fn released(&mut self) {
        self.account.closed = true;
        self.account.running = 0;
        self.reservation.spec.release = true;
    }

    fn ended(&mut self) {
        self.running.pods_alive = 0;
        self.running.pods_ready = 0;
        self.running.job = Some(JobResult::default());
    }

    /// Reconciles until the reservation is stopped, and returns the plan of the next reconcile.
    fn stopped(&mut self) -> Plan {
        for _ in 0..4 {
            self.reconcile();
        }
        assert!(self.status().stopped_at.is_some());
        self.reconcile()
    }
}

/// Such a reservation is never made; if one is there, it must not reach a namespace that was not made for a lease.
#[test]
fn a_reservation_with_another_name_touches_no_namespace() {
    for released in [false, true] {
        let mut scenario = job();
        scenario.reservation.metadata.name = Some("kube-system".into());
        if released {
            scenario.released();
        }
        for _ in 0..6 {
            let plan = scenario.reconcile();
            assert_eq!((plan.workload, plan.call), (Workload::Keep, None));
            assert_eq!(plan.status.stop_reason, Some(StopReason::BadTerms));
            assert!(plan.delete, "its allocation does not exist");
        }
    }
}

#[test]
fn the_address_is_reported_while_the_job_runs_and_the_expiry_when_it_ends() {
    let mut scenario = job();
    scenario.reconcile();
    assert_eq!(scenario.status().results.len(), 1);
    assert_eq!(scenario.status().results[0].until, None);
    scenario.ended();
    scenario.reconcile();
    let until = Timestamp::from_second(NOW + KEEP).unwrap().to_string();
    assert_eq!(
        scenario.status().results[0].until,
        Some(until),
        "before the market can close the lease"
    );
    assert_eq!(scenario.status().stop_reason, None);
}

#[test]
fn results_outlive_the_reservation_until_their_time_is_over() {
    let mut scenario = job();
    scenario.ended();
    scenario.reconcile();
    scenario.released();
    let plan = scenario.stopped();
    assert!(keeps_results(&plan) && !plan.delete);
    assert_eq!(
        plan.status.phase,
        AllocationPhase::Stopped,
        "the market sees it at once"
    );
    // A restart in between, and a job that was seen already, change nothing.
    scenario.now = NOW + KEEP - 1;
    let plan = scenario.reconcile();
    assert!(keeps_results(&plan));
    assert_eq!(plan.wake.as_second(), NOW + KEEP, "it goes in its second");
    scenario.now = NOW + KEEP;
    assert_eq!(scenario.reconcile().workload, Workload::Remove);
    assert!(scenario.reconcile().delete);
}

#[test]
fn a_market_that_asks_late_takes_nothing_of_their_time() {
    let mut scenario = job();
    scenario.ended();
    scenario.reconcile();
    scenario.now += 2 * KEEP;
    scenario.released();
    assert!(keeps_results(&scenario.stopped()));
    assert_eq!(scenario.status().results_until, Some(NOW + 3 * KEEP));
}

#[test]
fn what_was_fetched_goes_at_once_and_does_not_come_back() {
    let mut scenario = job();
    scenario.ended();
    scenario.reconcile();
    scenario.released();
    assert!(keeps_results(&scenario.stopped()));
    scenario.running.results.fetched = true;
    scenario.now += 10;
    assert_eq!(scenario.reconcile().workload, Workload::Remove);
    // The namespace takes its time to go, and its pods are gone before it.
    scenario.running.namespace = true;
    scenario.running.results.fetched = false;
    assert_eq!(scenario.reconcile().workload, Workload::Remove);
    assert!(scenario.reconcile().delete);
}

#[test]
fn a_tenant_who_gives_up_a_running_job_leaves_nothing() {
    let mut scenario = job();
    scenario.reconcile();
    scenario.reservation.spec.allocation.drop_results = true;
    scenario.released();
    scenario.reconcile();
    // Its program is killed, which looks like a job that failed.
    scenario.running.job = Some(JobResult {
        exit_code: 137,
        ..JobResult::default()
    });
    for _ in 0..3 {
        scenario.reconcile();
    }
    assert_eq!(scenario.status().results_until, None);
    assert!(!scenario.running.namespace);
    // A job that had ended by itself before is kept all the same: its tenant came too late.
    let mut scenario = job();
    scenario.ended();
    scenario.reconcile();
    scenario.reservation.spec.allocation.drop_results = true;
    scenario.released();
    assert!(keeps_results(&scenario.stopped()));
}

#[test]
fn what_a_job_had_when_the_money_ended_is_kept() {
    let mut scenario = job();
    scenario.reconcile();
    scenario.account.exhausted_at = NOW.unsigned_abs();
    scenario.account.running = 0;
    scenario.account.balance_scaled = 0;
    scenario.account.paid_until = NOW.unsigned_abs();
    for _ in 0..2 {
        scenario.reconcile();
    }
    assert_eq!(scenario.status().stop_reason, Some(StopReason::FundsSpent));
    assert_eq!(scenario.status().results_until, Some(NOW + KEEP));
    scenario.account.closed = true;
    assert!(keeps_results(&scenario.stopped()));
}

#[test]
fn nothing_is_kept_of_what_never_served_and_whoever_deletes_the_reservation_drops_it() {
    let mut scenario = job();
    if let Some(status) = &mut scenario.reservation.status {
        status.phase = AllocationPhase::Provisioning;
    }
    scenario.released();
    scenario.reconcile();
    assert_eq!(scenario.status().results_until, None);

    let mut scenario = job();
    scenario.ended();
    scenario.reconcile();
    scenario.released();
    assert!(keeps_results(&scenario.stopped()));
    scenario.reservation.metadata.deletion_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(NOW).unwrap()),
    );
    assert_eq!(scenario.reconcile().workload, Workload::Remove);
    assert!(scenario.reconcile().delete);
}

/// A reservation that was never paid.
fn unpaid() -> GpuReservation {
    let mut reservation = job().reservation;
    reservation.spec.deadline = NOW + 90;
    reservation.spec.allocation.open_by = NOW + 60;
    reservation.status = Some(GpuReservationStatus {
        phase: AllocationPhase::Reserved,
        ..GpuReservationStatus::default()
    });
    reservation
}

/// Reconciles once, with a chain that shows no account; `exists` is whether the market still shows the allocation.
fn reconcile_unpaid(
    reservation: &mut GpuReservation,
    exists: Observed<bool>,
    now: i64,
) -> Option<StopReason> {
    let time = now.unsigned_abs();
    reconcile_absent(reservation, exists, now, (time, time))
}

/// The same, where the two answers are of blocks of these times.
fn reconcile_absent(
    reservation: &mut GpuReservation,
    exists: Observed<bool>,
    now: i64,
    (one, other): (u64, u64),
) -> Option<StopReason> {
    let world = World {
        reservation,
        account: known(AccountRead::Absent, one),
        second: known(AccountRead::Absent, other),
        settled: None,
        final_reads: Vec::new(),
        running: Observed::Known(Running::default()),
        allocation_exists: exists,
        grace_seconds: 0,
        health: Health {
            fault: Observed::Known(None),
            due: None,
        },
        room: Room::Free,
        withdraw: None,
        denylist: Arc::default(),
        connector: &crate::provider::workload::ConnectorPods::default(),
        results_image: "operator",
    };
    let status = decide(&world, Timestamp::from_second(now).unwrap()).status;
    let reason = status.stop_reason;
    reservation.status = Some(status);
    reason
}

#[test]
fn an_unpaid_reservation_ends_some_seconds_after_its_allocation_is_deleted() {
    let gone = || Observed::Known(false);
    let mut scenario = unpaid();
    assert_eq!(reconcile_unpaid(&mut scenario, Observed::Known(true), NOW), None);
    assert_eq!(
        reconcile_unpaid(&mut scenario, gone(), NOW + 1),
        None,
        "one read is not enough"
    );
    assert_eq!(reconcile_unpaid(&mut scenario, gone(), NOW + 5), None);
    let unknown = Observed::Unknown("the market is away".into());
    assert_eq!(
        reconcile_unpaid(&mut scenario, unknown, NOW + 7),
        None,
        "nor is a failed read"
    );
    assert_eq!(
        reconcile_unpaid(&mut scenario, gone(), NOW + 8),
        None,
        "the count begins again"
    );
    let reason = reconcile_unpaid(&mut scenario, gone(), NOW + 13);
    assert_eq!(reason, Some(StopReason::AllocationGone));
}

#[test]
fn a_reservation_that_was_paid_does_not_end_with_its_allocation_when_the_chain_shows_nothing() {
    let mut scenario = unpaid();
    scenario.status.as_mut().unwrap().escrow = Some(EscrowSnapshot {
        deposited: "1".into(),
        ..EscrowSnapshot::default()
    });
    for second in 1..=90 {
        let reason = reconcile_unpaid(&mut scenario, Observed::Known(false), NOW + second);
        assert_eq!(reason, None, "after {second} s");
    }
    // Blocks after `openBy` without the account: a reorganisation has removed it, and nobody can open it any more.
    let reason = reconcile_unpaid(&mut scenario, Observed::Known(false), NOW + 91);
    assert_eq!(reason, Some(StopReason::Unpaid));
}
