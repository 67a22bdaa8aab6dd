//! A lease that cannot be matched, funded or placed yet, and a round that lapses.

use leasehold_crds::{
    lease::{Blocker, Placement, Spread},
    market::allocation::{AllocationPhase, Declined, StopReason},
    payment::money::TokenAmount,
};
use leasehold_planner::{
    market::lease::{UNANSWERED_PER_PROVIDER_MAX, Wallet},
    observed::Observed,
    placement::{Candidate, Provider},
};

use crate::{
    fixtures::at,
    market::{Market, provisioned},
    page::Page,
    snapshot,
};

/// A lease that waits for that reason.
fn blocked(blocker: Blocker) -> Option<Market> {
    let mut market = Market::new(&format!("A lease that waits: {blocker}."));
    match blocker {
        Blocker::InvalidSpec => market.lease.spec.per_node.memory = "0".into(),
        Blocker::NetworkNotFound => {
            market.network = Observed::Known(None);
            market.chain_fails = Some("there is no usable PaymentNetwork".into());
        }
        Blocker::NetworkUnknown => {
            market.network = Observed::Unknown("the API server did not answer".into());
            market.chain_fails = Some("there is no usable PaymentNetwork".into());
        }
        Blocker::ChainUnreachable => {
            market.lease.metadata.finalizers = Some(vec![leasehold_crds::FINALIZER_MARKET.into()]);
            market.chain_fails = Some("the chain can't be reached: connection refused".into());
        }
        Blocker::NoOffer => market.lease.spec.payment.max_price_per_gpu_hour = "1.00".into(),
        Blocker::TooManyUnfunded => market.unfunded = 20,
        Blocker::Queued => market.unanswered = [("prairie".to_owned(), UNANSWERED_PER_PROVIDER_MAX)].into(),
        Blocker::WalletUnknown => market.wallet = Observed::Unknown("the API server did not answer".into()),
        Blocker::WalletNotReadable => {
            market.wallet =
                Observed::Known(Wallet::NotReadable("Secret team-a/wallet does not exist".into()));
        }
        Blocker::WalletMalformed => {
            market.wallet = Observed::Known(Wallet::Malformed(
                "Secret team-a/wallet has no entry privateKey".into(),
            ));
        }
        Blocker::InsufficientFunds => market.tokens = TokenAmount(1_000_000),
        Blocker::InsufficientGas => market.gas_wei = 0,
        // Three have stories of their own. The schema bounds prices, and the market itself writes the terms. Another wallet
        // matters only where there is an account.
        Blocker::PriceOutOfRange
        | Blocker::OtherWallet
        | Blocker::ReservationLapsed
        | Blocker::NeverStarted
        | Blocker::AccountMismatch
        | Blocker::TermsUnreadable => return None,
    }
    Some(market)
}

#[test]
fn every_reason_to_wait() {
    for blocker in Blocker::ALL {
        if let Some(mut market) = blocked(*blocker) {
            market.reconcile("The tenant has applied the lease.");
            assert_eq!(market.status().blocked_on, Some(*blocker));
            snapshot(&format!("wait_{blocker}"), &market.page);
        }
    }
}

#[test]
fn declined_and_matched_again() {
    let mut market = Market::matched(
        "The cheapest provider declines, and the next round asks the other one.",
        |_| {},
    );
    market.provider(|status| {
        status.phase = AllocationPhase::Declined;
        status.declined = Some(Declined {
            reason: "NoRoom".into(),
            message: "0 nodes of the pool have room".into(),
        });
    });
    market.reconcile("The provider declines.");
    market.later(1);
    market.candidates.remove(0);
    market.reconcile("A second later the provider offers no node any more.");
    market.later(1);
    market.reconcile("The back-off of the first round is over.");
    snapshot("declined_and_matched_again", &market.page);
}

#[test]
fn never_started_and_matched_elsewhere() {
    let mut market = Market::open(
        "The cheapest provider does not start its leg until startBy, and the next round asks the other one.",
        |_| {},
    );
    market.reconcile("The account is open.");
    market.later(961);
    market.reconcile("startBy has passed.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined.");
    market.later(2);
    market.reconcile("The back-off of the first round is over.");
    snapshot("never_started_and_matched_elsewhere", &market.page);
}

/// A lease of two nodes of different providers, of which the first one has started its leg.
fn started_by_one_of_two(about: &str) -> Market {
    let mut market = Market::new("");
    market.lease.spec.nodes = 2;
    market.lease.spec.placement = Some(Placement {
        spread: Spread::DistinctProviders,
        ..Placement::default()
    });
    market.reconcile("");
    market.reconcile("");
    for leg in [0, 1] {
        market.accept_leg(leg);
    }
    for _ in 0..3 {
        market.reconcile("");
    }
    for leg in [0, 1] {
        market.provider_of(leg, |status| {
            status.phase = AllocationPhase::Provisioning;
            provisioned(
                status,
                Some("lease-0: image registry.example/chat:1 can't be pulled"),
            );
        });
    }
    market.later(20);
    market.start_leg(0);
    market.provider_of(0, |status| {
        status.phase = AllocationPhase::Active;
        provisioned(status, None);
    });
    market.page = Page::new(about);
    market
}

#[test]
fn one_of_two_never_starts() {
    let mut market = started_by_one_of_two(
        "The first provider starts its leg, the second one does not until startBy, and the next round is placed at the first \
         one and at a third one.",
    );
    market.reconcile("The first provider has started its leg.");
    market.later(941);
    market.reconcile("startBy has passed.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.provider_of(0, |status| status.phase = AllocationPhase::Stopping);
    market.reconcile("The transaction is mined, and the first provider is stopping.");
    market.later(3);
    let stopped_at = at(market.now).to_string();
    market.provider_of(0, |status| {
        status.phase = AllocationPhase::Stopped;
        status.stop_reason = Some(StopReason::Released);
        status.stopped_at = Some(stopped_at);
    });
    let third = Provider {
        name: "fjord".into(),
        ..market.providers[1].clone()
    };
    let offer = Candidate {
        provider: market.providers.len(),
        ..market.candidates[1].clone()
    };
    market.providers.push(third);
    market.candidates.push(offer);
    market.reconcile("The first provider has stopped.");
    market.later(2);
    market.reconcile("The back-off of the first round is over.");
    snapshot("one_of_two_never_starts", &market.page);
}

#[test]
fn provider_that_does_not_answer() {
    let mut market = Market::matched("The provider does not answer in time.", |_| {});
    market.later(50);
    market.reconcile("Less than ten seconds are left until openBy.");
    market.later(1);
    market.reconcile("The allocation of the round is deleted.");
    snapshot("provider_that_does_not_answer", &market.page);
}
