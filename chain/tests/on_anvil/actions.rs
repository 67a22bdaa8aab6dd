//! Each action through JSON-RPC on a real EVM, and the tokens that it moves.

use alloy::{primitives::Address as EvmAddress, providers::Provider};
use leasehold_chain::{EvmEscrow, Network};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{Account, AccountRead, Address, Hash, Terms},
    ports::{AcceptanceMessage, BlockLevel, PaymentError, Payments},
};

use crate::anvil::{Anvil, address, connect, key};

const LATER: u64 = 1 << 39;

async fn read_account(escrow: &EvmEscrow, terms: &Terms) -> Account {
    let read = escrow.account(terms, BlockLevel::Latest).await.unwrap();
    read.present().expect("the account exists").clone()
}

async fn tokens(escrow: &EvmEscrow, owner: Address) -> u128 {
    escrow.balances(owner).await.unwrap().token.0
}

#[tokio::test]
async fn a_lease_from_deposit_to_refund() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one, two, closer] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one, &two], &closer, 1);
    anvil.mint(terms.payer, 1_000_000).await;
    assert_eq!(
        escrow.account(&terms, BlockLevel::Latest).await.unwrap().read,
        AccountRead::Absent
    );

    let opened = escrow
        .open(&payer, &terms, TokenAmount(200_000), LATER)
        .await
        .unwrap();
    let t0 = escrow.head().await.unwrap().time;
    let account = read_account(&escrow, &terms).await;
    assert_eq!(account.deposited, TokenAmount(200_000));
    assert_eq!(
        (account.started_at, account.paid_until, account.running),
        (0, 0, 0)
    );
    assert_eq!(tokens(&escrow, terms.payer).await, 800_000);

    // The balance decreases by 2,000 per second: the first start at t0 + 10 begins 100 paid seconds.
    anvil.set_next_time(t0 + 10).await;
    escrow.start(&one, &terms, 0b01).await.unwrap();
    anvil.set_next_time(t0 + 20).await;
    escrow.start(&two, &terms, 0b10).await.unwrap();
    let account = read_account(&escrow, &terms).await;
    assert_eq!((account.started_at, account.paid_until), (t0 + 10, t0 + 110));
    assert_eq!((account.running, account.block_time), (0b11, t0 + 20));
    assert_eq!(account.legs[0].owed, TokenAmount(10_000));

    anvil.set_next_time(t0 + 30).await;
    let funded = escrow
        .fund_to(&payer, &terms, TokenAmount(400_000))
        .await
        .unwrap()
        .expect("moved");
    assert_eq!(
        escrow.fund_to(&payer, &terms, TokenAmount(400_000)).await,
        Ok(None)
    );
    assert_eq!(tokens(&escrow, terms.payer).await, 600_000);

    anvil.set_next_time(t0 + 40).await;
    escrow.pause(&one, &terms, 0b01).await.unwrap();
    anvil.set_next_time(t0 + 50).await;
    escrow.credit_to(&one, &terms, 0, 5).await.unwrap();
    escrow.credit_to(&one, &terms, 0, 5).await.unwrap();
    anvil.set_next_time(t0 + 60).await;
    escrow.settle_many(&one, &[(terms.clone(), 0b01)]).await.unwrap();
    assert_eq!(tokens(&escrow, terms.legs[0].payee).await, 25_000);
    anvil.set_next_time(t0 + 70).await;
    escrow.end_leg(&two, &terms, 0b10).await.unwrap();
    anvil.set_next_time(t0 + 80).await;
    let closed = escrow.close(&closer, &terms, 0b11).await.unwrap();

    // Leg 0 served 30 s and credited 5 s, leg 1 served 50 s.
    assert_eq!(tokens(&escrow, terms.legs[0].payee).await, 25_000);
    assert_eq!(tokens(&escrow, terms.legs[1].payee).await, 50_000);
    assert_eq!(tokens(&escrow, terms.payer).await, 925_000);
    assert_eq!(tokens(&escrow, anvil.deployed.escrow).await, 0);
    let account = read_account(&escrow, &terms).await;
    assert!(account.closed);
    assert_eq!((account.started_at, account.paid_seconds), (t0 + 10, 70));
    println!(
        "gas: open {} (2 legs), fundTo {}, close {} (2 payouts)",
        opened.gas_used, funded.gas_used, closed.gas_used
    );
}

