//! What accounts and the chain are like, for all who ask at once.

use alloy::{eips::BlockId, primitives::B256, providers::Provider as _};
use leasehold_planner::{
    escrow::{AccountRead, Terms},
    ports::{BlockLevel, PaymentError},
};

use super::abi::{Escrow, account_read, hides_its_start, to_b256};
use crate::evm::{
    EvmEscrow, Inner,
    rpc::{block_id, no_contract, read_batcher::Asker},
};

/// Accounts per view: a call's gas is bounded.
pub(super) const ACCOUNTS_PER_VIEW: usize = 100;

impl EvmEscrow {
    /// Answers all who want to know the newest block.
    pub(super) async fn tell_head(self) {
        let askers = self.0.heads.take();
        let head = self.0.rpc.head().await;
        for asker in askers {
            asker.tell(head.clone());
        }
    }

    /// Answers all who want to know an account at the newest block, so many by each call.
    pub(super) async fn tell_accounts(self) {
        let mut askers = self.0.accounts.take();
        while !askers.is_empty() {
            let rest = askers.split_off(askers.len().min(ACCOUNTS_PER_VIEW));
            tokio::spawn(self.clone().tell_some_accounts(askers));
            askers = rest;
        }
    }

    async fn tell_some_accounts(self, mut askers: Vec<Asker<Terms, AccountRead>>) {
        let terms: Vec<Terms> = askers.iter().map(|asker| asker.question.clone()).collect();
        let reads = match terms.as_slice() {
            [one] => self.account_now(one).await.map(|read| vec![read]),
            many => self.accounts_now(many).await,
        };
        match reads {
            Ok(reads) => {
                for (asker, read) in askers.into_iter().zip(reads) {
                    asker.tell(Ok(read));
                }
            }
            Err(error) if askers.len() == 1 || is_silence(&error) => {
                for asker in askers {
                    asker.tell(Err(error.clone()));
                }
            }
            // Strangers write terms: nobody's may keep others' from being read.
            Err(error) => {
                tracing::debug!(accounts = terms.len(), %error, "accounts can't be read together: each half is tried");
                let rest = askers.split_off(terms.len() / 2);
                let (one, other) = (self.clone(), self);
                tokio::join!(
                    Box::pin(one.tell_some_accounts(askers)),
                    Box::pin(other.tell_some_accounts(rest)),
                );
            }
        }
    }

    /// A view refuses nothing. While anvil adds a block, one in some thousand calls panics all the same, as if its time
    /// were older than its state; asked once more, it answers.
    async fn account_now(&self, terms: &Terms) -> Result<AccountRead, PaymentError> {
        match self.account_at(terms, BlockLevel::Latest).await {
            Err(PaymentError::Reverted { .. }) => self.account_at(terms, BlockLevel::Latest).await,
            answer => answer,
        }
    }

    pub(super) async fn account_at(
        &self,
        terms: &Terms,
        level: BlockLevel,
    ) -> Result<AccountRead, PaymentError> {
        let Inner { rpc, escrow, .. } = &*self.0;
        rpc.right_chain().await?;
        let call = Escrow::snapshotCall { terms: terms.into() };
        match rpc.view(*escrow, &call, block_id(level)).await? {
            Some(snapshot) => {
                let rows = std::slice::from_ref(&snapshot);
                let reads = self
                    .reads(std::slice::from_ref(terms), rows, block_id(level))
                    .await?;
                reads
                    .into_iter()
                    .next()
                    .ok_or_else(|| PaymentError::Malformed("no snapshot".into()))
            }
            // On a young chain the contract may be newer than the newest final block.
            None if level != BlockLevel::Latest
                && !rpc.ask(rpc.provider.get_code_at(*escrow)).await?.is_empty() =>
            {
                Ok(AccountRead::Absent)
            }
            None => Err(no_contract(*escrow, rpc.chain_id)),
        }
    }

    /// At most [`ACCOUNTS_PER_VIEW`] accounts at the newest block.
    pub(super) async fn accounts_now(&self, terms: &[Terms]) -> Result<Vec<AccountRead>, PaymentError> {
        self.0.rpc.right_chain().await?;
        self.snapshots(terms, BlockId::latest()).await
    }

    pub(super) async fn snapshots(
        &self,
        terms: &[Terms],
        at: BlockId,
    ) -> Result<Vec<AccountRead>, PaymentError> {
        let call = Escrow::snapshotsCall {
            terms: terms.iter().map(Into::into).collect(),
        };
        let rows = self.0.rpc.view_of(self.0.escrow, &call, at).await?;
        if rows.len() != terms.len() {
            return Err(PaymentError::Malformed(
                "not one snapshot for each account".into(),
            ));
        }
        self.reads(terms, &rows, at).await
    }

    /// Completes snapshots by what only the stored accounts tell.
    async fn reads(
        &self,
        terms: &[Terms],
        rows: &[Escrow::Snapshot],
        at: BlockId,
    ) -> Result<Vec<AccountRead>, PaymentError> {
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
            self.0.rpc.view_of(self.0.escrow, &raw, at).await?
        }
        .into_iter();
        rows.iter()
            .map(|row| {
                let stored = hides_its_start(row).then(|| stored.next()).flatten();
                account_read(row, stored.map(|account| account.clock.settledAt.to()))
            })
            .collect()
    }
}

/// Whether nobody answered, so that to ask again for each would only take as long again.
const fn is_silence(error: &PaymentError) -> bool {
    matches!(
        error,
        PaymentError::Unreachable(_) | PaymentError::WrongChain { .. }
    )
}
