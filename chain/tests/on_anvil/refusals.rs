//! Each way in which a call can fail has its own error, and a rejected call costs nothing.

use std::time::Duration;

use leasehold_chain::{EvmEscrow, Network};
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::{
    escrow::{Address, Terms},
    ports::{BlockLevel, PaymentError, Payments, Receipt, SigningKey},
};

use crate::anvil::{Anvil, address, connect};

const LATER: u64 = 1 << 39;

fn refused(result: Result<Receipt, PaymentError>) -> String {
    match result {
        Err(PaymentError::Reverted { error }) => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn the_contracts_errors_have_their_names_and_cost_nothing() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one, two, closer, third_party] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one, &two], &closer, 1);
    anvil.mint(terms.payer, 1_000_000).await;
    let deposit = TokenAmount(100_000);
    assert_eq!(refused(escrow.start(&one, &terms, 1).await), "AccountUnknown");
    invalid_openings_are_refused(&escrow, &payer, &third_party, &terms).await;

    escrow.open(&payer, &terms, deposit, LATER).await.unwrap();
    let before = (
        escrow.head().await.unwrap().number,
        escrow.balances(terms.payer).await.unwrap(),
    );
    assert_eq!(
        refused(escrow.open(&payer, &terms, deposit, LATER).await),
        "AccountExists"
    );
    let mut other = terms.clone();
    other.pause_for += 1;
    assert_eq!(refused(escrow.start(&one, &other, 1).await), "TermsDiffer");
    assert_eq!(
        escrow.fund_to(&payer, &other, TokenAmount(200_000)).await,
        Err(PaymentError::Reverted {
            error: "TermsDiffer".into()
        })
    );
    assert_eq!(
        refused(escrow.start(&one, &terms, 0b10).await),
        "NotController(leg 1)"
    );
    assert_eq!(
        refused(escrow.pause(&one, &terms, 0b100).await),
        "NoSuchLeg(legs 0b0000000000000100)"
    );
    assert_eq!(
        refused(escrow.credit_to(&one, &terms, 0, 9).await),
        "CreditTooLarge(creditedTotal 9, atMost 0)"
    );
    assert_eq!(
        refused(escrow.close(&third_party, &terms, 0).await),
        "MayNotClose"
    );
    assert_eq!(
        refused(escrow.withdraw_credit(&one, terms.payer).await),
        "NoCredit"
    );
    assert_eq!(
        refused(escrow.settle_many(&one, &[(terms.clone(), 0b11)]).await),
        "NotPayeeOrController(leg 1)"
    );
    let after = (
        escrow.head().await.unwrap().number,
        escrow.balances(terms.payer).await.unwrap(),
    );
    assert_eq!(before, after, "a refusal was mined or paid for");

    escrow.end_leg(&one, &terms, 1).await.unwrap();
    assert_eq!(refused(escrow.start(&one, &terms, 1).await), "LegIsEnded(leg 0)");
    escrow.close(&closer, &terms, 0).await.unwrap();
    assert_eq!(refused(escrow.start(&two, &terms, 0b10).await), "AccountClosed");
    assert_eq!(
        escrow.fund_to(&payer, &terms, TokenAmount(1)).await,
        Err(PaymentError::Reverted {
            error: "AccountClosed".into()
        })
    );
}

async fn invalid_openings_are_refused(
    escrow: &EvmEscrow,
    payer: &SigningKey,
    third_party: &SigningKey,
    terms: &Terms,
) {
    let deposit = TokenAmount(100_000);
    let now = escrow.head().await.unwrap().time;
    assert_eq!(
        refused(escrow.open(third_party, terms, TokenAmount(0), LATER).await),
        "NotPayer"
    );
    let late = escrow.open(payer, terms, deposit, now - 1).await;
    assert_eq!(refused(late), format!("Expired(validUntil {})", now - 1));
    let mut wrong = terms.clone();
    wrong.start_by = now - 1;
    let late = escrow.open(payer, &wrong, deposit, LATER).await;
    assert_eq!(refused(late), format!("StartByPassed(startBy {})", now - 1));
    let mut wrong = terms.clone();
    wrong.legs[1].rate = Rate(0);
    assert_eq!(
        refused(escrow.open(payer, &wrong, deposit, LATER).await),
        "ZeroRate(leg 1)"
    );
    let mut wrong = terms.clone();
    wrong.legs.clear();
    assert_eq!(
        refused(escrow.open(payer, &wrong, deposit, LATER).await),
        "LegCount(count 0)"
    );
    let mut wrong = terms.clone();
    wrong.closer = Address::default();
    assert_eq!(
        refused(escrow.open(payer, &wrong, deposit, LATER).await),
        "ZeroAddress"
    );
}

