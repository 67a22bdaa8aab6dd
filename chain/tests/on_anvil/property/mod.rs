//! The machine is the contract: random scripts of actions, waits and reorganisations run against both, by the same
//! port, and everything that a caller can see is compared after each step.

use std::{cell::RefCell, collections::BTreeMap};

use leasehold_chain::{EvmEscrow, MemoryEscrow};
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::{
    escrow::{AccountRead, Address, Hash, Leg, Terms},
    ports::{BlockLevel, Opened, PaymentError, Payments, SigningKey},
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{FileFailurePersistence, TestCaseError, TestRunner},
};

use crate::anvil::{Anvil, address, key};

/// Scripts in a plain run; PROPTEST_CASES asks for more.
const CASES: u32 = 24;
const KEYS: usize = 5;
const COLD: [u8; 3] = [0xa1, 0xa2, 0xa3];
const ACCOUNTS: usize = 2;
const TOKENS_EACH: u128 = 1_000_000;

#[derive(Clone, Debug)]
struct Script {
    accounts: [Draft; ACCOUNTS],
    steps: Vec<Step>,
}

/// Terms, with times counted from the start of the script.
#[derive(Clone, Debug)]
struct Draft {
    payer: usize,
    closer: usize,
    start_by: u64,
    notice_seconds: u32,
    pause_for: u32,
    /// Payee, controller, rate.
    legs: Vec<(usize, usize, u128)>,
}

#[derive(Clone, Debug)]
enum Step {
    Act {
        account: usize,
        what: What,
        who: Who,
        /// Seconds until the block that it is mined in.
        delay: u64,
    },
    Wait(u64),
    /// Until just before, at, or just after a second that matters to an account.
    WaitFor {
        account: usize,
        limit: Limit,
        offset: u64,
    },
    Mark,
    Rewind,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    /// The last second that is paid.
    PaidUntil,
    /// After it anybody may close.
    Abandoned,
    StartBy,
}

/// Who calls: mostly who may.
#[derive(Clone, Copy, Debug)]
enum Who {
    Entitled,
    /// Neither payer nor closer.
    Stranger,
    Key(usize),
}

#[derive(Clone, Debug)]
enum What {
    Open {
        deposit: u128,
        valid_for: u64,
    },
    OpenWrongly(u8),
    FundTo(u128),
    Start(u16),
    Pause(u16),
    Credit(u8, u64),
    EndLeg(u16),
    Settle(u16),
    SettleBoth(u16, u16),
    Close(u16),
    /// Starts an account of other terms under the same id.
    Differ,
}

fn draft() -> impl Strategy<Value = Draft> {
    let rate = prop_oneof![
        3 => 1u128..=3_000_000_000_000_000,
        1 => Just(1_000_000_000_000_000),
        1 => 1u128..=2_000_000_000_000,
    ];
    let leg = (0..COLD.len(), 0..KEYS, rate);
    (
        0..KEYS,
        0..KEYS,
        prop_oneof![3u64..30, 20u64..400],
        0u32..40,
        0u32..60,
        vec(leg, 1..=4),
    )
        .prop_map(
            |(payer, closer, start_by, notice_seconds, pause_for, legs)| Draft {
                payer,
                closer,
                start_by,
                notice_seconds,
                pause_for,
                legs,
            },
        )
}

fn what() -> impl Strategy<Value = What> {
    let legs = || prop_oneof![4 => Just(0xffffu16), 4 => 1u16..16, 1 => 0u16..64];
    let amount = || prop_oneof![6 => 0u128..400_000, 1 => 0u128..2 * TOKENS_EACH, 1 => Just(u128::MAX)];
    prop_oneof![
        2 => (amount(), 0u64..200).prop_map(|(deposit, valid_for)| What::Open { deposit, valid_for }),
        1 => (0u8..4).prop_map(What::OpenWrongly),
        3 => amount().prop_map(What::FundTo),
        6 => legs().prop_map(What::Start),
        3 => legs().prop_map(What::Pause),
        3 => (0u8..5, 0u64..40).prop_map(|(leg, seconds)| What::Credit(leg, seconds)),
        1 => legs().prop_map(What::EndLeg),
        3 => legs().prop_map(What::Settle),
        1 => (legs(), legs()).prop_map(|(one, other)| What::SettleBoth(one, other)),
        1 => legs().prop_map(What::Close),
        1 => Just(What::Differ),
    ]
}

