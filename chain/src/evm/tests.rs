//! The client against scripted answers of an endpoint, without a chain.

use alloy::{
    primitives::{Address as EvmAddress, B256, Bytes, U64, U256},
    rpc::{json_rpc::ErrorPayload, types::Block},
    sol_types::{Panic, PanicKind, Revert, SolError},
    transports::mock::Asserter,
};
use leasehold_crds::payment::money::Rate;
use leasehold_planner::{
    escrow::{AccountRead, Leg},
    ports::{BlockLevel, Cursor, Payments, SpendLimit},
};

use super::{escrow::to_u40, *};

const CHAIN: u64 = 31_337;

fn network() -> Network {
    Network {
        rpc_url: String::new(),
        chain_id: CHAIN,
        escrow: Address([0xe5; 20]),
        token: Address([0x70; 20]),
        call_deadline: Duration::from_secs(1),
        mine_deadline: Duration::from_secs(1),
        limits: Limits::default(),
    }
}

fn scripted() -> (EvmEscrow, Asserter) {
    scripted_with(Limits::default())
}

fn scripted_with(limits: Limits) -> (EvmEscrow, Asserter) {
    let asserter = Asserter::new();
    let client = RpcClient::mocked(asserter.clone());
    let secrets = vec!["sesame-open-up".to_owned()];
    let poll = Duration::from_millis(1);
    let network = Network { limits, ..network() };
    let escrow = EvmEscrow::over(client, &network, poll, secrets, Queues::default());
    (escrow, asserter)
}

fn key() -> SigningKey {
    SigningKey([7; 32])
}

fn terms() -> Terms {
    Terms {
        payer: address_of(&key()).unwrap(),
        market: Address([2; 20]),
        token: network().token,
        closer: Address([3; 20]),
        salt: Hash([4; 32]),
        start_by: 5,
        notice_seconds: 6,
        pause_for: 7,
        legs: vec![Leg {
            payee: Address([8; 20]),
            controller: Address([9; 20]),
            rate: Rate(10),
        }],
    }
}

fn block(number: u64) -> Block {
    let mut block: Block = Block::default();
    block.header.hash = B256::from(U256::from(number + 1_000_000));
    block.header.inner.number = number;
    block.header.inner.timestamp = 1_000 + number;
    block
}

fn revert(data: impl Into<Bytes>) -> ErrorPayload {
    let data = serde_json::to_string(&data.into()).unwrap();
    ErrorPayload {
        code: 3,
        message: "execution reverted".into(),
        data: Some(serde_json::value::RawValue::from_string(data).unwrap()),
    }
}

/// The answers up to the simulation of a call that transfers no tokens.
fn up_to_simulation(asserter: &Asserter) {
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(9));
    asserter.push_success(&U64::from(0));
    asserter.push_success(&U64::from(0));
    asserter.push_success(&serde_json::json!({
        "oldestBlock": "0x8", "baseFeePerGas": ["0x7", "0x7"], "gasUsedRatio": [0.5], "reward": [["0x1"]]
    }));
    asserter.push_success(&U256::from(10u128.pow(18)));
}

#[tokio::test]
async fn the_chain_is_verified_once_and_again_after_an_outage() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(1));
    asserter.push_success(&block(2));
    assert_eq!(escrow.head().await.unwrap().number, 1);
    assert_eq!(
        escrow.head().await.unwrap().number,
        2,
        "verified the chain id again"
    );
    // An unanswered request is an outage. The endpoint that answers afterwards may be another one.
    assert!(matches!(escrow.head().await, Err(PaymentError::Unreachable(_))));
    asserter.push_success(&U64::from(1));
    let wrong = PaymentError::WrongChain {
        expected: CHAIN,
        found: 1,
    };
    assert_eq!(escrow.head().await, Err(wrong));
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(3));
    assert_eq!(escrow.head().await.unwrap().number, 3);
}

