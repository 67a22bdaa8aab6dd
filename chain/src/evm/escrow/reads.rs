//! Reads of accounts and of the newest block, batched over concurrent callers. Accounts are read at a block that is named
//! by its hash (EIP-1898): of several nodes behind one endpoint, one that does not have the block answers with an error
//! instead of an older state.

use alloy::{eips::BlockId, primitives::B256, providers::Provider as _};
use leasehold_planner::{
    escrow::{AccountAt, AccountRead, Terms},
    ports::{BlockLevel, Head, PaymentError},
};

use super::abi::{Escrow, account_read, hides_its_start, to_b256};
use crate::evm::{
    EvmEscrow, Inner,
    rpc::{no_contract, read_batcher::PendingRead},
};

/// Accounts read by one call, as the gas of a call is limited.
pub(super) const ACCOUNTS_PER_VIEW: usize = 100;

impl EvmEscrow {
    /// Completes all pending reads of the newest block.
    pub(super) async fn read_head_batch(self) {
        let pending = self.0.heads.take();
        let head = self.0.rpc.head().await;
        for read in pending {
            read.complete(head.clone());
        }
    }

    /// Completes all pending reads of accounts at the newest block, [`ACCOUNTS_PER_VIEW`] per call.
    pub(super) async fn read_account_batch(self) {
        let mut pending = self.0.accounts.take();
        let block = match self.0.rpc.head().await {
            Ok(block) => block,
            Err(error) => {
                for read in pending {
                    read.complete(Err(error.clone()));
                }
                return;
            }
        };
        while !pending.is_empty() {
            let rest = pending.split_off(pending.len().min(ACCOUNTS_PER_VIEW));
            tokio::spawn(self.clone().read_accounts(pending, block));
            pending = rest;
        }
    }

    async fn read_accounts(self, mut pending: Vec<PendingRead<Terms, AccountAt>>, block: Head) {
        let terms: Vec<Terms> = pending.iter().map(|read| read.key.clone()).collect();
        let answers = match terms.as_slice() {
            [one] => self
                .account_once_more(one, block)
                .await
                .map(|account| vec![account]),
            many => self.snapshots(many, block).await,
        };
        match answers {
            Ok(accounts) => {
                for (read, account) in pending.into_iter().zip(accounts) {
                    read.complete(Ok(account));
                }
            }
            Err(error) if pending.len() == 1 || is_outage(&error) => {
                for read in pending {
                    read.complete(Err(error.clone()));
                }
            }
            // Terms come from untrusted tenants: terms that make a call fail must not block reads of other accounts.
            Err(error) => {
                tracing::debug!(accounts = terms.len(), %error, "batch of accounts failed: reading each half by itself");
                let rest = pending.split_off(terms.len() / 2);
                let (one, other) = (self.clone(), self);
                tokio::join!(
                    Box::pin(one.read_accounts(pending, block)),
                    Box::pin(other.read_accounts(rest, block)),
                );
            }
        }
    }

    /// A view never reverts by itself. On anvil, about one call in a thousand that coincides with a new block fails
    /// with a panic, as if its time were older than its state; a second call succeeds.
    async fn account_once_more(&self, terms: &Terms, block: Head) -> Result<AccountAt, PaymentError> {
        match self.account_in(terms, block, BlockLevel::Latest).await {
            Err(PaymentError::Reverted { .. }) => self.account_in(terms, block, BlockLevel::Latest).await,
            answer => answer,
        }
    }

    /// The account at the newest block of that level.
    pub(super) async fn account_at(
        &self,
        terms: &Terms,
        level: BlockLevel,
    ) -> Result<AccountAt, PaymentError> {
        let block = self.0.rpc.newest(level).await?;
        self.account_in(terms, block, level).await
    }

    /// The newest block of that level.
    ///
    /// # Errors
    /// If the endpoint does not answer, or the chain does not report the level.
    pub async fn newest(&self, level: BlockLevel) -> Result<Head, PaymentError> {
        self.0.rpc.newest(level).await
    }

    /// The account in that block, by its hash. Another endpoint may have named the block.
    ///
    /// # Errors
    /// `Unreachable` also when this endpoint does not have the block.
    pub async fn account_in_block(&self, terms: &Terms, block: Head) -> Result<AccountAt, PaymentError> {
        self.account_in(terms, block, BlockLevel::Latest).await
    }

    async fn account_in(
        &self,
        terms: &Terms,
        block: Head,
        level: BlockLevel,
    ) -> Result<AccountAt, PaymentError> {
        let Inner { rpc, escrow, .. } = &*self.0;
        let call = Escrow::snapshotCall { terms: terms.into() };
        match rpc.view(*escrow, &call, at(block)).await? {
            Some(snapshot) => {
                let rows = std::slice::from_ref(&snapshot);
                let reads = self.reads(std::slice::from_ref(terms), rows, block).await?;
                reads
                    .into_iter()
                    .next()
                    .ok_or_else(|| PaymentError::Malformed("no snapshot".into()))
            }
            // On a new chain the contract may be younger than the newest finalized block.
            None if level != BlockLevel::Latest
                && !rpc.request(rpc.provider.get_code_at(*escrow)).await?.is_empty() =>
            {
                let read = AccountRead::Absent;
                Ok(AccountAt { block, read })
            }
            None => Err(no_contract(*escrow, rpc.chain_id)),
        }
    }

    /// At most [`ACCOUNTS_PER_VIEW`] accounts at that block.
    pub(super) async fn snapshots(
        &self,
        terms: &[Terms],
        block: Head,
    ) -> Result<Vec<AccountAt>, PaymentError> {
        let call = Escrow::snapshotsCall {
            terms: terms.iter().map(Into::into).collect(),
        };
        let rows = self.0.rpc.view_of(self.0.escrow, &call, at(block)).await?;
        if rows.len() != terms.len() {
            return Err(PaymentError::Malformed(
                "the number of snapshots differs from the number of accounts".into(),
            ));
        }
        self.reads(terms, &rows, block).await
    }

    /// Converts snapshots, and reads from the stored accounts what a snapshot leaves out.
    async fn reads(
        &self,
        terms: &[Terms],
        rows: &[Escrow::Snapshot],
        block: Head,
    ) -> Result<Vec<AccountAt>, PaymentError> {
        let ids: Vec<B256> = terms
            .iter()
            .zip(rows)
            .filter(|(_, row)| hides_its_start(row))
            .map(|(terms, _)| to_b256(terms.id()))
            .collect();
        let mut stored = if ids.is_empty() {
            Vec::new()
        } else {
            let raw = Escrow::rawCall { ids };
            self.0.rpc.view_of(self.0.escrow, &raw, at(block)).await?
        }
        .into_iter();
        rows.iter()
            .map(|row| {
                let stored = hides_its_start(row).then(|| stored.next()).flatten();
                let read = account_read(row, stored.as_ref().map(|account| &account.clock))?;
                AccountAt::computed(block, row.blockTime.to(), read)
            })
            .collect()
    }
}

/// The block as a parameter of a call. It must belong to the chain still.
pub(super) const fn at(block: Head) -> BlockId {
    BlockId::hash_canonical(to_b256(block.hash))
}

/// Whether the endpoint did not answer, so that one read per account would fail in the same way.
const fn is_outage(error: &PaymentError) -> bool {
    matches!(
        error,
        PaymentError::Unreachable(_) | PaymentError::WrongChain { .. }
    )
}
