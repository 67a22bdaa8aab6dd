//! A lease whose status was wiped.

use leasehold_crds::lease::GpuLeaseStatus;

use crate::{market::Market, snapshot};

fn wipe(market: &mut Market) {
    market.lease.status = None::<GpuLeaseStatus>;
}

#[test]
fn wiped_status_of_an_active_lease() {
    let mut market = Market::active("The status of an active lease is wiped.", |_| {});
    wipe(&mut market);
    market.reconcile("The status is wiped; the chain and the allocation are still there.");
    market.reconcile("The account was found.");
    market.later(60);
    market.reconcile("A minute later nothing has changed.");
    snapshot("wiped_status_of_an_active_lease", &market.page);
}

#[test]
fn wiped_status_while_the_chain_is_unreachable() {
    let mut market = Market::active(
        "The status of an active lease is wiped while the chain cannot be read.",
        |_| {},
    );
    wipe(&mut market);
    market.chain_fails = Some("the chain can't be reached: connection refused".into());
    market.reconcile("The status is wiped, and the chain does not answer.");
    market.later(5);
    market.chain_fails = None;
    market.reconcile("The chain answers again.");
    market.reconcile("The account was found.");
    snapshot("wiped_status_while_the_chain_is_unreachable", &market.page);
}

#[test]
fn wiped_status_before_the_account_is_open() {
    let mut market =
        Market::new("The status is wiped after the provider has accepted, before the account is open.");
    market.reconcile("The tenant has applied the lease.");
    market.reconcile("The round is stored.");
    market.later(1);
    market.accept();
    wipe(&mut market);
    market.reconcile("The provider has accepted; the status is wiped.");
    market.reconcile("The round is that of the allocation.");
    market.later(2);
    market.reconcile("The transaction is mined.");
    snapshot("wiped_status_before_the_account_is_open", &market.page);
}

#[test]
fn account_of_other_terms() {
    let mut market = Market::matched("The id of the account holds an account of other terms.", |_| {});
    market.mismatch = true;
    market.reconcile("The chain shows other terms at the id of the account.");
    market.delete();
    market.reconcile("The tenant deletes the lease.");
    snapshot("account_of_other_terms", &market.page);
}
