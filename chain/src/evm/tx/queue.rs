//! What is under way for each signer: its transactions that were sent and are not known to be mined.
//!
//! It is a memory of this process only. A second operator may use the same key: what counts is what the chain says.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256};
use leasehold_planner::escrow::{Address, Hash};
use tokio::time::Instant;

/// Signers kept at most, beyond those with something under way.
const SIGNERS_MAX: usize = 1024;

/// What a transaction bids for its place in a block, in wei per gas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fees {
    pub(crate) max: u128,
    pub(crate) tip: u128,
}

impl Fees {
    /// A quarter more: nodes ask for 10 to 12.5 % of a replacement.
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

/// One transaction, in all the forms that were sent of it; at most one of them is ever mined.
#[derive(Clone, Debug)]
pub(crate) struct PendingTx {
    pub(crate) nonce: u64,
    pub(crate) action: &'static str,
    pub(crate) account: Hash,
    /// What the caller wanted: two sends of the same wish are one transaction.
    pub(crate) request_hash: B256,
    pub(crate) to: EvmAddress,
    pub(crate) input: Bytes,
    pub(crate) gas_limit: u64,
    /// Base units of the token that it takes from the signer.
    pub(crate) pulls: u128,
    /// Nonce of the permit that it carries.
    pub(crate) permit: Option<U256>,
    pub(crate) fees: Fees,
    /// Hash and bytes of each form, the newest last.
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

/// Sums over what is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PendingTotals {
    pub(crate) permits: u64,
    pub(crate) pulls: u128,
}

/// One signer.
#[derive(Default)]
pub(crate) struct Queue {
    /// Held from the choice of a nonce until the transaction is sent.
    pub(crate) send_lock: tokio::sync::Mutex<()>,
    /// Held over approve and pull, for a token without permits: the allowance is one number.
    pub(crate) allowance_lock: tokio::sync::Mutex<()>,
    pending: Mutex<BTreeMap<u64, PendingTx>>,
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
        self.pending().values().find(|f| f.request_hash == request_hash).cloned()
    }

    pub(crate) fn remove(&self, nonce: u64) {
        self.pending().remove(&nonce);
    }

    /// Forgets what the chain has: `mined` is the signer's number of mined transactions.
    pub(crate) fn forget_below(&self, mined: u64) {
        let mut pending = self.pending();
        *pending = pending.split_off(&mined);
    }

    pub(crate) fn pending_totals(&self) -> PendingTotals {
        let pending = self.pending();
        pending
            .values()
            .fold(PendingTotals::default(), |sum, tx| PendingTotals {
                permits: sum.permits + u64::from(tx.permit.is_some()),
                pulls: sum.pulls.saturating_add(tx.pulls),
            })
    }

    /// The first nonce from there on that nothing under way has: the chain may know less than we sent, and what it
    /// has lost leaves a gap.
    pub(crate) fn free_nonce(&self, from: u64) -> u64 {
        let pending = self.pending();
        let taken = pending
            .range(from..)
            .zip(from..)
            .take_while(|((nonce, _), next)| *nonce == next);
        from + taken.count() as u64
    }

    fn is_idle(&self) -> bool {
        self.pending().is_empty()
    }
}

/// All signers of this process.
#[derive(Default)]
pub(crate) struct Queues(Mutex<HashMap<Address, Arc<Queue>>>);

impl Queues {
    pub(crate) fn of(&self, signer: Address) -> Arc<Queue> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if queues.len() >= SIGNERS_MAX && !queues.contains_key(&signer) {
            queues.retain(|_, queue| Arc::strong_count(queue) > 1 || !queue.is_idle());
        }
        Arc::clone(queues.entry(signer).or_default())
    }
}
