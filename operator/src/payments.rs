//! Clients of the escrow contracts of PaymentNetworks; each call to the chain is counted and timed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use leasehold_chain::{EvmEscrow, Limits, Network as Connection, Queues};
use leasehold_crds::{
    PaymentNetwork,
    payment::{
        money::TokenAmount,
        network::{Finality, PaymentNetworkSpec, TransactionLimits},
    },
};
use leasehold_planner::{
    escrow::{AccountAt, Hash, Terms},
    observed::Observed,
    placement::Currency,
    ports::{BlockLevel, Clock as _, FINAL_READS, Head, Opened, PaymentError, Payments as _, SigningKey},
    recency::{Outdated, Recency},
};
use leasehold_runtime::SystemClock;
use leasehold_telemetry::metrics::{Chain, ChainAction, ChainOutcome, Class};
use std::time::Instant;

/// Escrow clients by PaymentNetwork, each connected once.
#[derive(Clone)]
pub struct PaymentClients {
    secrets: Api<Secret>,
    call_deadline: Duration,
    mine_deadline: Duration,
    metrics: Chain,
    connected: Arc<Mutex<HashMap<String, (PaymentNetworkSpec, EvmEscrow)>>>,
    /// Pending transactions by chain and key, and what they cost. They outlive a client, whose spec may change.
    queues: Queues,
    /// The answers of each PaymentNetwork's chain so far.
    recency: Arc<Mutex<HashMap<String, Recency>>>,
}

