//! Accounts this market opened, by salt, read off the chain's events: how a lease whose status was lost finds its
//! account again, and how an account whose lease is gone is found at all.

use std::{collections::HashMap, sync::Arc};

use leasehold_chain::EvmEscrow;
use leasehold_planner::{
    escrow::{Address, Hash, Terms, salt},
    market::lease::{ROUNDS_MAX, RecoveredAccount},
    orphans::Claims,
    ports::{Cursor, PaymentError, Payments as _},
};
use tokio::sync::Mutex;

/// At most this many calls for events in one read; the next read continues where it ended.
const CALLS_MAX: usize = 20;

#[derive(Default)]
struct Read {
    cursor: Option<Cursor>,
    by_salt: HashMap<Hash, Terms>,
}

impl Read {
    /// Reads on to the newest block.
    async fn read_on(&mut self, chain: &EvmEscrow, market: Address) -> Result<(), PaymentError> {
        let head = chain.head().await?;
        let mut calls = 0;
        while self.cursor.is_none_or(|c| c.number < head.number) {
            if calls == CALLS_MAX {
                let behind = head.number - self.cursor.map_or(0, |c| c.number);
                return Err(PaymentError::Unreachable(format!(
                    "this market's accounts are still being read off the chain, {behind} blocks to go"
                )));
            }
            let (opened, cursor) = chain.opened_since(market, self.cursor).await?;
            self.cursor = Some(cursor);
            self.by_salt
                .extend(opened.into_iter().map(|o| (o.terms.salt, o.terms)));
            calls += 1;
        }
        Ok(())
    }
}

/// Accounts by PaymentNetwork and salt. What is over and has no lease is forgotten.
#[derive(Clone, Default)]
pub(crate) struct AccountIndex(Arc<Mutex<HashMap<String, Read>>>);

impl AccountIndex {
    /// Reads on, then seeks the newest account of a lease.
    pub(crate) async fn prior(
        &self,
        network: &str,
        chain: &EvmEscrow,
        market: Address,
        uid: &str,
    ) -> Result<Option<RecoveredAccount>, PaymentError> {
        let mut guard = self.0.lock().await;
        let read = guard.entry(network.to_owned()).or_default();
        // An index that lags must not report that there is no account: a second one would be opened.
        read.read_on(chain, market).await?;
        Ok((1..=ROUNDS_MAX).rev().find_map(|round| {
            let terms = read.by_salt.get(&salt(market, uid, round))?;
            Some(RecoveredAccount {
                round,
                terms: terms.clone(),
            })
        }))
    }

    /// Reads on, then gives at most `most` accounts that nobody claims, the same ones first each time.
    pub(crate) async fn unclaimed(
        &self,
        network: &str,
        chain: &EvmEscrow,
        market: Address,
        claims: &Claims,
        most: usize,
    ) -> Result<Vec<Terms>, PaymentError> {
        let mut guard = self.0.lock().await;
        let read = guard.entry(network.to_owned()).or_default();
        read.read_on(chain, market).await?;
        let mut found: Vec<_> = read.by_salt.values().filter(|t| !claims.has(t)).collect();
        found.sort_by_key(|t| t.salt);
        Ok(found.into_iter().take(most).cloned().collect())
    }

    /// Forgets accounts that are over and that nobody claims.
    pub(crate) async fn forget(&self, network: &str, salts: impl IntoIterator<Item = Hash>) {
        let mut guard = self.0.lock().await;
        if let Some(read) = guard.get_mut(network) {
            for salt in salts {
                read.by_salt.remove(&salt);
            }
        }
    }
}
