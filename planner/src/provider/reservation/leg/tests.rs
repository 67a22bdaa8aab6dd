//! Faults of a leg that serves, reconcile by reconcile, on a chain that carries out every call.

use leasehold_crds::{market::allocation::AllocationPhase, payment::money::TokenAmount};
use proptest::prelude::*;

use super::*;

mod interrupted;
mod scenario;
mod start;
mod stopped;

use scenario::{Scenario, serving};

#[test]
fn the_seconds_of_a_fault_go_back_and_the_leg_resumes() {
    let mut scenario = serving();
    scenario.wait(100);
    scenario.reconcile_times(1);
    assert!(scenario.calls.is_empty());
    scenario.wait(19);
    scenario.at_fault(10);
    scenario.reconcile_times(10);
    assert_eq!(
        scenario.served(),
        110,
        "what it served until the fault, not a second more"
    );
    assert_eq!(scenario.calls, [LegCall::Pause, LegCall::CreditTo(12)]);
    let status = scenario.status();
    assert_eq!((status.fault_since, status.credit_due), (Some(110), Some(0)));
    assert_eq!(status.phase, AllocationPhase::Active);
    scenario.fault = Observed::Known(None);
    scenario.reconcile_times(10);
    assert_eq!(scenario.calls.len(), 3);
    assert!(scenario.account.running == 1 && scenario.served() > 115);
    let status = scenario.status();
    let left = (status.fault_since, status.credit_due, status.served_after_credit);
    assert_eq!(left, (None, None, None));
}

#[test]
fn a_fault_that_is_over_before_its_pause_is_mined_is_credited_all_the_same() {
    for times_at_fault in 1..4 {
        let mut scenario = serving();
        scenario.wait(50);
        scenario.at_fault(5);
        scenario.reconcile_times(times_at_fault);
        scenario.fault = Observed::Known(None);
        scenario.reconcile_times(10);
        assert!(
            matches!(
                scenario.calls[..],
                [LegCall::Pause, LegCall::CreditTo(_), LegCall::Start]
            ),
            "{:?}",
            scenario.calls
        );
    }
}

#[test]
fn an_operator_that_was_away_gives_back_the_fault_and_not_its_absence() {
    let mut scenario = serving();
    scenario.wait(50);
    scenario.at_fault(5);
    scenario.reconcile_times(2);
    assert_eq!(scenario.calls, [LegCall::Pause]);
    scenario.wait(3600);
    scenario.reconcile_times(4);
    assert_eq!(scenario.served(), 45);
}

/// Two processes with the status of the same moment send the same total, and so does one that restarts before its credit
/// is mined: late repeats credit nothing, even after the leg has served again.
#[test]
fn a_repeated_credit_names_the_same_total() {
    let mut scenario = serving();
    scenario.wait(50);
    scenario.at_fault(5);
    scenario.reconcile_times(5);
    let status = scenario.reservation.status.clone();
    assert_eq!(scenario.calls.len(), 2);
    let repeat = scenario.calls[1].clone();
    assert!(matches!(repeat, LegCall::CreditTo(_)));
    scenario.fault = Observed::Known(None);
    scenario.reconcile_times(40);
    let served = scenario.served();
    scenario.mine(&repeat);
    assert_eq!(scenario.served(), served);

    // A second fault raises the total by its own seconds; a process that has missed all of it repeats the first total.
    scenario.at_fault(3);
    scenario.reconcile_times(6);
    let (served, credited) = (scenario.served(), scenario.account.legs[0].credited_seconds);
    scenario.reservation.status = status;
    scenario.well = None;
    scenario.reconcile_with(&scenario.account.clone(), &scenario.account.clone());
    assert!(scenario.served() == served && scenario.account.legs[0].credited_seconds == credited);
}

