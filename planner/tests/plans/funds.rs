//! Money after the first deposit: extension, top-up, and a pause when the funds are spent.

use leasehold_crds::{
    lease::{OnFundsEnd, TopUp},
    market::allocation::AllocationPhase,
};
use leasehold_planner::ports::PaymentError;

use crate::{
    fixtures::{PAYER, START},
    market::Market,
    snapshot,
};

#[test]
fn extension_of_the_term() {
    let mut market = Market::active(
        "The tenant extends the term of an active lease from one hour to two.",
        |_| {},
    );
    market.reconcile("The lease has been active for a minute.");
    market.edit(|lease| lease.spec.term.duration = "2h".into());
    market.reconcile("The tenant sets term.duration to 2h.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined.");
    market.later(2);
    market.provider(|status| status.not_after = Some(START + 2 * 3600 + 300));
    market.reconcile("The provider has granted the new notAfter.");
    snapshot("extension_of_the_term", &market.page);
}

#[test]
fn extension_beyond_what_the_pool_sells() {
    let mut market = Market::active(
        "The tenant extends the term beyond the longest that the pool sells.",
        |_| {},
    );
    market.edit(|lease| lease.spec.term.duration = "2h".into());
    market.reconcile("The tenant sets term.duration to 2h.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined.");
    market.later(2);
    market.provider(|status| status.not_after = Some(START + 3600 + 1800));
    market.reconcile("The provider grants half an hour more, which is the longest that its pool sells.");
    snapshot("extension_beyond_what_the_pool_sells", &market.page);
}

#[test]
fn extension_without_tokens() {
    let mut market = Market::active(
        "The tenant extends the term, and the wallet holds too few tokens.",
        |_| {},
    );
    market.edit(|lease| lease.spec.term.duration = "9h".into());
    market.reconcile("The tenant sets term.duration to 9h.");
    market.call_fails = Some(PaymentError::InsufficientTokens {
        address: PAYER,
        need: leasehold_crds::payment::money::TokenAmount(14_400_000),
        have: leasehold_crds::payment::money::TokenAmount(8_200_000),
    });
    market.reconcile("The intent is stored; the payer holds 8.2 USDC.");
    market.later(5);
    market.reconcile("The tenant has added tokens to the wallet.");
    market.later(5);
    market.reconcile("The transaction is mined.");
    snapshot("extension_without_tokens", &market.page);
}

#[test]
fn top_up_until_the_cap() {
    let mut market = Market::active(
        "A lease that is topped up by 30 minutes when less than 10 minutes are left, with at most 3 USDC in all.",
        |lease| {
            lease.spec.payment.top_up = Some(TopUp {
                when_runway_below: "10m".into(),
                extend_by: "30m".into(),
                total_at_most: "3".into(),
            });
        },
    );
    market.later(48 * 60);
    market.reconcile("11 minutes are left.");
    market.later(2 * 60);
    market.reconcile("9 minutes are left.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined.");
    market.later(30 * 60);
    market.reconcile("Again less than 10 minutes are left; another 30 minutes would exceed the cap.");
    snapshot("top_up_until_the_cap", &market.page);
}

#[test]
fn pause_and_resume() {
    let mut market = Market::active(
        "A lease with onFundsEnd: Pause runs out of funds, is extended and resumes.",
        |lease| {
            lease.spec.payment.on_funds_end = OnFundsEnd::Pause;
            lease.spec.payment.pause_for = Some("1h".into());
        },
    );
    market.reconcile("The lease has been active for a minute.");
    market.later(3600);
    market.reconcile("The deposit of one hour is spent.");
    market.provider(|status| status.phase = AllocationPhase::Suspended);
    market.later(5);
    market.reconcile("The provider has stopped the pods and keeps the storage.");
    market.later(600);
    market.edit(|lease| lease.spec.term.duration = "2h".into());
    market.reconcile("Ten minutes later the tenant sets term.duration to 2h.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined; the account waits for its legs.");
    market.later(20);
    market.start();
    market.provider(|status| status.phase = AllocationPhase::Active);
    market.reconcile("The provider serves again and has started its leg.");
    snapshot("pause_and_resume", &market.page);
}

#[test]
fn pause_that_ends() {
    let mut market = Market::active(
        "A lease with onFundsEnd: Pause runs out of funds, and nobody adds any within pauseFor.",
        |lease| {
            lease.spec.payment.on_funds_end = OnFundsEnd::Pause;
            lease.spec.payment.pause_for = Some("1h".into());
        },
    );
    market.later(3600);
    market.reconcile("The deposit of one hour is spent.");
    market.provider(|status| status.phase = AllocationPhase::Suspended);
    market.later(3600);
    market.reconcile("An hour later nobody has added funds.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined.");
    snapshot("pause_that_ends", &market.page);
}
