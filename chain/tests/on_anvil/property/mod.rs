//! The machine behaves like the contract: random scripts of actions, waits and reorganisations run against both through
//! the payment port, and everything that a caller can see is compared after each step.

use std::{cell::RefCell, collections::BTreeMap};

use leasehold_chain::MemoryEscrow;
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::{
    escrow::{Address, Hash, Leg, Terms},
    ports::{Payments, SigningKey},
};
use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, TestCaseError, TestRunner},
};

use crate::anvil::{Anvil, address, key};

mod script;
mod stage;

use script::{Draft, Script, script};
use stage::Stage;

/// Scripts in a normal run; PROPTEST_CASES overrides it.
const CASES: u32 = 24;
const KEYS: usize = 5;
/// Payees that hold nothing at first.
const COLD: [u8; 3] = [0xa1, 0xa2, 0xa3];
const ACCOUNTS: usize = 2;
/// Tokens of each key at first.
const TOKENS_EACH: u128 = 1_000_000;

fn terms(draft: &Draft, number: u8, token: Address, start: u64) -> Terms {
    Terms {
        payer: address(&keys()[draft.payer]),
        market: Address([0x77; 20]),
        token,
        closer: address(&keys()[draft.closer]),
        salt: Hash([number; 32]),
        start_by: start + draft.start_by,
        notice_seconds: draft.notice_seconds,
        pause_for: draft.pause_for,
        legs: draft
            .legs
            .iter()
            .map(|(payee, controller, rate)| Leg {
                payee: Address([COLD[*payee]; 20]),
                controller: address(&keys()[*controller]),
                rate: Rate(*rate),
            })
            .collect(),
    }
}

fn keys() -> [SigningKey; KEYS] {
    std::array::from_fn(|i| key(0x21 + u8::try_from(i).unwrap()))
}

async fn play(
    anvil: &Anvil,
    script: &Script,
    outcomes: &RefCell<BTreeMap<String, u32>>,
) -> Result<(), TestCaseError> {
    let chain = anvil.client();
    let start = chain.head().await.unwrap().time;
    let token = anvil.deployed.token;
    let memory = MemoryEscrow::new(anvil.deployed.chain_id, anvil.deployed.escrow, token, start - 100);
    for key in keys() {
        memory.mint(address(&key), TokenAmount(TOKENS_EACH));
    }
    memory.set_time(start);
    let mut stage = Stage {
        anvil,
        chain,
        memory,
        terms: [0, 1].map(|i| terms(&script.accounts[i], u8::try_from(i).unwrap(), token, start)),
        drafts: script.accounts.clone(),
        clock: start,
        mark: None,
        outcomes,
    };
    for (number, step) in script.steps.iter().enumerate() {
        stage
            .run(step)
            .await
            .map_err(|e| TestCaseError::fail(format!("step {number}, {step:?}: {e}")))?;
    }
    stage.compare_events().await
}

#[test]
fn the_machine_behaves_like_the_contract() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let anvil = runtime.block_on(Anvil::start());
    runtime.block_on(async {
        for key in keys() {
            anvil.set_gas(address(&key), 10u128.pow(20)).await;
            anvil.mint(address(&key), TOKENS_EACH).await;
        }
    });
    // Proptest wants a static text.
    let regressions = leasehold_testtools::root().join("chain/tests/on_anvil/property/regressions");
    let regressions = Box::leak(regressions.display().to_string().into_boxed_str());
    let mut config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let outcomes = RefCell::default();
    let fresh = RefCell::new(runtime.block_on(anvil.request::<_, serde_json::Value>("evm_snapshot", ())));
    let outcome = TestRunner::new(config).run(&script(), |script| {
        let played = runtime.block_on(play(&anvil, &script, &outcomes));
        let reverted: bool = runtime.block_on(anvil.request("evm_revert", (fresh.borrow().clone(),)));
        assert!(reverted);
        *fresh.borrow_mut() = runtime.block_on(anvil.request("evm_snapshot", ()));
        played
    });
    println!("outcomes: {:#?}", outcomes.borrow());
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