#[tokio::test]
async fn insufficient_tokens_and_gas_are_detected_before_sending() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    anvil.mint(terms.payer, 999).await;
    assert_eq!(
        escrow.open(&payer, &terms, TokenAmount(1_000), LATER).await,
        Err(PaymentError::InsufficientTokens {
            address: terms.payer,
            need: TokenAmount(1_000),
            have: TokenAmount(999)
        })
    );
    escrow
        .open(&payer, &terms, TokenAmount(900), LATER)
        .await
        .unwrap();
    // A payer who opens again has spent the tokens on the first account; the error reports the existing account.
    assert_eq!(
        refused(escrow.open(&payer, &terms, TokenAmount(900), LATER).await),
        "AccountExists"
    );
    assert_eq!(
        escrow.fund_to(&payer, &terms, TokenAmount(1_000)).await,
        Err(PaymentError::InsufficientTokens {
            address: terms.payer,
            need: TokenAmount(100),
            have: TokenAmount(99)
        })
    );

    let gas_before = escrow.balances(terms.payer).await.unwrap().gas_wei;
    for wei in [0, 1_000] {
        anvil.set_gas(address(&one), wei).await;
        assert_eq!(
            escrow.end_leg(&one, &terms, 1).await,
            Err(PaymentError::InsufficientGas {
                address: address(&one)
            })
        );
    }
    assert_eq!(escrow.balances(terms.payer).await.unwrap().gas_wei, gas_before);
}

#[tokio::test]
async fn a_hanging_call_ends_at_its_deadline_and_later_calls_succeed() {
    let anvil = Anvil::start().await;
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    anvil.mint(terms.payer, 1_000).await;
    let escrow = connect(&Network {
        call_deadline: Duration::from_millis(500),
        ..anvil.network()
    });
    escrow.head().await.unwrap();

    anvil.stop().await;
    let since = std::time::Instant::now();
    let read = escrow.account(&terms, BlockLevel::Latest).await;
    let written = escrow.open(&payer, &terms, TokenAmount(1_000), LATER).await;
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "took {:?}",
        since.elapsed()
    );
    for error in [read.unwrap_err(), written.unwrap_err()] {
        assert!(
            matches!(&error, PaymentError::Unreachable(why) if why.contains("no answer")),
            "{error:?}"
        );
    }

    anvil.resume();
    escrow
        .open(&payer, &terms, TokenAmount(1_000), LATER)
        .await
        .unwrap();
    assert_eq!(escrow.balances(terms.payer).await.unwrap().token, TokenAmount(0));
}

#[tokio::test]
async fn an_endpoint_of_another_chain_or_without_the_contract_is_refused() {
    let anvil = Anvil::start().await;
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    let elsewhere = connect(&Network {
        chain_id: 1,
        ..anvil.network()
    });
    let wrong = PaymentError::WrongChain {
        expected: 1,
        found: anvil.deployed.chain_id,
    };
    assert_eq!(elsewhere.head().await, Err(wrong.clone()));
    assert_eq!(elsewhere.balances(terms.payer).await, Err(wrong.clone()));
    assert_eq!(
        elsewhere.account(&terms, BlockLevel::Latest).await,
        Err(wrong.clone())
    );
    assert_eq!(elsewhere.start(&one, &terms, 1).await, Err(wrong.clone()));
    assert_eq!(
        elsewhere.open(&payer, &terms, TokenAmount(1), LATER).await,
        Err(wrong)
    );

    let nowhere = connect(&Network {
        escrow: Address([0x11; 20]),
        ..anvil.network()
    });
    let read = nowhere.account(&terms, BlockLevel::Latest).await.unwrap_err();
    assert!(read.to_string().contains("no contract at 0x1111"), "{read}");
    let read = nowhere
        .accounts(std::slice::from_ref(&terms), BlockLevel::Latest)
        .await
        .unwrap_err();
    assert!(read.to_string().contains("no contract at 0x1111"), "{read}");
}

#[tokio::test]
async fn what_a_network_states_is_read_from_the_chain() {
    let anvil = Anvil::start().await;
    let facts = anvil.client().facts().await.unwrap();
    assert_eq!(facts.escrow_name.as_deref(), Some("Leasehold Escrow"));
    assert_eq!(facts.decimals, Some(6));
    assert!(facts.symbol.is_some());
    // The two addresses exchanged: neither contract is what the network states.
    let exchanged = Network {
        escrow: anvil.network().token,
        token: anvil.network().escrow,
        ..anvil.network()
    };
    let facts = connect(&exchanged).facts().await.unwrap();
    assert_ne!(facts.escrow_name.as_deref(), Some("Leasehold Escrow"));
    assert_eq!((facts.decimals, facts.symbol), (None, None));
    let nothing = Network {
        escrow: Address([0x11; 20]),
        token: Address([0x12; 20]),
        ..anvil.network()
    };
    let facts = connect(&nothing).facts().await.unwrap();
    assert_eq!((facts.escrow_name, facts.decimals), (None, None));
    let elsewhere = Network {
        chain_id: 1,
        ..anvil.network()
    };
    let wrong = connect(&elsewhere).facts().await;
    assert!(matches!(wrong, Err(PaymentError::WrongChain { .. })), "{wrong:?}");
}

#[tokio::test]
async fn an_error_of_an_unreachable_endpoint_contains_no_secrets() {
    let anvil = Anvil::start().await;
    let port = anvil.url.rsplit(':').next().unwrap().to_owned();
    let network = Network {
        rpc_url: format!("{}/v2/sesame-open-up?key=abracadabra", anvil.url),
        ..anvil.network()
    };
    drop(anvil);
    let escrow = connect(&network);
    let error = escrow.head().await.unwrap_err();
    assert!(
        matches!(&error, PaymentError::Unreachable(why) if why.contains("refused")),
        "{error:?}"
    );
    for text in [format!("{error:?} {error}"), format!("{network:?} {escrow:?}")] {
        for secret in ["sesame", "abracadabra", &port] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
}