#[tokio::test]
async fn a_revert_is_named_by_escrow_token_or_solidity() {
    let cases: [(Bytes, &str); 6] = [
        (
            Escrow::AccountExists { id: B256::ZERO }.abi_encode().into(),
            "AccountExists",
        ),
        (
            Escrow::NotCovered {
                balance: U256::from(3),
                perSecond: U256::from(4),
            }
            .abi_encode()
            .into(),
            "NotCovered(balance 3, perSecond 4)",
        ),
        (
            Token::ERC20InsufficientAllowance {
                spender: EvmAddress::ZERO,
                allowance: U256::from(1),
                needed: U256::from(2),
            }
            .abi_encode()
            .into(),
            "ERC20InsufficientAllowance(allowance 1, needed 2)",
        ),
        (
            Revert::from("paused by its owner").abi_encode().into(),
            "paused by its owner",
        ),
        (Bytes::from_static(&[1, 2, 3, 4, 5]), "error 0x01020304"),
        (Bytes::new(), "no reason given"),
    ];
    for (data, name) in cases {
        let (escrow, asserter) = scripted();
        up_to_simulation(&asserter);
        asserter.push_failure(revert(data));
        assert_eq!(
            escrow.start(&key(), &terms(), 1).await,
            Err(PaymentError::Reverted { error: name.into() })
        );
        assert!(asserter.read_q().is_empty());
    }
}

#[tokio::test]
async fn an_error_of_the_endpoint_is_an_outage_and_contains_no_secrets() {
    let (escrow, asserter) = scripted();
    asserter.push_failure(ErrorPayload {
        code: -32_005,
        message: "rate limit for sesame-open-up exceeded".into(),
        data: None,
    });
    assert_eq!(
        escrow.head().await,
        Err(PaymentError::Unreachable(
            "the RPC endpoint answered: rate limit for … exceeded".into()
        ))
    );
}

#[tokio::test]
async fn insufficient_gas_is_detected_before_and_while_sending() {
    let (escrow, asserter) = scripted();
    up_to_simulation(&asserter);
    let mut queue = asserter.write_q();
    queue.pop_back();
    drop(queue);
    asserter.push_success(&U256::from(1));
    asserter.push_success(&U64::from(50_000));
    let short = PaymentError::InsufficientGas {
        address: terms().payer,
    };
    assert_eq!(escrow.start(&key(), &terms(), 1).await, Err(short.clone()));

    let (escrow, asserter) = scripted();
    up_to_simulation(&asserter);
    asserter.push_success(&U64::from(50_000));
    asserter.push_failure_msg("insufficient funds for gas * price + value");
    assert_eq!(escrow.start(&key(), &terms(), 1).await, Err(short));
}

/// The answers up to the simulation of an endpoint that reports this base fee and tip, and as many native tokens as it
/// takes.
fn up_to_simulation_at(asserter: &Asserter, base: u128, tip: u128) {
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(9));
    asserter.push_success(&U64::from(0));
    asserter.push_success(&U64::from(0));
    let (base, tip) = (format!("{base:#x}"), format!("{tip:#x}"));
    asserter.push_success(&serde_json::json!({
        "oldestBlock": "0x8", "baseFeePerGas": [base, base], "gasUsedRatio": [0.5], "reward": [[tip]]
    }));
    asserter.push_success(&U256::MAX);
}

fn exceeded(result: Result<Receipt, PaymentError>) -> (SpendLimit, u128) {
    match result {
        Err(PaymentError::LimitExceeded { error, .. }) => (error.limit, error.wanted),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_absurd_fee_or_gas_estimate_is_not_signed() {
    const GWEI: u128 = 1_000_000_000;
    for (base, tip) in [(7, 1_000 * GWEI), (201 * GWEI, 1), (u128::MAX, u128::MAX)] {
        let (escrow, asserter) = scripted();
        up_to_simulation_at(&asserter, base, tip);
        let (limit, wanted) = exceeded(escrow.start(&key(), &terms(), 1).await);
        assert_eq!(limit, SpendLimit::FeePerGas);
        assert!(wanted > 200 * GWEI);
        assert!(asserter.read_q().is_empty(), "nothing more is asked");
    }
    for gas in [3_000_000, 1 << 40, u64::MAX] {
        let (escrow, asserter) = scripted();
        up_to_simulation_at(&asserter, 7, 1);
        asserter.push_success(&U64::from(gas));
        let (limit, wanted) = exceeded(escrow.start(&key(), &terms(), 1).await);
        assert_eq!(limit, SpendLimit::Gas);
        assert!(wanted >= gas.into());
    }
    // 2,620,000 gas at 200 gwei are 0.524 native tokens.
    let limits = Limits {
        day_wei: 500_000_000 * GWEI,
        ..Limits::default()
    };
    let (escrow, asserter) = scripted_with(limits);
    up_to_simulation_at(&asserter, 100 * GWEI, 100 * GWEI);
    asserter.push_success(&U64::from(2_000_000));
    let error = escrow.start(&key(), &terms(), 1).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} sends nothing: with it, its transactions of 24 hours could cost 0.524 native tokens, and \
             limits.nativePerDay of the PaymentNetwork permits 0.5; check what the RPC endpoint reports, and raise the \
             limit if it is right",
            terms().payer
        )
    );
    assert!(asserter.read_q().is_empty(), "nothing is sent");
}

