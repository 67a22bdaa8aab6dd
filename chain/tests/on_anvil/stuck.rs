//! Transactions that are not mined: fees are raised, a later call joins a pending transaction, and a blocked key is
//! freed.

use std::time::Duration;

use alloy::{
    consensus::{SignableTransaction, Transaction as _, TxEip1559},
    eips::eip2718::Encodable2718,
    network::TxSignerSync,
    primitives::{Address as EvmAddress, TxKind, U256},
    providers::Provider,
    signers::local::PrivateKeySigner,
};
use leasehold_chain::{EvmEscrow, Limits, Network};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::ports::{BlockLevel, PaymentError, Payments, Receipt, SigningKey, SpendLimit};

use crate::anvil::{Anvil, connect, until};

const LATER: u64 = 1 << 39;
const GWEI: u128 = 1_000_000_000;

/// Sets a block gas limit that is too low for the transaction.
async fn set_block_gas(anvil: &Anvil, gas: u64) {
    let set: bool = anvil.request("evm_setBlockGasLimit", (U256::from(gas),)).await;
    assert!(set);
}

async fn set_base_fee(anvil: &Anvil, wei: u128) {
    anvil
        .request::<_, ()>("anvil_setNextBlockBaseFeePerGas", (U256::from(wei),))
        .await;
}

/// A client with that time limit for a transaction to be mined, in seconds, and those ceilings.
fn client(anvil: &Anvil, mine_deadline: u64, limits: Limits) -> EvmEscrow {
    connect(&Network {
        mine_deadline: Duration::from_secs(mine_deadline),
        limits,
        ..anvil.network()
    })
}

fn patient(anvil: &Anvil) -> EvmEscrow {
    client(anvil, 12, Limits::default())
}

/// Opens an account, lets `hinder` keep the transaction out of a block, and returns whether its first attempt was
/// mined.
async fn open_hindered(anvil: &Anvil, hinder: impl AsyncFnOnce(), release: impl AsyncFnOnce()) -> bool {
    let escrow = patient(anvil);
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    anvil.mint(terms.payer, 1_000).await;
    anvil.set_automine(false).await;
    let open = escrow.open(&payer, &terms, TokenAmount(1_000), LATER);
    let chain = async {
        until("it waits", async || anvil.pool().await == 1).await;
        let first = anvil.pool_hashes().await;
        hinder().await;
        anvil.mine().await;
        release().await;
        until("another attempt is pending", async || {
            let now = anvil.pool_hashes().await;
            now.len() == 1 && now != first
        })
        .await;
        anvil.mine().await;
        first[0]
    };
    let (receipt, first) = tokio::join!(open, chain);
    let read = escrow.account(&terms, BlockLevel::Latest).await.unwrap();
    assert_eq!(read.present().unwrap().deposited, TokenAmount(1_000));
    assert_eq!(anvil.nonce(terms.payer).await, 1);
    receipt.unwrap().transaction.0 == first.0
}

#[tokio::test]
async fn a_transaction_that_is_not_mined_raises_its_fees() {
    let anvil = Anvil::start().await;
    let narrow = async || set_block_gas(&anvil, 30_000).await;
    let wide = async || set_block_gas(&anvil, 30_000_000).await;
    assert!(!open_hindered(&anvil, narrow, wide).await);
}

#[tokio::test]
async fn a_transaction_that_the_node_dropped_is_sent_again_with_higher_fees() {
    let anvil = Anvil::start().await;
    // anvil drops transactions that offer less than the base fee.
    let raise = async || set_base_fee(&anvil, 50 * GWEI).await;
    assert!(!open_hindered(&anvil, raise, async || ()).await);
}

#[tokio::test]
async fn a_later_call_joins_the_pending_transaction() {
    let anvil = Anvil::start().await;
    let escrow = client(&anvil, 1, Limits::default());
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    anvil.mint(terms.payer, 1_000).await;
    anvil.set_automine(false).await;
    let Err(PaymentError::Pending { transaction }) =
        escrow.open(&payer, &terms, TokenAmount(1_000), LATER).await
    else {
        panic!("the transaction was mined")
    };
    let mining = async {
        tokio::task::yield_now().await;
        anvil.mine().await;
    };
    let (receipt, ()) = tokio::join!(escrow.open(&payer, &terms, TokenAmount(1_000), LATER), mining);
    match receipt {
        Ok(receipt) => assert_eq!(receipt.transaction, transaction),
        // It was mined before the second call started.
        Err(error) => assert_eq!(
            error,
            PaymentError::Reverted {
                error: "AccountExists".into()
            }
        ),
    }
    assert_eq!(anvil.pool().await, 0);
    assert_eq!(anvil.nonce(terms.payer).await, 1, "sent twice");
}

/// Sends a transaction as another program with the same key would.
async fn send_unfitting(anvil: &Anvil, key: &SigningKey, nonce: u64) {
    let signer = PrivateKeySigner::from_slice(&key.0).unwrap();
    let mut transaction = TxEip1559 {
        chain_id: anvil.deployed.chain_id,
        nonce,
        gas_limit: 2_000_000,
        max_fee_per_gas: 2 * GWEI,
        max_priority_fee_per_gas: 1,
        to: TxKind::Call(EvmAddress::repeat_byte(0x55)),
        value: U256::from(1),
        ..TxEip1559::default()
    };
    let signature = signer.sign_transaction_sync(&mut transaction).unwrap();
    let bytes = transaction.into_signed(signature).encoded_2718();
    let _ = anvil.rpc.send_raw_transaction(&bytes).await.unwrap();
}

