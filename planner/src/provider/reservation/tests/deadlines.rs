//! A leg that never starts holds its nodes without payment, and stops at a deadline whatever is known of its account.

use super::*;

/// A paid reservation whose leg never starts. `notAfter` is an hour away.
fn unstarted(start_by: i64) -> Scenario {
    let mut scenario = job();
    let allocation = &mut scenario.reservation.spec.allocation;
    allocation.escrow = terms(start_by.unsigned_abs(), Rate(1)).to_wire(1, Address([9; 20]));
    allocation.not_after = NOW + 3600;
    scenario.reservation.status.as_mut().unwrap().phase = AllocationPhase::Provisioning;
    (
        scenario.account.started_at,
        scenario.account.running,
        scenario.account.paid_until,
    ) = (0, 0, 0);
    (scenario.running.pods_ready, scenario.grace) = (0, 600);
    scenario
}

/// The seconds from now after which it stops, and why, if it does within two hours. `reads` changes what is read.
fn stops_after(mut scenario: Scenario, reads: impl Fn(&mut Scenario)) -> Option<(i64, StopReason)> {
    (0..7200).step_by(10).find_map(|second| {
        scenario.now = NOW + second;
        scenario.account.block_time = scenario.now.unsigned_abs();
        reads(&mut scenario);
        scenario.reconcile();
        Some((second, scenario.status().stop_reason?))
    })
}

const FAR: i64 = (1 << 40) - 1;

#[test]
fn a_leg_that_never_starts_stops_at_its_deadline_by_the_chain() {
    let stops = |start_by| stops_after(unstarted(start_by), |_| {});
    assert_eq!(stops(NOW + 900), Some((910, StopReason::NeverStarted)));
    assert_eq!(stops(FAR), Some((3600, StopReason::NotAfter)));
}

#[test]
fn a_leg_that_never_starts_stops_while_the_chain_is_unreadable_or_frozen() {
    let unreadable = |s: &mut Scenario| s.unreadable = true;
    // One minute for clocks that differ, and the one grace.
    let stops = |start_by| stops_after(unstarted(start_by), unreadable);
    assert_eq!(stops(NOW + 900), Some((1570, StopReason::StartUnknown)));
    assert_eq!(stops(FAR), Some((3600, StopReason::NotAfter)));
    let frozen = |s: &mut Scenario| s.account.block_time = NOW.unsigned_abs();
    let stops = |start_by| stops_after(unstarted(start_by), frozen);
    assert_eq!(stops(NOW + 900), Some((1570, StopReason::NeverStarted)));
    assert_eq!(stops(FAR), Some((3600, StopReason::NotAfter)));
}

/// A hostile market starts the clock of the account by a leg of its own.
#[test]
fn the_leg_of_another_provider_does_not_start_this_one() {
    let start = |s: &mut Scenario| {
        let account = &mut s.account;
        (account.started_at, account.running) = (NOW.unsigned_abs(), 0b10);
        account.paid_until = NOW.unsigned_abs() + 3000;
    };
    let stops = stops_after(unstarted(NOW + 900), start);
    assert_eq!(stops, Some((910, StopReason::NeverStarted)));
    // A leg that has run is paid, also while it is paused.
    let ran = |s: &mut Scenario| {
        start(s);
        s.account.legs[0].served_seconds = 5;
    };
    assert_eq!(
        stops_after(unstarted(NOW + 900), ran),
        Some((3600, StopReason::NotAfter))
    );
}

#[test]
fn one_reading_without_a_started_leg_stops_nothing() {
    let mut scenario = unstarted(NOW - 10);
    scenario.now = NOW;
    let started = Account {
        started_at: 1,
        running: 1,
        ..scenario.account.clone()
    };
    scenario.second = Some(started);
    scenario.reconcile();
    assert_eq!(scenario.status().stop_reason, None);
}