/// A node that was last heard 30 seconds before the leg started again, and is found lost 30 seconds after: the leg did not
/// serve in the first half of this time, and what it served before belongs to its payee.
#[test]
fn a_fault_that_began_before_the_last_start_credits_only_what_was_served_since() {
    let mut scenario = serving();
    scenario.wait(100);
    scenario.at_fault(5);
    scenario.reconcile_times(6);
    scenario.fault = Observed::Known(None);
    scenario.wait(60);
    scenario.reconcile_times(3);
    assert_eq!(scenario.account.running, 1);
    let (served, started) = (scenario.account.legs[0], scenario.started);
    scenario.wait(30);
    scenario.fault_since(started - 30);
    scenario.well = Some(95);
    scenario.reconcile_times(8);
    let leg = scenario.account.legs[0];
    assert_eq!((leg.served_seconds, scenario.account.running), (95, 0));
    assert!(leg.credited_seconds > served.credited_seconds + 30);
}

#[test]
fn nothing_starts_while_the_gpus_are_unknown() {
    let mut scenario = serving();
    scenario.wait(50);
    scenario.at_fault(5);
    scenario.reconcile_times(5);
    scenario.fault = Observed::Unknown("the agent is silent".into());
    scenario.reconcile_times(10);
    assert_eq!(scenario.calls.len(), 2, "paused and credited, and no more");
    scenario.fault = Observed::Known(None);
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls.last(), Some(&LegCall::Start));

    // And what serves is not paused for a silence.
    scenario.fault = Observed::Unknown("the agent is silent".into());
    scenario.reconcile_times(5);
    assert_eq!(scenario.account.running, 1);
}

#[test]
fn a_fault_before_the_first_second_only_delays_the_start() {
    let mut scenario = serving();
    scenario.account.running = 0;
    scenario.account.block_time = 20;
    scenario.at_fault(5);
    scenario.reconcile_times(5);
    assert!(scenario.calls.is_empty(), "{:?}", scenario.calls);
    scenario.fault = Observed::Known(None);
    scenario.reconcile_times(5);
    assert_eq!(scenario.calls, [LegCall::Start]);
}

#[test]
fn what_was_earned_is_withdrawn_by_the_pools_policy_while_it_runs() {
    let policy = |every_seconds, above: u128| Withdrawals {
        every_seconds,
        above: TokenAmount(500 * above),
    };
    for (policy, at) in [(policy(60, 0), 60), (policy(10, 90), 90)] {
        let mut scenario = serving();
        scenario.withdraw = Some(policy);
        scenario.wait(at - 1);
        scenario.reconcile_with(&scenario.account.clone(), &scenario.account.clone());
        assert!(scenario.calls.is_empty() && scenario.status().intent.is_none());
        scenario.wait(1);
        scenario.reconcile_times(4);
        assert_eq!(
            scenario.calls,
            [LegCall::Withdraw],
            "once, and not again before as much is owed"
        );
        let leg = &scenario.account.legs[0];
        assert!(leg.withdrawn.0 >= 500 * u128::from(at) && leg.owed.0 <= 500 * 4);
        assert_eq!(
            (scenario.account.running, scenario.status().intent.as_ref()),
            (1, None)
        );
        scenario.wait(at);
        scenario.reconcile_times(3);
        assert_eq!(scenario.calls, [LegCall::Withdraw, LegCall::Withdraw]);
    }
}

#[test]
fn nothing_is_withdrawn_that_may_have_to_be_given_back() {
    let mut scenario = serving();
    scenario.withdraw = Some(Withdrawals {
        every_seconds: 10,
        above: TokenAmount(0),
    });
    scenario.wait(50);
    scenario.fault = Observed::Unknown("the agent is silent".into());
    scenario.reconcile_times(3);
    assert!(scenario.calls.is_empty());
    scenario.at_fault(20);
    scenario.reconcile_times(6);
    assert_eq!(scenario.calls, [LegCall::Pause, LegCall::CreditTo(22)]);
    scenario.fault = Observed::Known(None);
    scenario.reconcile_times(5);
    assert_eq!(scenario.calls[2..], [LegCall::Start, LegCall::Withdraw]);
}

