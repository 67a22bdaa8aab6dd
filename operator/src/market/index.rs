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
        let (opened, cursor) = rail.opened_since(market, read.cursor).await?;
        read.cursor = Some(cursor);
        read.by_salt
            .extend(opened.into_iter().map(|o| (o.terms.salt, o.terms)));
        Ok((1..=ROUNDS_MAX).rev().find_map(|round| {
            let terms = read.by_salt.get(&salt(market, uid, round))?;
            Some(Prior {
                round,
                terms: terms.clone(),
            })
        }))
    }
}
