//! From the tenant's apply to a workload that is served and charged.

use leasehold_crds::{
    lease::{Placement, Spread, workload::Endpoint},
    market::allocation::AllocationPhase,
};

use crate::{
    market::{Market, provisioned, ready},
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
        provisioned(
            status,
            Some("the containers of 0 of 1 pods have run: the image is being pulled"),
        );
        ready(status, false, "0 of 1 pods are ready: the image is being pulled");
    });
    market.reconcile("The provider starts the workload.");
    market.later(20);
    market.provider(|status| provisioned(status, None));
    market.reconcile("The container runs; the leg has not started yet.");
    market.later(2);
    market.start();
    market.provider(|status| {
        status.phase = AllocationPhase::Active;
        status.endpoints = vec![Endpoint {
            name: "http".into(),
            host: Some("192.0.2.1".into()),
            port: Some(30_080),
            node: 0,
            ..Endpoint::default()
        }];
    });
    market.reconcile("The provider has started its leg and reports where the port answers.");
    market.later(5);
    market.provider(|status| ready(status, true, ""));
    market.reconcile("The pod is ready.");
    market.later(60);
    market.reconcile("A minute later nothing has changed.");
    snapshot("lease_from_apply_to_active", &market.page);
}

#[test]
fn lease_of_two_providers() {
    let mut market = Market::new("A lease of two nodes of different providers: one account with two legs.");
    market.lease.spec.nodes = 2;
    market.lease.spec.placement = Some(Placement {
        spread: Spread::DistinctProviders,
        ..Placement::default()
    });
    market.reconcile("The tenant has applied the lease.");
    market.reconcile("The round is stored.");
    market.later(1);
    market.accept_leg(0);
    market.reconcile("The first provider has reserved.");
    market.later(1);
    market.accept_leg(1);
    market.reconcile("The second provider has reserved.");
    market.reconcile("The intent is stored.");
    market.later(2);
    for leg in [0, 1] {
        market.provider_of(leg, |status| {
            status.phase = AllocationPhase::Provisioning;
            provisioned(status, Some("the containers of 0 of 1 pods have run"));
            ready(status, false, "0 of 1 pods are ready");
        });
    }
    market.reconcile("The transaction is mined, and both providers start the workload.");
    market.later(20);
    market.start_leg(0);
    market.provider_of(0, |status| {
        status.phase = AllocationPhase::Active;
        provisioned(status, None);
        ready(status, true, "");
    });
    market.reconcile("The first provider has started its leg.");
    market.later(10);
    market.start_leg(1);
    market.provider_of(1, |status| {
        status.phase = AllocationPhase::Active;
        provisioned(status, None);
        ready(status, true, "");
    });
    market.reconcile("The second provider has started its leg.");
    market.later(590);
    market.delete();
    market.reconcile("The tenant deletes the lease.");
    market.reconcile("The intent is stored.");
    market.reconcile(
        "The transaction is mined: the ten seconds in which the second leg did not run are refunded.",
    );
    snapshot("lease_of_two_providers", &market.page);
}
