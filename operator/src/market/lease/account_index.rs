//! Reads the accounts of this market off the chain's events, and keeps them by PaymentNetwork.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc, time::Instant};

use leasehold_chain::EvmEscrow;
use leasehold_planner::{
    escrow::{Address, MarketSecret},
    market::{accounts::Accounts, lease::RecoveredAccount},
    ports::{Cursor, PaymentError, Payments as _},
};
use tokio::sync::Mutex;

/// At most this many calls for events in one read; the next read continues where it ended.
const CALLS_MAX: usize = 20;

#[derive(Default)]
struct Read {
    cursor: Option<Cursor>,
    /// When the last complete read began.
    begun_at: Option<Instant>,
    accounts: Accounts,
}

impl Read {
    /// Whether a read that began after that time has reached the block with number `least`.
    fn is_current(&self, asked_at: Instant, least: u64) -> bool {
        let has_reached = self.cursor.is_some_and(|c| c.number >= least);
        has_reached && self.begun_at.is_some_and(|begun_at| begun_at >= asked_at)
    }

    /// Reads on to the newest block, and at least to the one with number `least`.
    async fn read_on(
        &mut self,
        chain: &EvmEscrow,
        market: Address,
        secret: &MarketSecret,
        least: u64,
    ) -> Result<(), PaymentError> {
        let newest = chain.head().await?.number.max(least);
        let mut calls = 0;
        while self.cursor.is_none_or(|c| c.number < newest) {
            if calls == CALLS_MAX {
                let behind = newest - self.cursor.map_or(0, |c| c.number);
                return Err(PaymentError::Unreachable(format!(
                    "this market's accounts are still being read off the chain, {behind} blocks to go"
                )));
            }
            let (opened, cursor) = chain.opened_since(market, self.cursor).await?;
            if self.cursor == Some(cursor) {
                return Err(PaymentError::Unreachable(format!(
                    "the RPC endpoint has no events after block {}, and the newest block is {newest}",
                    cursor.number
                )));
            }
            self.cursor = Some(cursor);
            self.accounts
                .extend(secret, opened.into_iter().map(|opened| opened.terms));
            calls += 1;
        }
        Ok(())
    }
}

/// The accounts of this market on each PaymentNetwork. What is over and has no lease is forgotten.
#[derive(Clone)]
pub(crate) struct AccountIndex {
    secret: MarketSecret,
    networks: Arc<Mutex<HashMap<String, Read>>>,
}

impl AccountIndex {
    /// Nothing is read yet.
    pub(crate) fn new(secret: MarketSecret) -> Self {
        Self {
            secret,
            networks: Arc::default(),
        }
    }

    /// Reads on, at least to the block with number `least`, then seeks the account of the latest of these rounds of a lease.
    pub(crate) async fn latest(
        &self,
        network: &str,
        chain: &EvmEscrow,
        market: Address,
        uid: &str,
        rounds: RangeInclusive<u64>,
        least: u64,
    ) -> Result<Option<RecoveredAccount>, PaymentError> {
        // An index that lags must not report that there is no account: a second one would be opened.
        let latest = |accounts: &mut Accounts| accounts.latest(market, uid, rounds);
        self.read_to(network, chain, market, least, latest).await
    }

    /// Reads on, then answers from what was read.
    pub(crate) async fn read<T>(
        &self,
        network: &str,
        chain: &EvmEscrow,
        market: Address,
        answer: impl FnOnce(&mut Accounts) -> T,
    ) -> Result<T, PaymentError> {
        self.read_to(network, chain, market, 0, answer).await
    }

    async fn read_to<T>(
        &self,
        network: &str,
        chain: &EvmEscrow,
        market: Address,
        least: u64,
        answer: impl FnOnce(&mut Accounts) -> T,
    ) -> Result<T, PaymentError> {
        let asked_at = Instant::now();
        let mut guard = self.networks.lock().await;
        let read = guard.entry(network.to_owned()).or_default();
        // All that wait for the same read share the next one.
        if !read.is_current(asked_at, least) {
            let begun_at = Instant::now();
            read.read_on(chain, market, &self.secret, least).await?;
            read.begun_at = Some(begun_at);
        }
        Ok(answer(&mut read.accounts))
    }

    /// Changes what was read.
    pub(crate) async fn change(&self, network: &str, change: impl FnOnce(&mut Accounts)) {
        let mut guard = self.networks.lock().await;
        if let Some(read) = guard.get_mut(network) {
            change(&mut read.accounts);
        }
    }
}
