//! A GPU fault as the market sees it. What the provider does about it is in `faults`.

use crate::{
    market::{Market, report_gpu_fault},
    snapshot,
};

#[test]
fn gpu_fault_seen_by_the_market() {
    let mut market = Market::active(
        "A GPU of an active lease fails and recovers, as the tenant sees it.",
        |_| {},
    );
    market.reconcile("The lease has been active for a minute.");
    market.later(30);
    market
        .account
        .as_mut()
        .unwrap()
        .pause(0, market.now.unsigned_abs());
    market.provider(|status| {
        report_gpu_fault(status, Some("gpu-1: GPU 0: Xid 79, GPU has fallen off the bus"))
    });
    market.reconcile("The provider reports the fault and has paused its leg.");
    market.later(120);
    let now = market.now.unsigned_abs();
    let account = market.account.as_mut().unwrap();
    account.credit_to(0, 10, now);
    account.start(0, now);
    market.provider(|status| report_gpu_fault(status, None));
    market.reconcile("The GPU works again; the provider has credited 10 seconds and restarted its leg.");
    market.delete();
    market.reconcile("The tenant deletes the lease.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined: only the served time is spent.");
    snapshot("gpu_fault_seen_by_the_market", &market.page);
}
