//! A reservation from the allocation to its end: reserve, start, stop, settle.

use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::provider::reservation::Withdrawals;

use crate::{site::Site, snapshot};

#[test]
fn reservation_from_allocation_to_end() {
    let mut site = Site::new(
        "A reservation from the allocation to its end, as the provider sees it.",
        |_| {},
    );
    site.answer("The market asks to host a node.");
    site.reconcile("The reservation is stored.");
    site.later(3);
    site.open();
    site.reconcile("The market has opened the account.");
    site.later(2);
    site.running.pods_alive = 1;
    site.running.trouble = "the image is being pulled".into();
    site.reconcile("The pod has been created.");
    site.later(20);
    site.pods_run();
    site.reconcile("The container runs, and its GPU is bound.");
    site.reconcile("The intent is stored.");
    site.later(1);
    site.reconcile("The transaction is mined.");
    site.later(5);
    site.pods_ready();
    site.reconcile("The pod is ready.");
    site.answer("The allocation is reconciled.");
    site.later(600);
    site.reconcile("Ten minutes later nothing has changed.");
    let now = site.unix();
    site.account().close(1, now);
    site.allocation.spec.release = true;
    site.answer("The market has closed the account and releases the allocation.");
    site.reconcile("The reservation is released.");
    site.later(1);
    site.reconcile("The pods are gone.");
    site.later(3);
    site.reconcile("The namespace is gone.");
    site.answer("The allocation is reconciled.");
    site.allocation_exists = leasehold_planner::observed::Observed::Known(false);
    site.later(3);
    site.reconcile("The market has deleted the allocation.");
    snapshot("reservation_from_allocation_to_end", &site.page);
}

#[test]
fn leg_that_the_market_does_not_close() {
    let mut site = Site::active(
        "The market releases the allocation and never closes the account.",
        |_| {},
    );
    site.allocation.spec.release = true;
    site.answer("The market releases the allocation.");
    site.reconcile("The reservation is released.");
    site.later(1);
    site.reconcile("The pods are gone.");
    site.later(46);
    site.reconcile("46 seconds after the stop the account is still open.");
    site.reconcile("The intent is stored.");
    site.later(1);
    site.reconcile("The transaction is mined: the leg is paused.");
    site.reconcile("The intent is stored.");
    site.later(1);
    site.reconcile("The transaction is mined: the seconds since the stop are credited.");
    site.reconcile("The intent is stored.");
    site.later(1);
    site.reconcile("The transaction is mined: the leg has ended.");
    site.reconcile("The intent is stored.");
    site.later(1);
    site.reconcile("The payout is mined.");
    assert_eq!(
        site.served(),
        61,
        "until its pods had stopped, and no second more"
    );
    snapshot("leg_that_the_market_does_not_close", &site.page);
}

#[test]
fn earnings_withdrawn_while_active() {
    let mut site = Site::active("A pool whose earnings are withdrawn every ten minutes.", |_| {});
    site.withdraw = Some(Withdrawals {
        every_seconds: 600,
        above: TokenAmount(0),
    });
    site.reconcile("The leg has served for a minute.");
    site.later(540);
    site.reconcile("The leg has served for ten minutes.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined.");
    assert_eq!(site.earned(), "0.301 USDC");
    snapshot("earnings_withdrawn_while_active", &site.page);
}