#[test]
fn one_reading_alone_does_not_move_the_clocks_of_the_paid_time() {
    let falsified = |truth: &Account| Account {
        running: 0,
        block_time: truth.block_time + 1_000_000,
        ..truth.clone()
    };
    let mut scenario = serving();
    scenario.wait(100);
    let truth = scenario.account.clone();
    let clocks = |scenario: &Scenario| {
        scenario
            .status()
            .escrow
            .as_ref()
            .map(|e| (e.block_time, e.running))
    };
    for (first, second) in [
        (falsified(&truth), truth.clone()),
        (truth.clone(), falsified(&truth)),
    ] {
        scenario.reconcile_with(&first, &second);
        assert_eq!(clocks(&scenario), None, "nothing is known before two agree");
    }
    scenario.reconcile_with(&truth, &truth);
    assert_eq!(clocks(&scenario), Some((100, true)));
    scenario.reconcile_with(&falsified(&truth), &truth);
    assert_eq!(clocks(&scenario), Some((100, true)));
    // Funds that came count when two have seen them.
    let funded = Account {
        deposited: TokenAmount(truth.deposited.0 * 2),
        paid_until: 200_000,
        block_time: 101,
        ..truth.clone()
    };
    scenario.reconcile_with(&funded, &truth);
    assert_eq!(clocks(&scenario), Some((100, true)));
    scenario.reconcile_with(&funded, &funded);
    assert_eq!(clocks(&scenario), Some((101, true)));
}

#[test]
fn what_is_withdrawn_already_is_not_credited() {
    let mut scenario = serving();
    scenario.wait(50);
    // The contract rounds what it keeps up to whole seconds: 46.
    scenario.account.legs[0].withdrawn = TokenAmount(500 * 46 - 1);
    scenario.at_fault(10);
    scenario.reconcile_times(6);
    assert_eq!(scenario.served(), 46);
    assert_eq!(scenario.status().credit_due, Some(0));
    scenario.well = None;
    scenario.fault = Observed::Known(None);
    scenario.reconcile_times(3);
    assert_eq!(scenario.calls.last(), Some(&LegCall::Start));
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Breaks(u64),
    Heals,
    FallsSilent,
    Reconcile,
    ReconcileWithOneOldRead(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (1u64..6).prop_map(Step::Wait),
        1 => (0u64..5).prop_map(Step::Breaks),
        1 => Just(Step::Heals),
        1 => Just(Step::FallsSilent),
        4 => Just(Step::Reconcile),
        1 => any::<bool>().prop_map(Step::ReconcileWithOneOldRead),
    ]
}

proptest! {
    /// Whatever comes between, what was served when the leg starts again is what it had served when it broke.
    #[test]
    fn exactly_the_seconds_of_faults_go_back(steps in prop::collection::vec(step(), 1..80)) {
        let mut scenario = serving();
        scenario.wait(10);
        let mut old = scenario.account.clone();
        for step in steps {
            let read = scenario.account.clone();
            match step {
                Step::Wait(seconds) => scenario.wait(seconds),
                Step::Breaks(ago) => scenario.at_fault(ago),
                Step::Heals => scenario.fault = Observed::Known(None),
                Step::FallsSilent => scenario.fault = Observed::Unknown("silent".into()),
                Step::Reconcile => scenario.reconcile_with(&read, &read),
                Step::ReconcileWithOneOldRead(true) => scenario.reconcile_with(&old, &read),
                Step::ReconcileWithOneOldRead(false) => scenario.reconcile_with(&read, &old),
            }
            old = read;
        }
        scenario.fault = Observed::Known(None);
        scenario.reconcile_times(8);
        prop_assert_eq!(scenario.account.running, 1);
        prop_assert!(scenario.well.is_none());
    }
}
