//! The endpoint of the chain in memory: it simulates a call, checks the caller's balances, and mines the call.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountRead, Address, Hash, Terms, keccak},
    ports::{PaymentError, Receipt},
};

use super::{
    Fault,
    blocks::{Block, Blocks},
};
use crate::machine::{Action, Refusal};

/// Gas used by every call, at 1 gwei.
const GAS_PER_CALL: u64 = 100_000;
const GAS_WEI_PER_CALL: u128 = GAS_PER_CALL as u128 * 1_000_000_000;

pub(super) struct State {
    pub(super) chain_id: u64,
    pub(super) escrow: Address,
    pub(super) token: Address,
    pub(super) blocks: Blocks,
    /// Minimum time of the next block.
    pub(super) clock: u64,
    /// Blocks by which `Safe` and `Finalized` are behind.
    pub(super) lags: (u64, u64),
    pub(super) gas: HashMap<Address, u128>,
    pub(super) faults: Faults,
    pub(super) pending: Vec<(Address, Action, Hash)>,
    pub(super) transactions: u64,
    pub(super) call_deadline: Duration,
    pub(super) addresses: HashMap<[u8; 32], Address>,
}

/// Active faults: a permanent one, and one per call.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) standing: Option<Fault>,
    /// One entry per call; `None` lets the call succeed.
    pub(super) next: VecDeque<Option<Fault>>,
}

impl State {
    pub(super) fn mine(&mut self, change: impl FnOnce(&mut Block, &mut HashMap<Address, u128>)) {
        let mut block = self.blocks.next(self.clock);
        self.clock = block.head.time;
        change(&mut block, &mut self.gas);
        self.blocks.push(block);
    }

    /// Simulates at the newest block, as a client does, and then mines a block with the call.
    pub(super) fn send(
        &mut self,
        caller: Address,
        action: Action,
        pend: bool,
    ) -> Result<Receipt, PaymentError> {
        let newest = self.blocks.newest();
        newest
            .machine
            .clone()
            .apply(caller, &action, newest.head.time)
            .map_err(|refusal| self.refused(caller, &action, refusal))?;
        if self.gas_of(caller) < GAS_WEI_PER_CALL {
            return Err(PaymentError::InsufficientGas { address: caller });
        }
        self.transactions += 1;
        let transaction = keccak(&[b"transaction", &self.transactions.to_be_bytes()]);
        let left = self.gas_of(caller) - GAS_WEI_PER_CALL;
        self.gas.insert(caller, left);
        if pend {
            self.pending.push((caller, action, transaction));
            return Err(PaymentError::Pending { transaction });
        }
        let mut outcome = Ok(());
        self.mine(|block, _| outcome = block.run(caller, &action));
        outcome.map_err(|refusal| PaymentError::Reverted {
            error: refusal.to_string(),
        })?;
        Ok(Receipt {
            transaction,
            gas_used: GAS_PER_CALL,
            block_number: self.blocks.newest().head.number,
        })
    }

    /// The client's error for a refusal. The client checks the caller's balances before it sends.
    fn refused(&self, caller: Address, action: &Action, refusal: Refusal) -> PaymentError {
        let amount = match action {
            Action::Open { deposit, .. } => Some(*deposit),
            Action::FundTo { terms, total } => Some(self.missing(terms, *total)),
            Action::Start { .. }
            | Action::Pause { .. }
            | Action::CreditTo { .. }
            | Action::EndLeg { .. }
            | Action::SettleMany { .. }
            | Action::Close { .. }
            | Action::WithdrawCredit { .. } => None,
        };
        let newest = self.blocks.newest();
        let have = newest.machine.balance(self.token, caller);
        if let Some(need) = amount.filter(|need| *need > have) {
            let mut dry = action.clone();
            if let Action::Open { deposit, .. } | Action::FundTo { total: deposit, .. } = &mut dry {
                *deposit = TokenAmount(0);
            }
            return match newest.machine.clone().apply(caller, &dry, newest.head.time) {
                Err(refusal) => PaymentError::Reverted {
                    error: refusal.to_string(),
                },
                Ok(_) => PaymentError::InsufficientTokens {
                    address: caller,
                    need,
                    have,
                },
            };
        }
        PaymentError::Reverted {
            error: refusal.to_string(),
        }
    }

    fn missing(&self, terms: &Terms, total: TokenAmount) -> TokenAmount {
        let newest = self.blocks.newest();
        let deposited = match newest.machine.read(terms, newest.head.time) {
            AccountRead::Present(account) if !account.closed => account.deposited.0,
            AccountRead::Present(_) | AccountRead::Absent | AccountRead::Mismatch => 0,
        };
        TokenAmount(total.0.saturating_sub(deposited))
    }

    pub(super) fn gas_of(&self, owner: Address) -> u128 {
        self.gas.get(&owner).copied().unwrap_or(1_000_000_000_000_000_000)
    }
}
