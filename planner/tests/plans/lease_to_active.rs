//! From the tenant's apply to a workload that is served and charged.

use leasehold_crds::{lease::workload::Endpoint, market::allocation::AllocationPhase};

use crate::{
    market::{Market, ready},
    snapshot,
};

#[test]
fn lease_from_apply_to_active() {
    let mut market = Market::new("A lease of one GPU for an hour, from apply to the first charged second.");
    market.reconcile("The tenant has applied the lease.");
    market.reconcile("The round is stored.");
    market.later(1);
    market.accept();
    market.reconcile("The provider has reserved and signed its acceptance.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined.");
    market.later(2);
    market.provider(|status| {
        status.phase = AllocationPhase::Provisioning;
        ready(status, false, "0 of 1 pods are ready: the image is being pulled");
    });
    market.reconcile("The provider starts the workload.");
    market.later(20);
    market.provider(|status| ready(status, true, ""));
    market.reconcile("The pod is ready; the leg has not started yet.");
    market.later(2);
    market.start();
    market.provider(|status| {
        status.phase = AllocationPhase::Active;
        status.endpoints = vec![Endpoint {
            name: "http".into(),
            host: "192.0.2.1".into(),
            port: 30_080,
            node: 0,
        }];
    });
    market.reconcile("The provider has started its leg and reports where the port answers.");
    market.later(60);
    market.reconcile("A minute later nothing has changed.");
    snapshot("lease_from_apply_to_active", &market.page);
}
