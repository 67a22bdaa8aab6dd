//! Many writes with one key, from one process and from two: each is mined once.

use leasehold_chain::{
    EvmEscrow, Limits, Network, Queues,
    deploy::{self, ANVIL_KEY},
};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::Terms,
    ports::{BlockLevel, PaymentError, Payments, SigningKey, SpendLimit},
};

use crate::anvil::{Anvil, connect, until};

const LATER: u64 = 1 << 39;

async fn deposited(escrow: &EvmEscrow, terms: &Terms) -> u128 {
    let read = escrow.account(terms, BlockLevel::Latest).await.unwrap();
    read.present().expect("it is open").deposited.0
}

async fn opened(escrow: &EvmEscrow, terms: &Terms) -> usize {
    let (rows, _) = escrow.opened_since(terms.market, None).await.unwrap();
    rows.iter().filter(|row| row.terms.id() == terms.id()).count()
}

fn exists() -> PaymentError {
    PaymentError::Reverted {
        error: "AccountExists".into(),
    }
}

#[tokio::test]
async fn two_operators_open_once_and_fund_exactly() {
    let anvil = Anvil::start().await;
    let (a, b) = (anvil.client(), anvil.client());
    let [payer, one] = anvil.keys(1).await;
    anvil
        .mint(anvil.terms(&payer, &[&one], &one, 0).payer, 1_000_000)
        .await;
    for salt in 1..=8 {
        let terms = anvil.terms(&payer, &[&one], &one, salt);
        let before = a.balances(terms.payer).await.unwrap().token.0;
        let (first, second) = tokio::join!(
            a.open(&payer, &terms, TokenAmount(1_000), LATER),
            b.open(&payer, &terms, TokenAmount(1_000), LATER + u64::from(salt % 2)),
        );
        match (&first, &second) {
            // Identical bytes are the same transaction.
            (Ok(one), Ok(other)) => assert_eq!(one.transaction, other.transaction),
            (Ok(_), Err(error)) | (Err(error), Ok(_)) => assert_eq!(*error, exists()),
            neither => panic!("{neither:?}"),
        }
        assert_eq!(opened(&a, &terms).await, 1);
        assert_eq!(deposited(&a, &terms).await, 1_000);

        let (first, second) = tokio::join!(
            a.fund_to(&payer, &terms, TokenAmount(5_000)),
            b.fund_to(&payer, &terms, TokenAmount(5_000)),
        );
        first.unwrap();
        second.unwrap();
        assert_eq!(deposited(&a, &terms).await, 5_000);
        assert_eq!(a.balances(terms.payer).await.unwrap().token.0, before - 5_000);
    }
}

#[tokio::test]
async fn two_operators_have_conflicting_pending_transactions() {
    let anvil = Anvil::start().await;
    let (a, b) = (anvil.client(), anvil.client());
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    anvil.mint(terms.payer, 1_000_000).await;
    anvil.set_automine(false).await;
    let opens = async {
        tokio::join!(
            a.open(&payer, &terms, TokenAmount(1_000), LATER),
            b.open(&payer, &terms, TokenAmount(1_000), LATER + 1),
        )
    };
    let mining = async {
        until("both wait", async || anvil.pool().await == 2).await;
        anvil.mine().await;
    };
    let ((first, second), ()) = tokio::join!(opens, mining);
    assert_eq!(
        [first.is_ok(), second.is_ok()].iter().filter(|ok| **ok).count(),
        1
    );
    assert_eq!(first.and(second).unwrap_err(), exists());
    assert_eq!(opened(&a, &terms).await, 1);
    assert_eq!(a.balances(terms.payer).await.unwrap().token.0, 999_000);
}

#[tokio::test]
async fn one_payers_accounts_open_in_one_block() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one] = anvil.keys(1).await;
    let all: Vec<Terms> = (1..=6)
        .map(|salt| anvil.terms(&payer, &[&one], &one, salt))
        .collect();
    anvil.mint(all[0].payer, 6_000).await;
    anvil.set_automine(false).await;
    let opens = all.iter().map(|terms| {
        let (escrow, payer, terms) = (escrow.clone(), payer.clone(), terms.clone());
        tokio::spawn(async move { escrow.open(&payer, &terms, TokenAmount(1_000), LATER).await })
    });
    let opens: Vec<_> = opens.collect();
    until("all wait", async || anvil.pool().await == 6).await;
    // Tokens of pending transactions count as spent.
    let more = anvil.terms(&payer, &[&one], &one, 7);
    assert_eq!(
        escrow.open(&payer, &more, TokenAmount(1), LATER).await,
        Err(PaymentError::InsufficientTokens {
            address: more.payer,
            need: TokenAmount(1),
            have: TokenAmount(0)
        })
    );
    anvil.mine().await;
    let mut blocks = Vec::new();
    for open in opens {
        blocks.push(open.await.unwrap().unwrap().block_number);
    }
    assert!(blocks.iter().all(|block| *block == blocks[0]), "{blocks:?}");
    for terms in &all {
        assert_eq!(deposited(&escrow, terms).await, 1_000);
    }
}

