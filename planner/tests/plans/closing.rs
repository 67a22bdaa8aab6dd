//! Every reason for which a lease closes. Each story begins with a lease that is active, or whose account is open; how
//! it came there is in the story `lease_from_apply_to_active`.

use leasehold_crds::{
    ANNOTATION_ABANDON,
    lease::{
        CloseReason,
        workload::{Job, JobResult, ResultsAt, Workload},
    },
    market::allocation::{AllocationPhase, StopReason},
    payment::money::TokenAmount,
};
use leasehold_planner::ports::PaymentError;

use crate::{fixtures::PAYER, market::Market, snapshot};

/// One hour of the term is over.
fn term_over() -> Market {
    let mut market = Market::active("All paid time of the term is served.", |_| {});
    market.reconcile("The lease has been active for a minute.");
    market.later(3541);
    market.reconcile("The paid time is over.");
    end(&mut market);
    market.later(1);
    market.reconcile("A second later.");
    market
}

fn deleted() -> Market {
    let mut market = Market::active("The tenant deletes an active lease after one minute.", |_| {});
    market.delete();
    market.reconcile("The tenant deletes the lease.");
    market.reconcile("The intent is stored.");
    market.later(2);
    market.provider(|status| {
        status.phase = AllocationPhase::Stopped;
        status.stop_reason = Some(StopReason::Released);
    });
    market.reconcile("The transaction is mined, and the provider has stopped.");
    market
}

fn funds_spent() -> Market {
    let mut market = Market::active(
        "The tenant extends the term, and the wallet cannot pay for it before the funds end.",
        |_| {},
    );
    let too_few = || {
        Some(PaymentError::InsufficientTokens {
            address: PAYER,
            need: TokenAmount(1_800_000),
            have: TokenAmount(0),
        })
    };
    market.later(3535);
    market.edit(|lease| lease.spec.term.duration = "2h".into());
    market.reconcile("The tenant sets term.duration to 2h five seconds before the end of the paid time.");
    market.call_fails = too_few();
    market.reconcile("The intent is stored; the wallet is empty.");
    market.later(6);
    market.call_fails = too_few();
    market.reconcile("The funds are spent.");
    market.provider(|status| {
        status.phase = AllocationPhase::Stopped;
        status.stop_reason = Some(StopReason::FundsSpent);
    });
    market.later(46);
    market
        .account
        .as_mut()
        .unwrap()
        .end_leg(0, market.now.unsigned_abs());
    market.reconcile("The provider has stopped for the end of the funds, and has ended its leg.");
    end(&mut market);
    market
}

fn job(about: &str) -> Market {
    Market::active(about, |lease| {
        lease.spec.workload = Workload {
            job: Some(Box::new(Job::default())),
            ..Workload::default()
        };
    })
}

fn job_ends(market: &mut Market, exit_code: i64) {
    let finished_at = crate::fixtures::at(market.now).to_string();
    market.provider(|status| {
        status.job = Some(JobResult {
            exit_code,
            log_tail: "epoch 3 of 3".into(),
            log_digest: format!("0x{}", "7".repeat(64)),
            finished_at,
        });
        status.results = vec![ResultsAt {
            node: 0,
            url: "http://192.0.2.1:30000/8d3c".into(),
            until: None,
        }];
    });
}

fn job_succeeded() -> Market {
    let mut market = job("A job ends with exit code 0 after ten minutes.");
    market.later(540);
    job_ends(&mut market, 0);
    market.reconcile("The provider reports that the job has ended.");
    end(&mut market);
    market
}

fn job_failed() -> Market {
    let mut market = job("A job ends with exit code 1 after ten minutes.");
    market.later(540);
    job_ends(&mut market, 1);
    market.reconcile("The provider reports that the job has failed.");
    end(&mut market);
    market
}

fn never_started() -> Market {
    let mut market = Market::open(
        "In the third round, too, the provider does not start its leg until startBy.",
        |_| {},
    );
    market.lease.status.as_mut().unwrap().unstarted_rounds = 2;
    market.reconcile("The account is open.");
    market.later(961);
    market.reconcile("startBy has passed.");
    end(&mut market);
    market
}

fn provider_stopped() -> Market {
    let mut market = Market::active("The provider gives up an active lease after ten minutes.", |_| {});
    market.later(540);
    market.provider(|status| {
        status.phase = AllocationPhase::Stopping;
        status.stop_reason = Some(StopReason::ReservationDeleted);
    });
    market
        .account
        .as_mut()
        .unwrap()
        .end_leg(0, market.now.unsigned_abs());
    market.reconcile("The provider has ended its leg and is stopping.");
    end(&mut market);
    market
}

fn closed_on_chain() -> Market {
    let mut market = Market::active("The payer closes the account without Leasehold.", |_| {});
    market
        .account
        .as_mut()
        .unwrap()
        .close(1, market.now.unsigned_abs());
    market.reconcile("The chain shows the account as closed.");
    market.later(1);
    market.reconcile("A second later.");
    market
}

fn abandoned() -> Market {
    let mut market = Market::active(
        "The chain has been unreachable since the tenant deleted the lease, and a person abandons it.",
        |_| {},
    );
    market.chain_fails = Some("the chain can't be reached: connection refused".into());
    market.delete();
    market.reconcile("The tenant deletes the lease while the chain cannot be read.");
    market.later(600);
    let id = market.status().escrow.unwrap().terms.id;
    market.lease.metadata.annotations = Some([(ANNOTATION_ABANDON.to_owned(), id)].into());
    market.reconcile("A person sets the annotation leasehold.dev/abandon to the id of the account.");
    market
}

/// The intent to close is stored, the account is closed, and the lease is over.
fn end(market: &mut Market) {
    market.reconcile("The intent is stored.");
    market.later(2);
    market.reconcile("The transaction is mined.");
}

#[test]
fn every_reason_to_close() {
    for reason in CloseReason::ALL {
        let market = match reason {
            CloseReason::TermOver => term_over(),
            CloseReason::Deleted => deleted(),
            CloseReason::FundsSpent => funds_spent(),
            CloseReason::JobSucceeded => job_succeeded(),
            CloseReason::JobFailed => job_failed(),
            CloseReason::NeverStarted => never_started(),
            CloseReason::ProviderStopped => provider_stopped(),
            CloseReason::ClosedOnChain => closed_on_chain(),
            CloseReason::Abandoned => abandoned(),
        };
        assert_eq!(market.status().close_reason, Some(*reason));
        snapshot(&format!("close_{reason}"), &market.page);
    }
}

#[test]
fn close_before_anything_is_paid() {
    let mut market = Market::matched(
        "The tenant deletes a lease whose allocation is not answered yet.",
        |_| {},
    );
    market.delete();
    market.reconcile("The tenant deletes the lease.");
    snapshot("close_before_anything_is_paid", &market.page);
}

#[test]
fn close_that_fails_at_first() {
    let mut market = Market::active("The market's key cannot pay for the gas of the close.", |_| {});
    market.delete();
    market.reconcile("The tenant deletes the lease.");
    market.call_fails = Some(PaymentError::InsufficientGas {
        address: crate::fixtures::network().closer,
    });
    market.reconcile("The intent is stored; the closer holds no native token.");
    market.later(3);
    market.reconcile("The administrator has funded the closer.");
    market.later(3);
    market.reconcile("The transaction is mined.");
    snapshot("close_that_fails_at_first", &market.page);
}
