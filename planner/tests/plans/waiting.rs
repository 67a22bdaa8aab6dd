//! A lease that cannot be matched, funded or placed yet, and a round that lapses.

use leasehold_crds::{
    lease::Blocker,
    market::allocation::{AllocationPhase, Declined},
    payment::money::TokenAmount,
};
use leasehold_planner::{
    market::lease::{UNANSWERED_PER_PROVIDER_MAX, Wallet},
    observed::Observed,
};

use crate::{market::Market, snapshot};

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

#[test]
fn provider_that_does_not_answer() {
    let mut market = Market::matched("The provider does not answer in time.", |_| {});
    market.later(50);
    market.reconcile("Less than ten seconds are left until openBy.");
    market.later(1);
    market.reconcile("The allocation of the round is deleted.");
    snapshot("provider_that_does_not_answer", &market.page);
}
