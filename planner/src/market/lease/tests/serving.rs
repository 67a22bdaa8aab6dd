//! A lease that is served, and when it is reconciled next.

use super::*;

/// When a lease with a top-up below 25 seconds is reconciled next, in seconds from now.
fn next_after(left: u64, deposited: u128) -> i64 {
    let account = Account {
        deposited: TokenAmount(deposited),
        ..account(left)
    };
    let mut world = world(AccountRead::Present(account), AllocationPhase::Active);
    let lease = Arc::make_mut(&mut world.lease);
    lease.spec.payment.top_up = Some(leasehold_crds::lease::TopUp {
        when_runway_below: "25s".into(),
        extend_by: "10s".into(),
        total_at_most: "1.9".into(),
    });
    let plan = decide(&world, &check(&world), now());
    plan.wake.duration_since(now()).as_secs()
}

#[test]
fn a_lease_is_reconciled_when_it_is_due_for_a_top_up() {
    assert_eq!(next_after(30, 1_800_000), 6, "24 seconds are left then");
    assert_eq!(next_after(25, 1_800_000), 1);
    assert_eq!(
        next_after(24, 1_800_000),
        0,
        "the intent is stored, and carried out at once"
    );
    assert_eq!(
        next_after(24, 1_900_000),
        24,
        "the rule permits no further top-up"
    );
    assert_eq!(next_after(600, 1_800_000), 60);
}