/// A stranger tries to close around the second from which he may: of an account that nobody started, or that is spent.
fn abandoned(account: usize, limit: Limit) -> impl Strategy<Value = Vec<Step>> {
    (0u64..3).prop_map(move |offset| {
        let wait = |limit, offset| Step::WaitFor {
            account,
            limit,
            offset,
        };
        let close = Step::Act {
            account,
            what: What::Close(0xffff),
            who: Who::Stranger,
            delay: 1,
        };
        match limit {
            Limit::StartBy => vec![wait(limit, offset), close],
            Limit::PaidUntil | Limit::Abandoned => {
                vec![wait(Limit::PaidUntil, 2), wait(limit, offset), close]
            }
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let limit =
        prop_oneof![3 => Just(Limit::PaidUntil), 2 => Just(Limit::Abandoned), 1 => Just(Limit::StartBy)];
    let who = prop_oneof![6 => Just(Who::Entitled), 1 => (0..KEYS).prop_map(Who::Key)];
    prop_oneof![
        12 => (0..ACCOUNTS, what(), who, 1u64..15).prop_map(|(account, what, who, delay)| Step::Act {
            account,
            what,
            who,
            delay,
        }),
        1 => (1u64..120).prop_map(Step::Wait),
        2 => (0..ACCOUNTS, limit, 0u64..3).prop_map(|(account, limit, offset)| Step::WaitFor {
            account,
            limit,
            offset,
        }),
        1 => Just(Step::Mark),
        1 => Just(Step::Rewind),
    ]
}

/// Both accounts are opened first, or a script would mostly be refusals.
fn script() -> impl Strategy<Value = Script> {
    let opening = |account| {
        (50_000u128..400_000).prop_map(move |deposit| Step::Act {
            account,
            what: What::Open {
                deposit,
                valid_for: 1_000,
            },
            who: Who::Entitled,
            delay: 1,
        })
    };
    let steps = prop_oneof![
        14 => step().prop_map(|step| vec![step]),
        1 => (0..ACCOUNTS).prop_flat_map(|account| abandoned(account, Limit::Abandoned)),
    ];
    let unstarted = prop_oneof![3 => Just(Vec::new()), 1 => abandoned(0, Limit::StartBy)];
    let steps = (opening(0), opening(1), unstarted, vec(steps, 10..30));
    ([draft(), draft()], steps).prop_map(|(accounts, (one, two, unstarted, rest))| Script {
        accounts,
        steps: [vec![one, two], unstarted, rest.concat()].concat(),
    })
}

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

/// Both sides, and what the script has come to.
struct Stage<'a> {
    anvil: &'a Anvil,
    chain: EvmEscrow,
    memory: MemoryEscrow,
    terms: [Terms; ACCOUNTS],
    drafts: [Draft; ACCOUNTS],
    clock: u64,
    mark: Option<(serde_json::Value, leasehold_chain::memory::Mark)>,
    outcomes: &'a RefCell<BTreeMap<String, u32>>,
}

impl Stage<'_> {
    async fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Act {
                account,
                what,
                who,
                delay,
            } => {
                self.clock += delay;
                self.anvil.set_next_time(self.clock).await;
                self.memory.set_next_block_time(self.clock);
                let key = &keys()[self.caller(*account, what, *who)];
                let chain = act(&self.chain, key, &self.terms, *account, what, self.clock).await;
                let memory = act(&self.memory, key, &self.terms, *account, what, self.clock).await;
                let outcome = match &chain {
                    Ok(moved) => format!("mined {moved}"),
                    Err(PaymentError::InsufficientTokens { .. }) => "insufficient tokens".to_owned(),
                    Err(error) => error.to_string().split('(').next().unwrap_or_default().to_owned(),
                };
                *self.outcomes.borrow_mut().entry(outcome).or_default() += 1;
                prop_assert_eq!(chain, memory, "results of {:?}", what);
            }
            Step::Wait(seconds) => self.wait_until(self.clock + seconds).await,
            Step::WaitFor {
                account,
                limit,
                offset,
            } => {
                let terms = &self.terms[*account];
                let read = self.memory.account(terms, BlockLevel::Latest).await.unwrap();
                let at = match limit {
                    Limit::PaidUntil => read.present().map(|account| account.paid_until),
                    Limit::Abandoned => read
                        .present()
                        .map(|account| account.exhausted_at + u64::from(terms.pause_for)),
                    Limit::StartBy => Some(terms.start_by),
                };
                let time = (at.unwrap_or_default() + offset).saturating_sub(1);
                // Not so far that nothing can happen afterwards.
                if (self.clock + 1..self.clock + 10_000).contains(&time) {
                    self.wait_until(time).await;
                }
            }
            Step::Mark => {
                let snapshot = self.anvil.request("evm_snapshot", ()).await;
                self.mark = Some((snapshot, self.memory.mark()));
            }
            Step::Rewind => {
                if let Some((snapshot, mark)) = self.mark.take() {
                    let reverted: bool = self.anvil.request("evm_revert", (snapshot,)).await;
                    prop_assert!(reverted && self.memory.rewind(mark));
                }
            }
        }
        self.compare().await
    }

    async fn wait_until(&mut self, time: u64) {
        self.clock = time;
        self.anvil.set_next_time(time).await;
        self.anvil.mine().await;
        self.memory.set_time(time);
    }

    /// The key that may do it, where one may.
    fn caller(&self, account: usize, what: &What, who: Who) -> usize {
        let draft = &self.drafts[account];
        let controller = |leg: usize| {
            draft
                .legs
                .get(leg)
                .map_or(draft.closer, |(_, controller, _)| *controller)
        };
        match (who, what) {
            (Who::Key(key), _) => key,
            (Who::Stranger, _) => (0..KEYS)
                .find(|key| *key != draft.payer && *key != draft.closer)
                .unwrap_or_default(),
            (Who::Entitled, What::Open { .. } | What::OpenWrongly(_) | What::FundTo(_)) => draft.payer,
            (Who::Entitled, What::Close(legs)) if legs % 2 == 0 => draft.payer,
            (Who::Entitled, What::Close(_)) => draft.closer,
            (Who::Entitled, What::Credit(leg, _)) => controller((*leg).into()),
            (Who::Entitled, What::Differ) => controller(0),
            (
                Who::Entitled,
                What::Start(legs)
                | What::Pause(legs)
                | What::EndLeg(legs)
                | What::Settle(legs)
                | What::SettleBoth(legs, _),
            ) => controller(usize::try_from(legs.trailing_zeros()).unwrap()),
        }
    }

    async fn compare(&self) -> Result<(), TestCaseError> {
        let chain = self.chain.accounts(&self.terms).await;
        let memory = self.memory.accounts(&self.terms).await;
        prop_assert_eq!(chain, memory, "accounts");
        let cold = COLD.map(|byte| Address([byte; 20]));
        for owner in keys().iter().map(address).chain(cold) {
            let chain = self.chain.balances(owner).await.unwrap().token;
            let memory = self.memory.balances(owner).await.unwrap().token;
            prop_assert_eq!(chain, memory, "tokens of {}", owner);
        }
        let held = self.chain.balances(self.anvil.deployed.escrow).await.unwrap().token;
        prop_assert_eq!(held, self.memory.held(), "tokens of the escrow");
        Ok(())
    }

    /// What a reader finds who has lost everything.
    async fn compare_events(&self) -> Result<(), TestCaseError> {
        let seen =
            |rows: Vec<Opened>| -> Vec<_> { rows.into_iter().map(|row| (row.terms, row.deposit)).collect() };
        let market = self.terms[0].market;
        let (chain, _) = self.chain.opened_since(market, None).await.unwrap();
        let (memory, _) = self.memory.opened_since(market, None).await.unwrap();
        prop_assert_eq!(seen(chain), seen(memory), "opened");
        for terms in &self.terms {
            let chain = self.chain.find(terms.id()).await.unwrap();
            let memory = self.memory.find(terms.id()).await.unwrap();
            prop_assert_eq!(
                seen(chain.into_iter().collect()),
                seen(memory.into_iter().collect())
            );
        }
        Ok(())
    }
}

