//! Runs a script against the contract on anvil and against the machine in memory, and compares them after each step.

use std::{cell::RefCell, collections::BTreeMap};

use leasehold_chain::{EvmEscrow, MemoryEscrow};
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::{
    escrow::{AccountAt, AccountRead, Address, Hash, Terms},
    ports::{BlockLevel, Opened, PaymentError, Payments, Receipt, SigningKey},
};
use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    ACCOUNTS, COLD, KEYS, keys,
    script::{Draft, Limit, Step, What, Who},
};
use crate::anvil::{Anvil, address};

/// Both implementations, and the state of the script.
pub(super) struct Stage<'a> {
    pub(super) anvil: &'a Anvil,
    pub(super) chain: EvmEscrow,
    pub(super) memory: MemoryEscrow,
    pub(super) terms: [Terms; ACCOUNTS],
    pub(super) drafts: [Draft; ACCOUNTS],
    pub(super) clock: u64,
    pub(super) mark: Option<(serde_json::Value, leasehold_chain::memory::Mark)>,
    pub(super) outcomes: &'a RefCell<BTreeMap<String, u32>>,
}

impl Stage<'_> {
    pub(super) async fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
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
                // Skip times that are so late that every account has ended.
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

    /// The key that is authorised for the action, if there is one.
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
            (Who::ThirdParty, _) => (0..KEYS)
                .find(|key| *key != draft.payer && *key != draft.closer)
                .unwrap_or_default(),
            (Who::Entitled, What::Open { .. } | What::OpenWrongly(_) | What::FundTo(_)) => draft.payer,
            (Who::Entitled, What::Close(legs)) if legs % 2 == 0 => draft.payer,
            (Who::Entitled, What::Close(_)) => draft.closer,
            (Who::Entitled, What::CreditTo(leg, _)) => controller((*leg).into()),
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
        let reads = |answer: Result<Vec<AccountAt>, PaymentError>| {
            answer.map(|rows| {
                rows.into_iter()
                    .map(|at| (at.block.time, at.read))
                    .collect::<Vec<_>>()
            })
        };
        let chain = self.chain.accounts(&self.terms, BlockLevel::Latest).await;
        let memory = self.memory.accounts(&self.terms, BlockLevel::Latest).await;
        prop_assert_eq!(reads(chain), reads(memory), "accounts");
        let cold = COLD.map(|byte| Address([byte; 20]));
        for owner in keys().iter().map(address).chain(cold) {
            let chain = self.chain.balances(owner).await.unwrap().token;
            let memory = self.memory.balances(owner).await.unwrap().token;
            prop_assert_eq!(chain, memory, "tokens of {}", owner);
        }
        let held = self
            .chain
            .balances(self.anvil.deployed.escrow)
            .await
            .unwrap()
            .token;
        prop_assert_eq!(held, self.memory.held(), "tokens of the escrow");
        Ok(())
    }

    /// Compares what a reader without stored state finds from events.
    pub(super) async fn compare_events(&self) -> Result<(), TestCaseError> {
        let seen =
            |rows: Vec<Opened>| -> Vec<_> { rows.into_iter().map(|row| (row.terms, row.deposit)).collect() };
        let market = self.terms[0].market;
        let (chain, _) = self.chain.opened_since(market, None).await.unwrap();
        let (memory, _) = self.memory.opened_since(market, None).await.unwrap();
        prop_assert_eq!(seen(chain), seen(memory), "opened");
        for terms in &self.terms {
            let (_, chain) = self.chain.find(terms.id()).await.unwrap();
            let (_, memory) = self.memory.find(terms.id()).await.unwrap();
            prop_assert_eq!(
                seen(chain.into_iter().collect()),
                seen(memory.into_iter().collect())
            );
        }
        Ok(())
    }
}

/// Makes a call through the port. Returns whether anything was moved, or the error.
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
            // The block can be later than that time although the simulation is not.
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
        What::CreditTo(leg, total) => escrow.credit_to(key, terms, *leg, *total).await,
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
        What::Differ => start_with_other_terms(escrow, key, terms).await,
    };
    done.map(|_| true)
}

/// Starts a leg with terms that differ from those of the account. Such an account never reads as present.
async fn start_with_other_terms(
    escrow: &impl Payments,
    key: &SigningKey,
    terms: &Terms,
) -> Result<Receipt, PaymentError> {
    let mut other = terms.clone();
    other.pause_for += 1;
    assert_ne!(
        escrow
            .account(&other, BlockLevel::Latest)
            .await?
            .present()
            .is_some(),
        matches!(
            escrow.account(&other, BlockLevel::Latest).await?.read,
            AccountRead::Absent | AccountRead::Mismatch
        )
    );
    escrow.start(key, &other, 1).await
}
