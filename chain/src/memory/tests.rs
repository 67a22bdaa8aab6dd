//! Faults, forgotten blocks and reorganisations of the chain in memory.

use leasehold_crds::payment::money::Rate;
use leasehold_planner::escrow::Leg;

use super::*;

const LATER: u64 = 1 << 39;

fn key(number: u8) -> SigningKey {
    SigningKey([number; 32])
}

fn stage() -> (MemoryEscrow, Terms) {
    let escrow = MemoryEscrow::new(1, Address([0xe5; 20]), Address([0x70; 20]), 1_000);
    let payer = escrow.address_of(&key(1)).unwrap();
    escrow.mint(payer, TokenAmount(10_000));
    let terms = Terms {
        payer,
        market: Address([2; 20]),
        token: Address([0x70; 20]),
        closer: Address([3; 20]),
        salt: Hash([4; 32]),
        start_by: LATER,
        notice_seconds: 0,
        pause_for: 0,
        legs: vec![Leg {
            payee: Address([8; 20]),
            controller: escrow.address_of(&key(2)).unwrap(),
            rate: Rate(10_000_000_000_000),
        }],
    };
    (escrow, terms)
}

async fn deposited(escrow: &MemoryEscrow, terms: &Terms) -> Option<u128> {
    let read = escrow.account(terms, BlockLevel::Latest).await.unwrap();
    read.present().map(|account| account.deposited.0)
}

#[tokio::test]
async fn a_lost_reply_has_its_effect_and_an_outage_has_none() {
    let (escrow, terms) = stage();
    let deposit = TokenAmount(1_000);
    escrow.script_faults([Some(Fault::Unreachable)]);
    let open = async || escrow.open(&key(1), &terms, deposit, LATER).await;
    assert!(matches!(open().await, Err(PaymentError::Unreachable(_))));
    assert_eq!(deposited(&escrow, &terms).await, None);
    escrow.script_faults([Some(Fault::LoseReply)]);
    assert!(matches!(open().await, Err(PaymentError::Unreachable(_))));
    assert_eq!(deposited(&escrow, &terms).await, Some(1_000));
    assert!(matches!(open().await, Err(PaymentError::Reverted { error }) if error == "AccountExists"));
}

#[tokio::test]
async fn pending_transactions_are_mined_or_dropped() {
    let (escrow, terms) = stage();
    let open = async || {
        escrow.set_fault(Some(Fault::Pend));
        let result = escrow.open(&key(1), &terms, TokenAmount(1_000), LATER).await;
        escrow.set_fault(None);
        result
    };
    assert!(matches!(open().await, Err(PaymentError::Pending { .. })));
    escrow.drop_pending();
    escrow.mine_pending();
    assert_eq!(deposited(&escrow, &terms).await, None);
    assert!(matches!(open().await, Err(PaymentError::Pending { .. })));
    escrow.mine_pending();
    assert_eq!(deposited(&escrow, &terms).await, Some(1_000));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_ends_at_its_deadline() {
    let (escrow, _) = stage();
    escrow.set_fault(Some(Fault::Hang));
    let since = tokio::time::Instant::now();
    assert!(matches!(escrow.head().await, Err(PaymentError::Unreachable(_))));
    assert_eq!(since.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn a_reorganisation_takes_back_money_and_events() {
    let (escrow, terms) = stage();
    let before = escrow.mark();
    escrow
        .open(&key(1), &terms, TokenAmount(1_000), LATER)
        .await
        .unwrap();
    let (rows, cursor) = escrow.opened_since(terms.market, None).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert!(escrow.rewind(before));
    assert_eq!(deposited(&escrow, &terms).await, None);
    assert_eq!(
        escrow.balances(terms.payer).await.unwrap().token,
        TokenAmount(10_000)
    );
    assert_eq!(escrow.find(terms.id()).await.unwrap().1, None);
    escrow
        .open(&key(1), &terms, TokenAmount(2_000), LATER)
        .await
        .unwrap();
    let (rows, next) = escrow.opened_since(terms.market, Some(cursor)).await.unwrap();
    assert_eq!(rows[0].deposit, TokenAmount(2_000));
    assert_eq!(next.number, cursor.number);
    assert_ne!(next.hash, cursor.hash);
    assert!(!escrow.reorganise(1_000));
}

#[tokio::test]
async fn levels_and_stale_reads_lag() {
    let (escrow, terms) = stage();
    escrow.set_lags(1, 2);
    escrow
        .open(&key(1), &terms, TokenAmount(1_000), LATER)
        .await
        .unwrap();
    let present = async |level| escrow.account(&terms, level).await.unwrap().present().is_some();
    assert!(present(BlockLevel::Latest).await);
    assert!(!present(BlockLevel::Safe).await);
    escrow.advance(1);
    assert!(present(BlockLevel::Safe).await);
    assert!(!present(BlockLevel::Finalized).await);
    escrow.script_faults([Some(Fault::StaleBy(2))]);
    assert!(!present(BlockLevel::Latest).await);
    assert!(present(BlockLevel::Latest).await);
}

#[tokio::test]
async fn insufficient_tokens_and_gas_have_their_own_errors() {
    let (escrow, terms) = stage();
    assert_eq!(
        escrow.open(&key(1), &terms, TokenAmount(10_001), LATER).await,
        Err(PaymentError::InsufficientTokens {
            address: terms.payer,
            need: TokenAmount(10_001),
            have: TokenAmount(10_000)
        })
    );
    escrow.set_gas(terms.payer, 1);
    assert_eq!(
        escrow.open(&key(1), &terms, TokenAmount(1), LATER).await,
        Err(PaymentError::InsufficientGas { address: terms.payer })
    );
    assert_eq!(
        escrow.balances(terms.payer).await.unwrap().token,
        TokenAmount(10_000)
    );
}

#[tokio::test]
async fn a_payee_that_the_token_blocks_is_settled_and_names_another_recipient() {
    let (escrow, mut terms) = stage();
    let payee = escrow.address_of(&key(3)).unwrap();
    terms.legs[0].payee = payee;
    escrow
        .open(&key(1), &terms, TokenAmount(1_000), LATER)
        .await
        .unwrap();
    escrow.start(&key(2), &terms, 1).await.unwrap();
    escrow.advance(20);
    escrow.block(payee);
    escrow.end_leg(&key(2), &terms, 1).await.unwrap();
    escrow.settle_many(&key(2), &[(terms.clone(), 1)]).await.unwrap();
    let account = escrow.account(&terms, BlockLevel::Latest).await.unwrap();
    let leg = account.present().unwrap().legs[0];
    assert_eq!(
        leg.owed,
        TokenAmount(0),
        "its reservation has nothing left to withdraw"
    );
    assert!(leg.withdrawn.0 >= 200);
    let holds = async |who| escrow.balances(who).await.unwrap().token;
    assert_eq!(holds(payee).await, TokenAmount(0));
    let refused = async |to| escrow.withdraw_credit(&key(3), to).await;
    assert!(matches!(refused(payee).await, Err(PaymentError::Reverted { error }) if error == "blocked"));
    assert!(
        matches!(refused(Address::default()).await, Err(PaymentError::Reverted { error }) if error == "ZeroAddress")
    );
    let other = Address([0xaa; 20]);
    escrow.withdraw_credit(&key(3), other).await.unwrap();
    assert_eq!(holds(other).await, leg.withdrawn);
    assert!(matches!(refused(other).await, Err(PaymentError::Reverted { error }) if error == "NoCredit"));
}
