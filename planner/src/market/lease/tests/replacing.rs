//! A round in which no leg was started in time, and the round after it.

use jiff::SignedDuration;
use leasehold_crds::lease::Blocker;

use super::*;

/// A lease that `startBy` has passed without a start, and the account of its round.
fn unstarted(change: impl FnOnce(&mut Account)) -> World {
    let mut account = Account {
        block_time: NOW + 901,
        paid_until: 0,
        started_at: 0,
        paid_seconds: 0,
        running: 0,
        legs: vec![LegState::default()],
        ..account(0)
    };
    change(&mut account);
    let mut world = world(AccountRead::Present(account), AllocationPhase::Provisioning);
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    status.phase = Phase::Provisioning;
    status.escrow.as_mut().unwrap().legs[0].provider = "staller".into();
    world
}

fn planned(world: &World) -> Plan {
    decide(world, &check(world), now())
}

#[test]
fn a_lease_that_is_not_started_in_time_begins_another_round_elsewhere() {
    let mut world = unstarted(|_| {});
    let plan = planned(&world);
    assert_eq!(plan.status.close_reason, None);
    assert_eq!(plan.status.intent.as_ref().unwrap().action, IntentAction::Close);
    assert!(matches!(plan.allocations[..], [AllocationWrite::Release { .. }]));
    Arc::make_mut(&mut world.lease).status = Some(plan.status);
    assert!(matches!(planned(&world).call, Some(ChainCall::Close { .. })));

    let status = world.lease.status.clone();
    world = unstarted(|a| a.closed = true);
    Arc::make_mut(&mut world.lease).status = status;
    let unreleased = planned(&world);
    assert!(
        unreleased.status.escrow.is_some(),
        "its allocation is not released yet"
    );
    Arc::make_mut(&mut world.allocations[0].object).spec.release = true;
    let plan = planned(&world);
    let status = &plan.status;
    assert_eq!(
        (status.phase, status.blocked_on),
        (Phase::Pending, Some(Blocker::NeverStarted))
    );
    assert_eq!(
        (&status.escrow, &status.intent, &status.money),
        (&None, &None, &None)
    );
    assert_eq!(status.excluded_providers, ["staller"]);
    assert_eq!(
        (&status.suspected_providers, &status.spent_earlier),
        (&vec!["staller".to_owned()], &None)
    );
    assert_eq!((status.round, status.unstarted_rounds), (1, 1));
    assert!(status.retry_after.is_some());
    Arc::make_mut(&mut world.lease).status = Some(plan.status);
    let allocation = world.allocations[0].object.clone();
    assert!(
        !concerns(&world.lease, &allocation, now() + SignedDuration::from_secs(901)),
        "it ends by itself, and delays nothing"
    );
    let request = parsed(&world).parsed.request.unwrap();
    assert_eq!(request.excluded_providers, ["staller"]);
}

#[test]
fn a_lease_is_closed_after_three_rounds_that_nobody_started() {
    for (rounds, end) in [(0, None), (1, None), (2, Some(CloseReason::NeverStarted))] {
        let mut world = unstarted(|_| {});
        let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
        status.unstarted_rounds = rounds;
        let checked = check(&world);
        assert_eq!((checked.end, checked.ends_round), (end, end.is_none()));
    }
}

/// Anybody may close an account that was not started in time: the provider that stalls, too.
#[test]
fn whoever_closes_the_account_of_a_round_does_not_end_the_lease() {
    let ends = |change: fn(&mut Account)| {
        let checked = check(&unstarted(change));
        (checked.end, checked.ends_round)
    };
    assert_eq!(ends(|a| a.closed = true), (None, true));
    let before = |a: &mut Account| (a.closed, a.block_time) = (true, NOW + 900);
    assert_eq!(
        ends(before),
        (Some(CloseReason::ClosedOnChain), false),
        "only the payer could close it"
    );
    let served = |a: &mut Account| (a.closed, a.paid_seconds) = (true, 1);
    assert_eq!(ends(served), (Some(CloseReason::ClosedOnChain), false));
}

#[test]
fn a_round_that_is_not_started_in_time_ends_by_two_reads_and_a_deleted_lease_begins_none() {
    let mut world = unstarted(|_| {});
    world.second_account = Some(Observed::Unknown("no answer".into()));
    assert!(!check(&world).ends_round);
    let mut world = unstarted(|_| {});
    let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now());
    Arc::make_mut(&mut world.lease).metadata.deletion_timestamp = Some(at);
    let checked = check(&world);
    assert_eq!(
        (checked.end, checked.ends_round),
        (Some(CloseReason::Deleted), false)
    );
}

#[test]
fn a_leg_that_was_started_late_is_not_closed_by_an_earlier_intent() {
    let mut world = unstarted(|_| {});
    let status = planned(&world).status;
    world = unstarted(|a| (a.started_at, a.running, a.paid_until) = (NOW + 902, 1, NOW + 4_000));
    Arc::make_mut(&mut world.lease).status = Some(status);
    let plan = planned(&world);
    assert!(!plan.status.intends(IntentAction::Close) && plan.call.is_none());
    assert_eq!(plan.status.phase, Phase::Active);
}

/// An image that does not exist is started by nobody, and no provider is to blame.
#[test]
fn a_provider_missed_a_start_if_another_one_started_the_same_lease() {
    let mut world = unstarted(|a| (a.started_at, a.running, a.paid_until) = (NOW, 1, NOW + 4_000));
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    status.escrow.as_mut().unwrap().legs[0].provider = "honest".into();
    status.excluded_providers = vec!["staller".into()];
    status.suspected_providers = vec!["staller".into()];
    let expected = [
        ("honest".to_owned(), Start::InTime),
        ("staller".to_owned(), Start::Missed),
    ];
    let plan = planned(&world);
    assert_eq!(plan.starts, expected);
    Arc::make_mut(&mut world.lease).status = Some(plan.status);
    assert_eq!(planned(&world).starts, [], "each start counts once");
    assert_eq!(planned(&unstarted(|_| {})).starts, []);
}