#[tokio::test]
async fn an_answer_that_is_not_a_snapshot_is_malformed() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(1));
    asserter.push_success(&Bytes::from_static(&[1; 31]));
    assert!(matches!(
        escrow.account(&terms(), BlockLevel::Latest).await,
        Err(PaymentError::Malformed(_))
    ));
}

/// Terms of the payer's `n`th lease.
fn terms_of(n: u8) -> Terms {
    Terms {
        salt: Hash([n; 32]),
        ..terms()
    }
}

fn row(exists: bool) -> Escrow::Snapshot {
    Escrow::Snapshot {
        exists,
        matches: false,
        closed: false,
        blockTime: to_u40(1_002),
        paidUntil: to_u40(0),
        exhaustedAt: to_u40(0),
        deposited: 0,
        balanceScaled: U256::ZERO,
        paidSeconds: to_u40(0),
        running: 0,
        ended: 0,
        phase: 0,
        legs: Vec::new(),
    }
}

async fn read_once(escrow: &EvmEscrow, terms: &Terms) -> Result<AccountRead, PaymentError> {
    let answer = escrow.account(terms, BlockLevel::Latest).await;
    answer.map(|at| at.read)
}

async fn three_ask_at_once(escrow: &EvmEscrow) -> [Result<AccountRead, PaymentError>; 3] {
    let (one, two, three) = (terms_of(1), terms_of(2), terms_of(3));
    tokio::join!(
        read_once(escrow, &one),
        read_once(escrow, &two),
        read_once(escrow, &three),
    )
    .into()
}

#[tokio::test]
async fn concurrent_reads_share_one_call() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(1));
    let rows = vec![row(false), row(true), row(false)];
    asserter.push_success(&Bytes::from(Escrow::snapshotsCall::abi_encode_returns(&rows)));
    let [one, two, three] = three_ask_at_once(&escrow).await;
    assert_eq!(
        (one, two, three),
        (
            Ok(AccountRead::Absent),
            Ok(AccountRead::Mismatch),
            Ok(AccountRead::Absent)
        )
    );
    // A later read does not get the earlier answer.
    asserter.push_success(&block(2));
    asserter.push_success(&Bytes::from(Escrow::snapshotCall::abi_encode_returns(&row(true))));
    let later = read_once(&escrow, &terms_of(1)).await;
    assert_eq!(later, Ok(AccountRead::Mismatch));
    assert!(asserter.read_q().is_empty());
}

#[tokio::test]
async fn terms_that_make_a_call_fail_do_not_block_other_reads() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(1));
    // First all three in one call, then the first alone, then the other two. The last one fails alone and is read
    // once more.
    asserter.push_failure(revert(Revert::from("no").abi_encode()));
    asserter.push_success(&Bytes::from(Escrow::snapshotCall::abi_encode_returns(&row(
        false,
    ))));
    asserter.push_failure(revert(Revert::from("no").abi_encode()));
    asserter.push_success(&Bytes::from(Escrow::snapshotCall::abi_encode_returns(&row(
        false,
    ))));
    for _ in 0..2 {
        asserter.push_failure(revert(Revert::from("no").abi_encode()));
    }
    let [one, two, three] = three_ask_at_once(&escrow).await;
    assert_eq!((one, two), (Ok(AccountRead::Absent), Ok(AccountRead::Absent)));
    assert!(matches!(three, Err(PaymentError::Reverted { .. })), "{three:?}");
    assert!(asserter.read_q().is_empty());
}

#[tokio::test]
async fn a_read_that_reverts_is_repeated_once() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(1));
    asserter.push_failure(revert(Panic::from(PanicKind::UnderOverflow).abi_encode()));
    asserter.push_success(&Bytes::from(Escrow::snapshotCall::abi_encode_returns(&row(
        false,
    ))));
    let read = read_once(&escrow, &terms_of(1)).await;
    assert_eq!(read, Ok(AccountRead::Absent));
}

