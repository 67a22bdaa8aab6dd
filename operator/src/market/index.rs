//! Accounts this market opened, by salt, read off the chain's events: how a lease whose status was lost finds its
//! account again.

use std::{collections::HashMap, sync::Arc};

use leasehold_chain::EvmEscrow;
use leasehold_planner::{
    escrow::{Address, Hash, Terms, salt},
    lease::Prior,
    ports::{Cursor, PaymentError, Payments as _},
};
use tokio::sync::Mutex;

/// A lease whose status was lost is sought in so many rounds.
const ROUNDS_MAX: u64 = 64;
/// At most so many calls for events in one pass; the next pass reads on.
const CALLS_MAX: usize = 20;

#[derive(Default)]
struct Read {
    cursor: Option<Cursor>,
    by_salt: HashMap<Hash, Terms>,
}

/// Accounts by PaymentNetwork and salt.
#[derive(Clone, Default)]
pub(super) struct AccountIndex(Arc<Mutex<HashMap<String, Read>>>);

impl AccountIndex {
    /// Reads on, then seeks the newest account of a lease.
    pub(super) async fn prior(
        &self,
        network: &str,
        rail: &EvmEscrow,
        market: Address,
        uid: &str,
    ) -> Result<Option<Prior>, PaymentError> {
        let mut guard = self.0.lock().await;
        let read = guard.entry(network.to_owned()).or_default();
        // An index that lags can't say that there is no account: on that word a second one would be opened.
        let head = rail.head().await?;
        let mut calls = 0;
        while read.cursor.is_none_or(|c| c.number < head.number) {
            if calls == CALLS_MAX {
                let behind = head.number - read.cursor.map_or(0, |c| c.number);
                return Err(PaymentError::Unreachable(format!(
                    "this market's accounts are still being read off the chain, {behind} blocks to go"
                )));
            }
            let (opened, cursor) = rail.opened_since(market, read.cursor).await?;
            read.cursor = Some(cursor);
            read.by_salt
                .extend(opened.into_iter().map(|o| (o.terms.salt, o.terms)));
            calls += 1;
        }
        Ok((1..=ROUNDS_MAX).rev().find_map(|round| {
            let terms = read.by_salt.get(&salt(market, uid, round))?;
            Some(Prior {
                round,
                terms: terms.clone(),
            })
        }))
    }
}
