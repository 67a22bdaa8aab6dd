//! Each action through JSON-RPC on a real EVM, and what it moves.

use crate::anvil::Anvil;
use leasehold_crds::money::TokenAmount;
use leasehold_planner::{
    escrow::AccountRead,
    ports::{BlockLevel, Payments},
};

const LATER: u64 = 1 << 39;

#[tokio::test]
async fn a_lease_from_deposit_to_refund() {
    let Some(anvil) = Anvil::start().await else { return };
    let escrow = anvil.client();
    let [payer, one, two, closer] = anvil.keys(1).await;
    let terms = anvil.terms(&payer, &[&one, &two], &closer, 1);
    anvil.mint(terms.payer, 1_000_000).await;
    assert_eq!(
        escrow.account(&terms, BlockLevel::Latest).await,
        Ok(AccountRead::Absent)
    );

    let opened = escrow
        .open(&payer, &terms, TokenAmount(200_000), LATER)
        .await
        .unwrap();
    let t0 = escrow.head().await.unwrap().time;
    let account = escrow.account(&terms, BlockLevel::Latest).await.unwrap();
    let account = account.present().expect("it is open").clone();
    assert_eq!(account.deposited, TokenAmount(200_000));
    assert_eq!(
        (account.started_at, account.paid_until, account.running),
        (0, 0, 0)
    );
    assert_eq!(
        escrow.purse(terms.payer).await.unwrap().token,
        TokenAmount(800_000)
    );

    // 2,000 a second: the first start at t0 + 10 begins it, for 100 seconds.
    anvil.set_next_time(t0 + 10).await;
    escrow.start(&one, &terms, 0b01).await.unwrap();
    anvil.set_next_time(t0 + 20).await;
    escrow.start(&two, &terms, 0b10).await.unwrap();
    let account = escrow.account(&terms, BlockLevel::Latest).await.unwrap();
    let account = account.present().expect("it is open").clone();
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
    assert_eq!(
        escrow.purse(terms.payer).await.unwrap().token,
        TokenAmount(600_000)
    );

    anvil.set_next_time(t0 + 40).await;
    escrow.pause(&one, &terms, 0b01).await.unwrap();
    anvil.set_next_time(t0 + 50).await;
    escrow.credit(&one, &terms, 0, 5).await.unwrap();
    anvil.set_next_time(t0 + 60).await;
    escrow.settle_many(&one, &[(terms.clone(), 0b01)]).await.unwrap();
    assert_eq!(
        escrow.purse(terms.legs[0].payee).await.unwrap().token,
        TokenAmount(25_000)
    );
    anvil.set_next_time(t0 + 70).await;
    escrow.end_leg(&two, &terms, 0b10).await.unwrap();
    anvil.set_next_time(t0 + 80).await;
    let closed = escrow.close(&closer, &terms, 0b11).await.unwrap();

    // Leg 0 served 30 s and gave 5 back, leg 1 served 50 s.
    assert_eq!(
        escrow.purse(terms.legs[0].payee).await.unwrap().token,
        TokenAmount(25_000)
    );
    assert_eq!(
        escrow.purse(terms.legs[1].payee).await.unwrap().token,
        TokenAmount(50_000)
    );
    assert_eq!(
        escrow.purse(terms.payer).await.unwrap().token,
        TokenAmount(925_000)
    );
    assert_eq!(
        escrow.purse(anvil.deployed.escrow).await.unwrap().token,
        TokenAmount(0)
    );
    let account = escrow.account(&terms, BlockLevel::Latest).await.unwrap();
    let account = account.present().expect("it is kept").clone();
    assert!(account.closed);
    assert_eq!((account.started_at, account.paid_seconds), (t0 + 10, 70));
    println!(
        "gas: open {} (2 legs), fundTo {}, close {} (2 payouts)",
        opened.gas_used, funded.gas_used, closed.gas_used
    );
}