#[tokio::test]
async fn an_unknown_blocking_transaction_is_replaced_by_an_empty_one() {
    let anvil = Anvil::start().await;
    let escrow = patient(&anvil);
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    anvil.mint(terms.payer, 1_000).await;
    escrow
        .open(&payer, &terms, TokenAmount(1_000), LATER)
        .await
        .unwrap();
    anvil.set_automine(false).await;
    let nonce = anvil.nonce(terms.closer).await;
    send_unfitting(&anvil, &one, nonce).await;
    set_block_gas(&anvil, 1_000_000).await;
    anvil.mine().await;
    assert_eq!(anvil.pool().await, 1, "the transaction blocks the key");
    let done = tokio::sync::Notify::new();
    let close = async {
        let receipt = escrow.close(&one, &terms, 0).await;
        done.notify_one();
        receipt
    };
    let mining = async {
        loop {
            tokio::select! {
                () = done.notified() => return,
                () = tokio::time::sleep(Duration::from_millis(500)) => anvil.mine().await,
            }
        }
    };
    let (receipt, ()) = tokio::join!(close, mining);
    receipt.unwrap();
    assert_eq!(anvil.nonce(terms.closer).await, nonce + 2);
    assert_eq!(
        anvil
            .rpc
            .get_balance(EvmAddress::repeat_byte(0x55))
            .await
            .unwrap(),
        U256::ZERO
    );
}

/// Repeats the call, which joins its pending transaction, until it has another outcome.
async fn until_mined(open: impl AsyncFn() -> Result<Receipt, PaymentError>) -> Result<Receipt, PaymentError> {
    loop {
        match open().await {
            Err(PaymentError::Pending { .. }) => {}
            done => return done,
        }
    }
}

#[tokio::test]
async fn fees_that_keep_rising_pin_no_key() {
    let anvil = Anvil::start().await;
    let limits = Limits {
        fee_per_gas_wei: 100_000 * GWEI,
        day_wei: u128::MAX,
        ..Limits::default()
    };
    let escrow = client(&anvil, 6, limits);
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    anvil.mint(terms.payer, 1_000).await;
    anvil.set_automine(false).await;
    let open = until_mined(async || escrow.open(&payer, &terms, TokenAmount(1_000), LATER).await);
    let chain = async {
        until("it waits", async || anvil.pool().await == 1).await;
        // Each attempt offers twice the base fee that it sees, and each block costs more than that.
        for round in 2..10 {
            let before = anvil.pool_hashes().await;
            set_base_fee(&anvil, GWEI * 3u128.pow(round)).await;
            anvil.mine().await;
            until("another attempt is pending", async || {
                let now = anvil.pool_hashes().await;
                now.len() == 1 && now != before
            })
            .await;
        }
        anvil.mine().await;
    };
    let (receipt, ()) = tokio::join!(open, chain);
    receipt.unwrap();
    assert_eq!(
        anvil.nonce(terms.payer).await,
        1,
        "one transaction, nine attempts"
    );
}

#[tokio::test]
async fn a_transaction_at_the_ceiling_waits_until_the_chain_is_cheaper() {
    let anvil = Anvil::start().await;
    let limits = Limits {
        fee_per_gas_wei: 5 * GWEI,
        ..Limits::default()
    };
    let escrow = client(&anvil, 6, limits);
    let [payer, one] = anvil.keys(1).await;
    let (terms, more) = (
        anvil.terms(&payer, &[&one], &one, 1),
        anvil.terms(&payer, &[&one], &one, 2),
    );
    anvil.mint(terms.payer, 2_000).await;
    anvil.set_automine(false).await;
    let open = until_mined(async || escrow.open(&payer, &terms, TokenAmount(1_000), LATER).await);
    let chain = async {
        until("it waits", async || anvil.pool().await == 1).await;
        // anvil drops transactions that offer less than the base fee, and accepts no new ones.
        set_base_fee(&anvil, 50 * GWEI).await;
        anvil.mine().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(anvil.pool().await, 0, "no fee beyond the ceiling");
        let refused = escrow.open(&payer, &more, TokenAmount(1_000), LATER).await;
        assert!(
            matches!(&refused, Err(PaymentError::LimitExceeded { error, .. }) if error.limit == SpendLimit::FeePerGas),
            "{refused:?}"
        );
        set_base_fee(&anvil, GWEI).await;
        anvil.mine().await;
        until("it is sent again", async || anvil.pool().await == 1).await;
        anvil.mine().await;
    };
    let (receipt, ()) = tokio::join!(open, chain);
    let hash = receipt.unwrap().transaction.0.into();
    let mined = anvil.rpc.get_transaction_by_hash(hash).await.unwrap().unwrap();
    assert!(mined.max_fee_per_gas() <= 5 * GWEI);
}