#[tokio::test]
async fn the_gas_limit_suffices_when_a_block_costs_more_than_its_simulation() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one; 16], &one, 1);
    anvil.mint(terms.payer, 16_000 * 5).await;
    escrow
        .open(&payer, &terms, TokenAmount(16_000 * 5), LATER)
        .await
        .unwrap();
    escrow.start(&one, &terms, 0xffff).await.unwrap();
    let started = escrow.head().await.unwrap().time;
    // The close is simulated in the second of the start, when no leg has earned anything. It is mined when all legs
    // have earned and the account is exhausted.
    anvil.set_next_time(started + 100).await;
    escrow.close(&one, &terms, 0xffff).await.unwrap();
    for leg in &terms.legs {
        assert_eq!(
            escrow.balances(leg.payee).await.unwrap().token,
            TokenAmount(5_000)
        );
    }
    assert_eq!(escrow.balances(terms.payer).await.unwrap().token, TokenAmount(0));
    assert_eq!(
        anvil.nonce(address(&one)).await,
        2,
        "more than one transaction was sent"
    );
}

/// Changes the selector of DOMAIN_SEPARATOR in the test token's code, which makes it a token without permits.
async fn take_permits_away(anvil: &Anvil) {
    let token = EvmAddress::new(anvil.deployed.token.0);
    let code = anvil.rpc.get_code_at(token).await.unwrap().to_string();
    let without = code.replace("3644e515", "3644e516");
    assert_ne!(code, without, "the token has no DOMAIN_SEPARATOR to take away");
    anvil.request::<_, ()>("anvil_setCode", (token, without)).await;
}

#[tokio::test]
async fn a_token_without_permits_is_approved_first() {
    let anvil = Anvil::start().await;
    take_permits_away(&anvil).await;
    let escrow = anvil.client();
    let [payer, one] = anvil.keys(1).await;
    let (terms, other) = (
        anvil.terms(&payer, &[&one], &one, 1),
        anvil.terms(&payer, &[&one], &one, 2),
    );
    anvil.mint(terms.payer, 10_000).await;
    let (first, second) = tokio::join!(
        escrow.open(&payer, &terms, TokenAmount(1_000), LATER),
        escrow.open(&payer, &other, TokenAmount(2_000), LATER),
    );
    first.unwrap();
    second.unwrap();
    escrow
        .fund_to(&payer, &terms, TokenAmount(5_000))
        .await
        .unwrap()
        .expect("moved");
    assert_eq!(
        escrow.balances(terms.payer).await.unwrap().token,
        TokenAmount(3_000)
    );
    assert_eq!(
        anvil.nonce(terms.payer).await,
        6,
        "one approval for each of three payments"
    );

    // A payment that the contract rejects approves nothing.
    let again = escrow.open(&payer, &terms, TokenAmount(1_000), LATER).await;
    assert!(matches!(again, Err(PaymentError::Reverted { error }) if error == "AccountExists"));
    assert_eq!(anvil.nonce(terms.payer).await, 6);
}

#[tokio::test]
async fn an_acceptance_binds_signer_account_chain_and_contract() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let one = key(1);
    let message = AcceptanceMessage {
        escrow_id: Hash([1; 32]),
        leg: 2,
        rate: 3,
        not_after: 4,
        deadline: 5,
    };
    let signature = escrow.sign_acceptance(&one, &message).unwrap();
    assert_eq!(
        escrow.acceptance_signer(&message, &signature),
        Some(address(&one))
    );
    let changed = AcceptanceMessage { rate: 4, ..message };
    assert_ne!(
        escrow.acceptance_signer(&changed, &signature),
        Some(address(&one))
    );
    for network in [
        Network {
            chain_id: 1,
            ..anvil.network()
        },
        Network {
            escrow: anvil.deployed.token,
            ..anvil.network()
        },
    ] {
        let elsewhere = connect(&network);
        assert_ne!(
            elsewhere.acceptance_signer(&message, &signature),
            Some(address(&one))
        );
    }
}