#[tokio::test]
async fn two_operators_use_permits_of_one_payer() {
    let anvil = Anvil::start().await;
    let (a, b) = (anvil.client(), anvil.client());
    let [payer, one] = anvil.keys(1).await;
    let terms: [Terms; 4] =
        std::array::from_fn(|i| anvil.terms(&payer, &[&one], &one, u8::try_from(i).unwrap() + 1));
    anvil.mint(terms[0].payer, 1_000_000).await;
    anvil.set_automine(false).await;
    let open = async |client: &EvmEscrow, key: &SigningKey, terms: &Terms| {
        client.open(key, terms, TokenAmount(1_000), LATER).await
    };
    let done = tokio::sync::Notify::new();
    let opens = async {
        let all = tokio::join!(
            open(&a, &payer, &terms[0]),
            open(&b, &payer, &terms[1]),
            open(&a, &payer, &terms[2]),
            open(&b, &payer, &terms[3]),
        );
        done.notify_one();
        all
    };
    // Each process knows only its own permits: some are stale when they are mined, and are signed again.
    let mining = async {
        loop {
            tokio::select! {
                () = done.notified() => return,
                () = tokio::time::sleep(std::time::Duration::from_millis(300)) => anvil.mine().await,
            }
        }
    };
    let (all, ()) = tokio::join!(opens, mining);
    for result in <[_; 4]>::from(all) {
        result.unwrap();
    }
    for terms in &terms {
        assert_eq!(deposited(&a, terms).await, 1_000);
    }
    assert_eq!(a.balances(terms[0].payer).await.unwrap().token.0, 996_000);
}

/// Two tokens on one chain: a key has one sequence of nonces, one budget, and permits and tokens of each token.
#[tokio::test]
async fn two_networks_of_one_chain_share_the_queue_of_a_key() {
    let anvil = Anvil::start().await;
    let other = deploy::deploy(&anvil.url, &ANVIL_KEY).await.unwrap();
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    let others = Terms {
        token: other.token,
        ..terms.clone()
    };
    anvil.mint(terms.payer, 1_000).await;
    deploy::mint(
        &anvil.url,
        &ANVIL_KEY,
        other.token,
        &[(terms.payer, TokenAmount(1_000))],
    )
    .await
    .unwrap();
    let queues = Queues::default();
    let network = Network {
        escrow: other.escrow,
        token: other.token,
        ..anvil.network()
    };
    let (a, b) = (
        EvmEscrow::connect(&anvil.network(), &queues).unwrap(),
        EvmEscrow::connect(&network, &queues).unwrap(),
    );
    anvil.set_automine(false).await;
    let opens = async {
        tokio::join!(
            a.open(&payer, &terms, TokenAmount(1_000), LATER),
            b.open(&payer, &others, TokenAmount(1_000), LATER),
        )
    };
    let mining = async {
        until("both wait", async || anvil.pool().await == 2).await;
        anvil.mine().await;
    };
    let ((first, second), ()) = tokio::join!(opens, mining);
    assert_eq!(first.unwrap().block_number, second.unwrap().block_number);
    assert_eq!(
        (deposited(&a, &terms).await, deposited(&b, &others).await),
        (1_000, 1_000)
    );
    assert_eq!(anvil.nonce(terms.payer).await, 2);

    // What the key has spent on one network counts on the other.
    anvil.set_automine(true).await;
    let limits = Limits {
        day_wei: 1,
        ..Limits::default()
    };
    let poor = EvmEscrow::connect(&Network { limits, ..network }, &queues).unwrap();
    let refused = poor.close(&payer, &others, 0).await;
    let Err(PaymentError::LimitExceeded { error, .. }) = refused else {
        panic!("{refused:?}")
    };
    let alone = connect(&Network {
        limits,
        ..anvil.network()
    });
    let refused = alone.close(&payer, &terms, 0).await;
    let Err(PaymentError::LimitExceeded { error: own, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((error.limit, own.limit), (SpendLimit::Day, SpendLimit::Day));
    assert!(error.wanted > own.wanted, "{} and {}", error.wanted, own.wanted);
}