/// A node that is stuck at an old block does not have the newest one, and says so; or it ignores which block it is asked for.
#[tokio::test]
async fn a_state_of_another_time_than_that_of_the_block_asked_for_is_no_answer() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(9));
    asserter.push_failure_msg("header not found");
    let absent = read_once(&escrow, &terms_of(1)).await;
    assert!(matches!(absent, Err(PaymentError::Unreachable(_))), "{absent:?}");

    let row_at = |time| Escrow::Snapshot {
        blockTime: to_u40(time),
        ..row(false)
    };
    for (time, is_another) in [
        (1_008, true),
        (1_009, false),
        (1_024, false),
        (1_025, true),
        (1_001_009, true),
    ] {
        asserter.push_success(&block(9));
        let rows = Escrow::snapshotCall::abi_encode_returns(&row_at(time));
        asserter.push_success(&Bytes::from(rows));
        let answer = escrow.account(&terms_of(1), BlockLevel::Latest).await;
        match answer {
            Ok(at) => assert_eq!((at.block.number, is_another), (9, false)),
            Err(error) => assert!(
                is_another && matches!(error, PaymentError::Unreachable(_)),
                "{error:?}"
            ),
        }
    }
    assert!(asserter.read_q().is_empty());
}

#[tokio::test]
async fn an_outage_fails_all_reads_of_a_batch() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(1));
    // The batched call gets no answer. If each read were sent again, this answer would be used.
    asserter.push_failure_msg("too many requests");
    asserter.push_success(&Bytes::from(Escrow::snapshotCall::abi_encode_returns(&row(
        false,
    ))));
    let reads = three_ask_at_once(&escrow).await;
    for read in reads {
        assert!(matches!(read, Err(PaymentError::Unreachable(_))), "{read:?}");
    }
    assert_eq!(asserter.read_q().len(), 1);
}

#[tokio::test]
async fn a_dropped_read_does_not_affect_others() {
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(1));
    // The first caller is dropped before its read is sent.
    let first = tokio::time::timeout(Duration::ZERO, escrow.head()).await;
    assert!(first.is_err());
    assert_eq!(escrow.head().await.unwrap().number, 1);
}

#[tokio::test]
async fn a_reader_far_behind_continues_in_bounded_steps() {
    let (escrow, asserter) = scripted();
    let cursor = Cursor {
        number: 10,
        hash: Hash(block(10).header.hash.0),
    };
    asserter.push_success(&U64::from(CHAIN));
    asserter.push_success(&block(50_000));
    asserter.push_success(&block(10));
    for window in 1..=16u64 {
        asserter.push_success(&block(10 + window * 2_000));
        asserter.push_success(&Vec::<()>::new());
    }
    let (rows, next) = escrow.opened_since(terms().market, Some(cursor)).await.unwrap();
    assert!(rows.is_empty() && asserter.read_q().is_empty());
    assert_eq!(next.number, 10 + 32_000);
    assert_eq!(next.hash.0, block(next.number).header.hash.0);
}

/// Between two calls the node received the block that closed the account, and answered the first one from it.
#[tokio::test]
async fn a_clock_of_another_state_than_that_of_the_snapshot_is_no_answer() {
    const CLOSED: u8 = 4;
    let (escrow, asserter) = scripted();
    asserter.push_success(&U64::from(CHAIN));
    let snapshot = Escrow::Snapshot {
        matches: true,
        closed: true,
        phase: CLOSED,
        paidSeconds: to_u40(39),
        ..row(true)
    };
    let stored = |phase, settled_at, paid_seconds| Escrow::Account {
        termsHash: B256::repeat_byte(1),
        clock: Escrow::Clock {
            balance: 0,
            settledAt: to_u40(settled_at),
            paidSeconds: to_u40(paid_seconds),
            running: 0,
            ended: 0,
            phase,
        },
    };
    for (row, start) in [(stored(1, 963, 0), None), (stored(CLOSED, 1_002, 39), Some(963))] {
        asserter.push_success(&block(2));
        asserter.push_success(&Bytes::from(Escrow::snapshotCall::abi_encode_returns(&snapshot)));
        asserter.push_success(&Bytes::from(Escrow::rawCall::abi_encode_returns(&vec![row])));
        let answer = read_once(&escrow, &terms_of(1)).await;
        match (answer, start) {
            (Ok(AccountRead::Present(account)), Some(start)) => assert_eq!(account.started_at, start),
            (Err(PaymentError::Unreachable(_)), None) => {}
            (answer, _) => panic!("{answer:?}"),
        }
    }
    assert!(asserter.read_q().is_empty());
}