/// Why a PaymentNetwork has no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An address of the network's spec can't be parsed.
    #[error("PaymentNetwork {0}: an address is malformed")]
    MalformedAddress(String),
    /// A limit of the network's spec can't be parsed.
    #[error("PaymentNetwork {0}: limits are malformed")]
    MalformedLimits(String),
    /// The network names no RPC endpoint.
    #[error("PaymentNetwork {0}: set rpcUrl or rpcSecretName")]
    NoUrl(String),
    /// The Secret that the network names has no URL.
    #[error("Secret {0} has no entry \"url\"")]
    NoEntry(String),
    /// The Secret could not be read.
    #[error("Secret {secret} with the RPC URL can't be read")]
    Secret {
        /// Name of the Secret.
        secret: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The URL can't be used.
    #[error("the RPC URL can't be used")]
    Connect(#[source] PaymentError),
}

impl ClientError {
    /// How it is retried.
    pub const fn class(&self) -> Class {
        match self {
            Self::MalformedAddress(_) | Self::MalformedLimits(_) | Self::NoUrl(_) | Self::NoEntry(_) => {
                Class::User
            }
            Self::Secret { .. } | Self::Connect(_) => Class::Transient,
        }
    }

    /// The error and its source, for a condition.
    pub fn message(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Chain, contract and token of a network; `None` when an address is none.
pub fn currency(spec: &PaymentNetworkSpec) -> Option<Currency> {
    Some(Currency {
        chain_id: u64::try_from(spec.chain_id).ok()?,
        escrow: spec.escrow.parse().ok()?,
        token: spec.token.address.parse().ok()?,
    })
}

/// The ceilings of a network in wei and gas; `None` when one is malformed.
pub fn limits(limits: &TransactionLimits) -> Option<Limits> {
    const WEI_PER_GWEI: u128 = 1_000_000_000;
    const NATIVE_DECIMALS: u32 = 18;
    Some(Limits {
        fee_per_gas_wei: u128::try_from(limits.fee_per_gas_gwei).ok()? * WEI_PER_GWEI,
        gas: u64::try_from(limits.gas_per_transaction).ok()?,
        day_wei: TokenAmount::parse_tokens(&limits.native_per_day, NATIVE_DECIMALS)
            .ok()?
            .0,
    })
}

/// The block level of a finality rule.
pub const fn level(finality: Finality) -> BlockLevel {
    match finality {
        Finality::Latest => BlockLevel::Latest,
        Finality::Safe => BlockLevel::Safe,
        Finality::Finalized => BlockLevel::Finalized,
    }
}

impl PaymentClients {
    /// PaymentClients whose RPC Secrets are in `namespace`.
    pub fn new(
        client: Client,
        namespace: &str,
        call_deadline: Duration,
        mine_deadline: Duration,
        metrics: Chain,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
            call_deadline,
            mine_deadline,
            metrics,
            connected: Arc::default(),
            queues: Queues::default(),
            recency: Arc::default(),
        }
    }

    /// The escrow client of a network.
    ///
    /// # Errors
    /// When the PaymentNetwork is incomplete, or the Secret with its RPC URL can't be read.
    pub async fn client(&self, network: &PaymentNetwork) -> Result<EvmEscrow, ClientError> {
        let name = network.name_any();
        let known = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&name)
            .cloned();
        if let Some((spec, client)) = known
            && spec == network.spec
        {
            return Ok(client);
        }
        let spec = &network.spec;
        let currency = currency(spec).ok_or_else(|| ClientError::MalformedAddress(name.clone()))?;
        let rpc_url = match (&spec.rpc_url, &spec.rpc_secret_name) {
            (Some(url), _) => url.clone(),
            (None, Some(secret)) => self.url(secret).await?,
            (None, None) => return Err(ClientError::NoUrl(name)),
        };
        let connection = Connection {
            rpc_url,
            chain_id: currency.chain_id,
            escrow: currency.escrow,
            token: currency.token,
            call_deadline: self.call_deadline,
            mine_deadline: self.mine_deadline,
            limits: limits(&spec.limits).ok_or_else(|| ClientError::MalformedLimits(name.clone()))?,
        };
        let client = EvmEscrow::connect(&connection, &self.queues).map_err(ClientError::Connect)?;
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.clone(), (spec.clone(), client.clone()));
        // Another endpoint may be behind the one before it.
        let mut recency = self.recency.lock().unwrap_or_else(PoisonError::into_inner);
        recency.remove(&name);
        drop(recency);
        Ok(client)
    }

    async fn url(&self, secret: &str) -> Result<String, ClientError> {
        let found = self.secrets.get(secret).await;
        let found = found.map_err(|source| ClientError::Secret {
            secret: secret.to_owned(),
            source: Box::new(source),
        })?;
        entry(&found, "url").ok_or_else(|| ClientError::NoEntry(secret.to_owned()))
    }

    /// The newest block; unknown when it is older than the network allows.
    pub async fn head(&self, network: &PaymentNetwork, chain: &EvmEscrow) -> Observed<Head> {
        let answer = self.observed(ChainAction::Read, chain.head()).await;
        self.recent(network, |recency, max_age| {
            recency.head(answer, max_age, SystemClock.now())
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
        self.recent(network, |recency, max_age| {
            recency.account(terms.id(), answer, max_age, SystemClock.now())
        })
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

    /// Reads of the account at the block level at which its end is final, as many as decisions need.
    pub async fn final_reads(
        &self,
        network: &PaymentNetwork,
        chain: &EvmEscrow,
        terms: &Terms,
    ) -> Vec<Observed<AccountAt>> {
        let level = level(network.spec.release_at);
        let mut reads = Vec::with_capacity(FINAL_READS);
        for _ in 0..FINAL_READS {
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
            self.accept(network, first.block)?;
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
        self.accept(network, block)?;
        Ok(opened)
    }

    /// Whether an answer from that block is recent.
    ///
    /// # Errors
    /// Why it is not.
    pub fn accept(&self, network: &PaymentNetwork, block: Head) -> Result<(), Outdated> {
        self.recent(network, |recency, max_age| {
            recency.accept(block, max_age, SystemClock.now())
        })
    }

    fn recent<T>(&self, network: &PaymentNetwork, judge: impl FnOnce(&mut Recency, u64) -> T) -> T {
        let mut all = self.recency.lock().unwrap_or_else(PoisonError::into_inner);
        let recency = all.entry(network.name_any()).or_default();
        judge(recency, network.spec.max_block_age_seconds())
    }

    /// Counts and times a call.
    pub async fn observed<T>(
        &self,
        action: ChainAction,
        call: impl Future<Output = Result<T, PaymentError>>,
    ) -> Result<T, PaymentError> {
        let begun = Instant::now();
        let result = call.await;
        self.metrics.observe(action, outcome(&result), begun.elapsed());
        result
    }
}

const fn outcome<T>(result: &Result<T, PaymentError>) -> ChainOutcome {
    match result {
        Ok(_) => ChainOutcome::Ok,
        Err(PaymentError::Unreachable(_) | PaymentError::Malformed(_)) => ChainOutcome::Unreachable,
        Err(PaymentError::WrongChain { .. }) => ChainOutcome::WrongChain,
        Err(PaymentError::Reverted { .. }) => ChainOutcome::Reverted,
        Err(PaymentError::InsufficientGas { .. }) => ChainOutcome::InsufficientGas,
        Err(PaymentError::LimitExceeded { .. }) => ChainOutcome::LimitExceeded,
        Err(PaymentError::InsufficientTokens { .. }) => ChainOutcome::InsufficientTokens,
        Err(PaymentError::Pending { .. }) => ChainOutcome::Unresolved,
    }
}

/// An entry of a Secret as text.
pub fn entry(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8(bytes.0.clone()).ok()?.trim().to_owned())
}

/// A private key: 0x and 64 hexadecimal digits.
pub fn parse_key(text: &str) -> Option<SigningKey> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .ok()?;
    Some(SigningKey(bytes.try_into().ok()?))
}

/// Reads a key from a file; the error never shows what is in it.
pub fn key_file(path: &std::path::Path) -> anyhow::Result<SigningKey> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("read the key file {}", path.display()))?;
    parse_key(&text).with_context(|| {
        format!(
            "{} holds no private key: 0x and 64 hexadecimal digits",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_of_a_network_are_those_of_its_client() {
        let mut spec = TransactionLimits::default();
        assert_eq!(limits(&spec), Some(Limits::default()));
        spec.native_per_day = "0.05".into();
        let day_wei = 50_000_000_000_000_000;
        assert_eq!(limits(&spec).map(|l| l.day_wei), Some(day_wei));
        spec.native_per_day = "1e3".into();
        assert_eq!(limits(&spec), None);
    }
}