/// Makes a call by the port; whether it moved anything, or why not.
async fn act(
    escrow: &impl Payments,
    key: &SigningKey,
    all: &[Terms; ACCOUNTS],
    account: usize,
    what: &What,
    now: u64,
) -> Result<bool, PaymentError> {
    let terms = &all[account];
    let mine = |legs: u16, terms: &Terms| {
        let own = terms.legs_of(escrow.address_of(key).unwrap());
        let all = (1 << terms.legs.len()) - 1;
        match legs {
            0xffff => own,
            1..16 if legs & all != 0 => legs & all,
            _ => legs,
        }
    };
    let done = match what {
        What::Open { deposit, valid_for } => {
            // A block may be past it that a simulation is not.
            let valid_until = now - 5 + valid_for;
            escrow.open(key, terms, TokenAmount(*deposit), valid_until).await
        }
        What::OpenWrongly(how) => {
            let mut wrong = terms.clone();
            wrong.salt = Hash([0xee; 32]);
            match how {
                0 => wrong.legs.clear(),
                1 => wrong.legs[0].rate = Rate(0),
                2 => wrong.legs[0].payee = Address::default(),
                _ => wrong.legs = vec![wrong.legs[0]; 17],
            }
            escrow.open(key, &wrong, TokenAmount(1), now + 1_000).await
        }
        What::FundTo(total) => {
            return escrow
                .fund_to(key, terms, TokenAmount(*total))
                .await
                .map(|r| r.is_some());
        }
        What::Start(legs) => escrow.start(key, terms, mine(*legs, terms)).await,
        What::Pause(legs) => escrow.pause(key, terms, mine(*legs, terms)).await,
        What::Credit(leg, seconds) => escrow.credit(key, terms, *leg, *seconds).await,
        What::EndLeg(legs) => escrow.end_leg(key, terms, mine(*legs, terms)).await,
        What::Settle(legs) => {
            escrow
                .settle_many(key, &[(terms.clone(), mine(*legs, terms))])
                .await
        }
        What::SettleBoth(one, other) => {
            let rows = [
                (all[0].clone(), mine(*one, &all[0])),
                (all[1].clone(), mine(*other, &all[1])),
            ];
            escrow.settle_many(key, &rows).await
        }
        What::Close(payouts) => {
            let payouts = if *payouts == 0xffff {
                (1 << terms.legs.len()) - 1
            } else {
                *payouts
            };
            escrow.close(key, terms, payouts).await
        }
        What::Differ => {
            let mut other = terms.clone();
            other.pause_for += 1;
            assert_ne!(
                escrow
                    .account(&other, BlockLevel::Latest)
                    .await?
                    .present()
                    .is_some(),
                matches!(
                    escrow.account(&other, BlockLevel::Latest).await?,
                    AccountRead::Absent | AccountRead::Mismatch
                )
            );
            escrow.start(key, &other, 1).await
        }
    };
    done.map(|_| true)
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
fn the_machine_is_the_contract() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let Some(anvil) = runtime.block_on(Anvil::start()) else {
        return;
    };
    runtime.block_on(async {
        for key in keys() {
            anvil.set_gas(address(&key), 10u128.pow(20)).await;
            anvil.mint(address(&key), TOKENS_EACH).await;
        }
    });
    let mut config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/on_anvil/property.regressions"
        )))),
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
