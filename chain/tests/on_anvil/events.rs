//! Finds accounts by id and by cursor, across reorganisations, and at each block level.

use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountRead, Address, Hash},
    ports::{BlockLevel, Payments},
};

use crate::anvil::Anvil;

const LATER: u64 = 1 << 39;

#[tokio::test]
async fn an_account_is_found_by_its_id_with_its_whole_terms() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one, two, closer] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one, &two], &closer, 1);
    anvil.mint(terms.payer, 1_000).await;
    assert_eq!(escrow.find(terms.id()).await.unwrap().1, None);
    let receipt = escrow
        .open(&payer, &terms, TokenAmount(700), LATER)
        .await
        .unwrap();
    let found = escrow
        .find(terms.id())
        .await
        .unwrap()
        .1
        .expect("the account is found");
    assert_eq!(found.terms, terms);
    assert_eq!(
        (found.deposit, found.block_number),
        (TokenAmount(700), receipt.block_number)
    );
    assert_eq!(escrow.find(Hash([9; 32])).await.unwrap().1, None);
}

#[tokio::test]
async fn a_cursor_reads_each_account_of_its_market_once() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one] = anvil.keys(1).await;
    let mut terms: Vec<_> = (1..=4)
        .map(|salt| anvil.terms(&payer, &[&one], &one, salt))
        .collect();
    terms[1].market = Address([0x66; 20]);
    let market = terms[0].market;
    for terms in &terms[..2] {
        escrow.open(&payer, terms, TokenAmount(0), LATER).await.unwrap();
    }
    let (rows, cursor) = escrow.opened_since(market, None).await.unwrap();
    assert_eq!(
        rows.iter().map(|row| row.terms.salt).collect::<Vec<_>>(),
        [terms[0].salt]
    );
    let (rows, same) = escrow.opened_since(market, Some(cursor)).await.unwrap();
    assert_eq!((rows.len(), same), (0, cursor));
    for terms in &terms[2..] {
        escrow.open(&payer, terms, TokenAmount(0), LATER).await.unwrap();
    }
    let (rows, next) = escrow.opened_since(market, Some(cursor)).await.unwrap();
    assert_eq!(
        rows.iter().map(|row| row.terms.salt).collect::<Vec<_>>(),
        [terms[2].salt, terms[3].salt]
    );
    assert_eq!(next.number, escrow.head().await.unwrap().number);
}

#[tokio::test]
async fn a_reorganisation_is_read_again() {
    let anvil = Anvil::start().await;
    let escrow = anvil.client();
    let [payer, one] = anvil.keys(1).await;
    let terms: Vec<_> = (1..=3)
        .map(|salt| anvil.terms(&payer, &[&one], &one, salt))
        .collect();
    let market = terms[0].market;
    let open = async |i: usize| {
        escrow
            .open(&payer, &terms[i], TokenAmount(0), LATER)
            .await
            .unwrap()
    };
    let salts = async |cursor| {
        let (rows, cursor) = escrow.opened_since(market, cursor).await.unwrap();
        (rows.iter().map(|row| row.terms.salt).collect::<Vec<_>>(), cursor)
    };
    open(0).await;
    let snapshot: serde_json::Value = anvil.request("evm_snapshot", ()).await;
    open(1).await;
    anvil.mine().await;
    let (seen, cursor) = salts(None).await;
    assert_eq!(seen, [terms[0].salt, terms[1].salt]);

    // The chain is shorter now, and the second account no longer exists.
    let reverted: bool = anvil.request("evm_revert", (snapshot,)).await;
    assert!(reverted);
    assert_eq!(
        escrow.account(&terms[1], BlockLevel::Latest).await.unwrap().read,
        AccountRead::Absent
    );
    open(2).await;
    let (seen, cursor) = salts(Some(cursor)).await;
    assert_eq!(seen, [terms[0].salt, terms[2].salt]);

    // The newest two blocks are replaced by empty blocks with the same numbers.
    anvil
        .request::<_, serde_json::Value>("anvil_reorg", (2u64, serde_json::json!([])))
        .await;
    assert_eq!(anvil.number().await, cursor.number);
    let (seen, cursor) = salts(Some(cursor)).await;
    assert!(!seen.contains(&terms[2].salt), "{seen:?}");
    open(2).await;
    assert_eq!(salts(Some(cursor)).await.0, [terms[2].salt]);
}

#[tokio::test]
async fn levels_lag_behind_the_newest_block() {
    let anvil = Anvil::start_with(&["--slots-in-an-epoch", "2"]).await;
    let escrow = anvil.client();
    let [payer, one] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one], &one, 1);
    escrow.open(&payer, &terms, TokenAmount(0), LATER).await.unwrap();
    let present = async |level| escrow.account(&terms, level).await.unwrap().present().is_some();
    assert!(present(BlockLevel::Latest).await);
    assert!(!present(BlockLevel::Safe).await);
    assert!(!present(BlockLevel::Finalized).await);
    anvil.mine().await;
    anvil.mine().await;
    assert!(present(BlockLevel::Safe).await);
    assert!(!present(BlockLevel::Finalized).await);
    anvil.mine().await;
    anvil.mine().await;
    assert!(present(BlockLevel::Finalized).await);
}
