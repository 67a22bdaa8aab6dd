//! Clients of the escrow contracts of PaymentNetworks; each call to the chain is counted and timed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use leasehold_chain::{Limits, Queues};
use leasehold_crds::payment::{
    money::TokenAmount,
    network::{Finality, PaymentNetworkSpec, TransactionLimits},
};
use leasehold_planner::{
    endpoints::Endpoints,
    placement::Currency,
    ports::{BlockLevel, PaymentError, SigningKey},
};
use leasehold_telemetry::metrics::{Chain, ChainAction, ChainOutcome, Class};
use std::time::Instant;

mod connect;
mod reads;

use connect::Connected;

/// Escrow clients by PaymentNetwork, each connected once for an endpoint.
#[derive(Clone)]
pub struct PaymentClients {
    secrets: Api<Secret>,
    call_deadline: Duration,
    mine_deadline: Duration,
    metrics: Chain,
    connected: Arc<Mutex<HashMap<String, Connected>>>,
    /// Pending transactions by chain and key, and what they cost. They outlive a client, whose spec may change.
    queues: Queues,
    /// The answers of each PaymentNetwork's endpoints so far.
    endpoints: Arc<Mutex<HashMap<String, Endpoints>>>,
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
            endpoints: Arc::default(),
        }
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
