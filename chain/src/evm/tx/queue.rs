//! The pending transactions of each signer: sent, and not known to be mined.
//!
//! They are known to this process only. A second operator may use the same key, so decisions follow the chain. A key has
//! one sequence of nonces per chain, so its queue is shared by all networks of a chain.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256};
use leasehold_planner::{
    escrow::{Address, Hash},
    ports::SpendLimitError,
};
use tokio::time::Instant;

use super::limits::{Budget, Limits};

/// Maximum number of signers kept, not counting those with pending transactions or with transactions that count against
/// the limit per day.
const SIGNERS_MAX: usize = 1024;

/// Fees that a transaction offers, in wei per gas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fees {
    pub(crate) max: u128,
    pub(crate) tip: u128,
}

impl Fees {
    /// Raises both fees by a quarter. Nodes require 10 to 12.5 % more for a replacement.
    pub(crate) fn raised(self) -> Self {
        let raise = |wei: u128| wei.saturating_add(wei / 4).saturating_add(1);
        Self {
            max: raise(self.max),
            tip: raise(self.tip),
        }
    }

    pub(crate) fn at_least(self, other: Self) -> Self {
        Self {
            max: self.max.max(other.max),
            tip: self.tip.max(other.tip),
        }
    }
}

/// One transaction with all attempts to send it. At most one attempt is ever mined.
#[derive(Clone, Debug)]
pub(crate) struct PendingTx {
    pub(crate) nonce: u64,
    pub(crate) action: &'static str,
    pub(crate) account: Hash,
    /// Identifies the caller's request: two requests with the same hash share one transaction.
    pub(crate) request_hash: B256,
    pub(crate) to: EvmAddress,
    pub(crate) input: Bytes,
    pub(crate) gas_limit: u64,
    /// The token that it transfers from the signer, and how many base units.
    pub(crate) pulls: Option<(EvmAddress, u128)>,
    /// Nonce of the permit in its input.
    pub(crate) permit: Option<U256>,
    pub(crate) fees: Fees,
    /// Hash and signed bytes of each attempt, the newest last.
    pub(crate) attempts: Vec<(B256, Bytes)>,
    pub(crate) sent_at: Instant,
    /// Newest block when it was last sent.
    pub(crate) sent_after: u64,
}

impl PendingTx {
    pub(crate) fn newest_hash(&self) -> B256 {
        self.attempts.last().map_or(B256::ZERO, |(hash, _)| *hash)
    }
}

/// Sums over the pending transactions of a signer that transfer the same token.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PendingTotals {
    pub(crate) permits: u64,
    pub(crate) pulls: u128,
}

/// The queue of one signer.
#[derive(Default)]
pub(crate) struct Queue {
    /// Held from the choice of a nonce until the transaction is sent.
    pub(crate) send_lock: tokio::sync::Mutex<()>,
    /// Held during approve and payment for a token without permits, as a signer has one allowance for the escrow.
    pub(crate) allowance_lock: tokio::sync::Mutex<()>,
    pending: Mutex<BTreeMap<u64, PendingTx>>,
    budget: Mutex<Budget>,
}

impl Queue {
    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, PendingTx>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, tx: PendingTx) {
        self.pending().insert(tx.nonce, tx);
    }

    pub(crate) fn get(&self, nonce: u64) -> Option<PendingTx> {
        self.pending().get(&nonce).cloned()
    }

    pub(crate) fn with_request_hash(&self, request_hash: B256) -> Option<PendingTx> {
        self.pending()
            .values()
            .find(|f| f.request_hash == request_hash)
            .cloned()
    }

    pub(crate) fn remove(&self, nonce: u64) {
        self.pending().remove(&nonce);
    }

    /// Forgets transactions with nonces below `mined`, the signer's number of mined transactions.
    pub(crate) fn forget_below(&self, mined: u64) {
        let mut pending = self.pending();
        *pending = pending.split_off(&mined);
    }

    pub(crate) fn pending_totals(&self, token: EvmAddress) -> PendingTotals {
        let pending = self.pending();
        let pulls = pending.values().filter_map(|tx| Some((tx, tx.pulls?)));
        pulls
            .filter(|(_, (of, _))| *of == token)
            .fold(PendingTotals::default(), |sum, (tx, (_, amount))| PendingTotals {
                permits: sum.permits + u64::from(tx.permit.is_some()),
                pulls: sum.pulls.saturating_add(amount),
            })
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a transaction that is about to be signed. If it exceeds a ceiling, it fails, and must not be signed.
    pub(crate) fn charge(&self, limits: &Limits, tx: &PendingTx) -> Result<(), SpendLimitError> {
        self.budget()
            .charge(limits, tx.nonce, tx.gas_limit, tx.fees, Instant::now())
    }

    /// Returns the first nonce from `from` on that no pending transaction has. The endpoint may not yet know
    /// everything that was sent, and a lost transaction leaves a gap.
    pub(crate) fn free_nonce(&self, from: u64) -> u64 {
        let pending = self.pending();
        let taken = pending
            .range(from..)
            .zip(from..)
            .take_while(|((nonce, _), next)| *nonce == next);
        from + taken.count() as u64
    }

    /// Whether nothing is lost if it is forgotten.
    fn is_idle(&self) -> bool {
        self.pending().is_empty() && self.budget().is_unused(Instant::now())
    }
}

/// The queues of all signers of this process, by chain and address. Clones share them: two networks of the same chain
/// must have clones of one value, because a key's nonces are the chain's.
#[derive(Clone, Default)]
pub struct Queues(Arc<Mutex<QueueOfKey>>);

type QueueOfKey = HashMap<(u64, Address), Arc<Queue>>;

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queues(…)")
    }
}

impl Queues {
    pub(crate) fn of(&self, chain_id: u64, signer: Address) -> Arc<Queue> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (chain_id, signer);
        if queues.len() >= SIGNERS_MAX && !queues.contains_key(&key) {
            queues.retain(|_, queue| Arc::strong_count(queue) > 1 || !queue.is_idle());
        }
        Arc::clone(queues.entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_queue_per_chain() {
        let (queues, key) = (Queues::default(), Address([1; 20]));
        let queue = queues.of(1, key);
        assert!(Arc::ptr_eq(&queue, &queues.clone().of(1, key)));
        assert!(!Arc::ptr_eq(&queue, &queues.of(2, key)));
        assert!(!Arc::ptr_eq(&queue, &queues.of(1, Address([2; 20]))));
    }

    #[test]
    fn what_a_key_has_spent_counts_however_many_keys_there_are() {
        let (queues, spender) = (Queues::default(), Address([1; 20]));
        let (fees, gas) = (Fees { max: 1, tip: 1 }, 21_000);
        queues
            .of(1, spender)
            .budget()
            .charge(&Limits::default(), 0, gas, fees, Instant::now())
            .unwrap();
        for chain_id in 2..=SIGNERS_MAX as u64 + 1 {
            queues.of(chain_id, spender);
        }
        assert!(!queues.of(1, spender).is_idle());
        let kept = queues.0.lock().unwrap().len();
        assert!(kept < SIGNERS_MAX, "idle queues are forgotten");
    }
}
