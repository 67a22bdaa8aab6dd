//! What old answers and reorganisations of the chain do not decide.

use super::*;

/// A stopped job whose results have expired. Its namespace is gone, so that only its end has to be final.
fn expired() -> Scenario {
    let mut scenario = job();
    scenario.ended();
    scenario.reconcile();
    scenario.released();
    scenario.stopped();
    scenario.now = NOW + KEEP;
    assert_eq!(scenario.reconcile().workload, Workload::Remove);
    scenario
}

/// A reorganisation may drop the end of its leg, or the payment of what it earned.
#[test]
fn a_reservation_is_kept_until_its_end_is_final() {
    let mut scenario = expired();
    scenario.is_final = false;
    let plan = scenario.reconcile();
    assert!(!plan.delete);
    assert!(plan.wake.as_second() <= NOW + KEEP + 60);
    scenario.is_final = true;
    assert!(scenario.reconcile().delete);
}

/// A backend that is stuck at an old block answers twice while the account is open.
#[test]
fn an_absence_before_open_by_does_not_show_that_nothing_was_paid() {
    let (open_by, now) = (NOW + 60, NOW + 91);
    let (old, fresh) = (open_by.unsigned_abs(), now.unsigned_abs());
    for times in [(old, old), (old, fresh), (fresh, old)] {
        let mut scenario = unpaid();
        let reason = reconcile_absent(&mut scenario, Observed::Known(true), now, times);
        assert_eq!(reason, None, "{times:?}");
    }
    let mut scenario = unpaid();
    let reason = reconcile_absent(&mut scenario, Observed::Known(true), now, (old + 1, fresh));
    assert_eq!(reason, Some(StopReason::Unpaid));
}

/// The newest final block may be of the time before the leg had started, when nothing was owed to it either.
#[test]
fn a_final_block_from_before_the_start_does_not_show_the_end() {
    let mut scenario = expired();
    let before = Account {
        closed: false,
        started_at: 0,
        paid_until: 0,
        running: 0,
        legs: vec![LegState::default()],
        ..scenario.account.clone()
    };
    scenario.final_account = Some(before);
    assert!(!scenario.reconcile().delete);
    scenario.final_account = None;
    assert!(scenario.reconcile().delete);
}
