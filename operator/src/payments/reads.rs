//! Reads of the chain of a PaymentNetwork, over one or two endpoints.

use std::{sync::PoisonError, time::Duration};

use kube::ResourceExt as _;
use leasehold_chain::EvmEscrow;
use leasehold_crds::PaymentNetwork;
use leasehold_planner::{
    endpoints::{Agreement, Belief, Confirmation, Endpoints, belief},
    escrow::{AccountAt, Hash, Terms},
    observed::Observed,
    ports::{BlockLevel, Clock as _, FINAL_READS, Head, Opened, PaymentError, Payments as _},
    recency::Outdated,
};
use leasehold_runtime::SystemClock;
use leasehold_telemetry::metrics::ChainAction;

use super::{PaymentClients, level};

/// How often, and at what interval, an endpoint is asked for a block that the other one has already.
const CONFIRM_TRIES: usize = 5;
const CONFIRM_PERIOD: Duration = Duration::from_millis(500);

impl PaymentClients {
    /// The newest block; unknown when it is older than the network allows.
    pub async fn head(&self, network: &PaymentNetwork, chain: &EvmEscrow) -> Observed<Head> {
        let answer = self.observed(ChainAction::Read, chain.head()).await;
        self.judge_head(network, chain, answer)
    }

    /// An answer about the newest block; unknown when it is older than the network allows.
    pub fn judge_head(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        answer: Result<Head, PaymentError>,
    ) -> Observed<Head> {
        let from = self.endpoint(network, chain);
        self.endpoints(network, |endpoints, max_age| {
            endpoints.head(from, answer, max_age, SystemClock.now())
        })
    }

    /// The account at the newest block; unknown when that is older than the network allows, or than an earlier answer.
    pub async fn account(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        terms: &Terms,
    ) -> Observed<AccountAt> {
        let read = chain.account(terms, BlockLevel::Latest);
        let answer = self.observed(ChainAction::Read, read).await;
        let from = self.endpoint(network, chain);
        let answer = (terms.id(), answer);
        self.endpoints(network, |endpoints, max_age| {
            endpoints.account(from, answer, max_age, SystemClock.now())
        })
    }

    /// The account at the newest block, and a second read where a decision needs two: with two endpoints, what ends
    /// something is known only if both say the same. The account can be opened until `open_by`, Unix seconds.
    pub async fn account_twice(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        (terms, open_by): (&Terms, u64),
        wants_second: impl Fn(&Observed<AccountAt>) -> bool,
    ) -> (Observed<AccountAt>, Option<Observed<AccountAt>>) {
        let first = self.account(network, chain, terms).await;
        if !wants_second(&first) {
            return (first, None);
        }
        if let (Observed::Known(at), Some(other)) = (&first, self.other(network, chain)) {
            let confirmation = self.confirm(network, &other, (terms, at)).await;
            match belief(at, &confirmation, (terms.start_by, open_by)) {
                Belief::Confirmed => return (first.clone(), Some(first)),
                Belief::Alone => {}
                Belief::Unknown(why) => return (Observed::Unknown(why), None),
            }
        }
        let second = self.account(network, chain, terms).await;
        (first, Some(second))
    }

    /// What the other endpoint says of an answer of the leading one. Its node may get the block a little later.
    async fn confirm(
        &self,
        network: &PaymentNetwork,
        other: &EvmEscrow,
        (terms, at): (&Terms, &AccountAt),
    ) -> Confirmation {
        let mut tries = CONFIRM_TRIES;
        loop {
            let newest = self.head(network, other).await;
            let answer = other.account_in_block(terms, at.block);
            let answer = self.observed(ChainAction::Read, answer).await;
            tries -= 1;
            if answer.is_err() && newest.known().is_some() && tries > 0 {
                tokio::time::sleep(CONFIRM_PERIOD).await;
                continue;
            }
            let confirmation = self.endpoints(network, |endpoints, _| {
                endpoints.confirm(at, &newest, answer, SystemClock.now())
            });
            if let Confirmation::Differs(what) = &confirmation {
                self.metrics.disagreed();
                tracing::warn!(network = network.name_any(), account = %terms.id(), what);
            }
            return confirmation;
        }
    }

    /// Whether the other endpoint, if there is one, shows the account in the same way.
    pub async fn is_confirmed(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        account: (&Terms, &AccountAt),
    ) -> bool {
        match self.other(network, chain) {
            Some(other) => self.confirm(network, &other, account).await == Confirmation::Same,
            None => true,
        }
    }

    /// The account at the newest block of a level. What it contains stays true, however old it is.
    pub async fn account_at(
        &self,
        chain: &EvmEscrow,
        terms: &Terms,
        level: BlockLevel,
    ) -> Observed<AccountAt> {
        let read = chain.account(terms, level);
        Observed::from_result(self.observed(ChainAction::Read, read).await)
    }

    /// Reads of the account at the block level at which its end is final, as many as decisions need; with two endpoints,
    /// from both in turn.
    pub async fn final_reads(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        terms: &Terms,
    ) -> Vec<Observed<AccountAt>> {
        let level = level(network.spec.release_at);
        let other = self.other(network, chain);
        let mut reads = Vec::with_capacity(FINAL_READS);
        for n in 0..FINAL_READS {
            let chain = other.as_ref().filter(|_| n % 2 == 1).unwrap_or(chain);
            reads.push(self.account_at(chain, terms, level).await);
        }
        reads
    }

    /// Accounts at the newest block.
    ///
    /// # Errors
    /// When they can't be read, or the block is older than the network allows.
    pub async fn accounts(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        terms: &[Terms],
    ) -> anyhow::Result<Vec<AccountAt>> {
        let read = chain.accounts(terms, BlockLevel::Latest);
        let accounts = self.observed(ChainAction::Read, read).await?;
        if let Some(first) = accounts.first() {
            self.accept(network, chain, first.block)?;
        }
        Ok(accounts)
    }

    /// The account with that id by its `Opened` event.
    ///
    /// # Errors
    /// When it can't be read, or the newest block is older than the network allows.
    pub async fn find(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        id: Hash,
    ) -> anyhow::Result<Option<Opened>> {
        let (block, opened) = self.observed(ChainAction::Read, chain.find(id)).await?;
        self.accept(network, chain, block)?;
        Ok(opened)
    }

    /// Whether an answer from that block is recent.
    ///
    /// # Errors
    /// Why it is not.
    pub fn accept(&self, network: &PaymentNetwork, chain: &EvmEscrow, block: Head) -> Result<(), Outdated> {
        let from = self.endpoint(network, chain);
        self.endpoints(network, |endpoints, max_age| {
            endpoints.accept(from, block, max_age, SystemClock.now())
        })
    }

    /// Whether the endpoints agree.
    pub fn agreement(&self, network: &PaymentNetwork) -> Agreement {
        self.endpoints(network, |endpoints, _| endpoints.agreement(SystemClock.now()))
    }

    /// Records that the endpoints said different things of the network.
    pub fn disagreed(&self, network: &PaymentNetwork, what: &str) {
        self.metrics.disagreed();
        self.endpoints(network, |endpoints, _| {
            endpoints.disagree(what.to_owned(), SystemClock.now());
        });
    }

    pub(super) fn endpoints<T>(
        &self,
        network: &PaymentNetwork,
        judge: impl FnOnce(&mut Endpoints, u64) -> T,
    ) -> T {
        let mut all = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        judge(
            all.entry(network.name_any()).or_default(),
            network.spec.max_block_age_seconds(),
        )
    }
}
