//! A lease that ends just after a fault.

use super::{
    super::*,
    scenario::{Scenario, serving},
};
use leasehold_crds::market::allocation::AllocationPhase;

use crate::provider::reservation::Reading;

/// A leg whose GPU has been faulty for ten seconds when its release is requested. Its pods have stopped at once.
fn released_in_a_fault() -> Scenario {
    let mut scenario = serving();
    scenario.wait(100);
    scenario.reconcile_times(1);
    scenario.wait(19);
    scenario.at_fault(10);
    scenario.reservation.spec.release = true;
    scenario.running = Running {
        reading: Reading::Live,
        namespace: true,
        ..Running::default()
    };
    scenario
}

#[test]
fn a_stop_is_reported_when_the_fault_before_it_is_credited() {
    let mut scenario = released_in_a_fault();
    for _ in 0..20 {
        scenario.reconcile_times(1);
        if scenario.status().stopped_at.is_some() {
            break;
        }
        let status = scenario.status();
        assert!(status.stop_reason.is_some());
        if scenario.served() != 110 {
            assert_eq!(
                status.phase,
                AllocationPhase::Active,
                "the market would close the account"
            );
        }
    }
    assert!(scenario.status().stopped_at.is_some());
    assert_eq!((scenario.account.running, scenario.served()), (0, 110));
}

#[test]
fn a_credit_that_cannot_be_made_does_not_hold_up_the_end() {
    let mut scenario = released_in_a_fault();
    let running = scenario.account.clone();
    scenario.reconcile_times(2);
    for _ in 0..280 {
        // The pause is never mined.
        scenario.account.running = running.running;
        scenario.reconcile_times(1);
    }
    assert_eq!(scenario.status().stopped_at, None);
    assert_eq!(scenario.status().phase, AllocationPhase::Active);
    scenario.wait(20);
    scenario.reconcile_times(1);
    assert!(scenario.status().stopped_at.is_some());
}
