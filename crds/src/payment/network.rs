//! PaymentNetwork: the chain, escrow contract and token of payments, and the required finality.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{conditions::ConditionType, duration, schema, words::words};

/// The chain, escrow contract and token of payments, and the required finality.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "PaymentNetwork",
    shortname = "pn",
    status = "PaymentNetworkStatus",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    doc = "The chain, escrow contract and token of payments, and the required finality. The market and each provider have their own PaymentNetworks and do not use those of the other side.",
    printcolumn(name = "Chain", type_ = "integer", json_path = ".spec.chainId"),
    printcolumn(name = "Token", type_ = "string", json_path = ".spec.token.symbol"),
    printcolumn(
        name = "Reachable",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Reachable')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.chainId == oldSelf.chainId").message("chainId is immutable: create another PaymentNetwork").field_path(".chainId"),
    validation = Rule::new("self.escrow == oldSelf.escrow").message("escrow is immutable: create another PaymentNetwork").field_path(".escrow"),
    validation = Rule::new("self.token == oldSelf.token").message("token is immutable: create another PaymentNetwork").field_path(".token"),
    validation = Rule::new("!has(oldSelf.marketId) || (has(self.marketId) && self.marketId == oldSelf.marketId)").message("marketId is immutable once it is set, because accounts are found by it: create another PaymentNetwork").field_path(".marketId"),
    validation = Rule::new("has(self.rpcUrl) != has(self.rpcSecretName)").message("set exactly one of rpcUrl and rpcSecretName").field_path(".rpcUrl"),
    validation = Rule::new("!has(self.secondRpcUrl) || !has(self.secondRpcSecretName)").message("set at most one of secondRpcUrl and secondRpcSecretName").field_path(".secondRpcUrl")
)]
pub struct PaymentNetworkSpec {
    /// EIP-155 chain ID. Responses of the RPC endpoint are checked against it.
    #[schemars(schema_with = "schema::bounded::<1, 9007199254740991>")]
    pub chain_id: i64,
    /// URL of a JSON-RPC endpoint, if the URL is not secret. Exactly one of `rpcUrl` and `rpcSecretName` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https?://[!-~]+$"))]
    pub rpc_url: Option<String>,
    /// Name of a Secret in the namespace of the operator whose entry `url` is the URL of a JSON-RPC endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::subdomain")]
    pub rpc_secret_name: Option<String>,
    /// URL of a second JSON-RPC endpoint of the same chain, run by somebody else, if the URL is not secret. With a second
    /// endpoint, nothing is closed, adopted, released or forgotten unless both say the same of the same block, and
    /// everything else goes on while one of them does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https?://[!-~]+$"))]
    pub second_rpc_url: Option<String>,
    /// Name of a Secret in the namespace of the operator whose entry `url` is the URL of the second JSON-RPC endpoint. At
    /// most one of `secondRpcUrl` and `secondRpcSecretName` can be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::subdomain")]
    pub second_rpc_secret_name: Option<String>,
    /// Address of the escrow contract.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("escrow: must not be the zero address"))]
    pub escrow: String,
    /// Token of the payments.
    pub token: Token,
    /// Address that identifies this market in every account. Required only in the market cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("marketId: must not be the zero address"))]
    pub market_id: Option<String>,
    /// Finality that a payment must have before a provider starts the workload.
    #[serde(default)]
    pub provision_at: Finality,
    /// How long a provider continues to serve if the chain cannot be read when the paid time ends, at most once per
    /// lease and at most 168h: `10m`.
    #[serde(default = "default_grace")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('168h')").message("outageGrace: at most 168h (a week)"))]
    pub outage_grace: String,
    /// Ceilings of what the transactions of the operator on this network may cost. They protect its keys, and the wallets
    /// of tenants, from an RPC endpoint that reports wrong fees or gas.
    #[serde(default)]
    pub limits: TransactionLimits,
    /// How long the newest block may stay the newest before the chain, or its RPC endpoint, counts as stopped, from 10s to
    /// 1h: `2m`. Answers then count as no answers. It must be several times the interval between two blocks.
    #[serde(default = "default_max_block_age")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('1h')").message("maxBlockAge: from 10s to 1h"))]
    pub max_block_age: String,
    /// Finality that the end of an account must have before the objects that refer to it are deleted: a lease by its
    /// market, a reservation by its provider. Until then a transaction that a chain reorganisation drops is sent again. A
    /// chain that does not report this level needs another value.
    #[serde(default = "default_release_at")]
    pub release_at: Finality,
}

/// Ceilings of what transactions may cost. A transaction that would exceed one is not sent, and the condition of the
/// object for which it is needed says so.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TransactionLimits {
    /// Highest fee per gas, base fee and tip together, in gwei (10^-9 native tokens), 1 to 1000000.
    #[serde(default = "default_fee_per_gas_gwei")]
    #[schemars(schema_with = "schema::bounded::<1, 1000000>")]
    pub fee_per_gas_gwei: i64,
    /// Highest gas limit of one transaction, 500000 to 30000000. Closing an account with 16 legs needs about 2500000.
    #[serde(default = "default_gas_per_transaction")]
    #[schemars(schema_with = "schema::bounded::<500000, 30000000>")]
    pub gas_per_transaction: i64,
    /// What all transactions of one key that are sent within 24 hours may cost together, in native tokens of the chain:
    /// `"1"`. Each is counted with its gas limit at its highest fee, which is several times what it costs as a rule, and
    /// also if it is not mined. The operator counts from zero when it restarts.
    #[serde(default = "default_native_per_day")]
    #[schemars(schema_with = "schema::price")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("limits.nativePerDay: must be more than zero"))]
    pub native_per_day: String,
}

impl Default for TransactionLimits {
    fn default() -> Self {
        Self {
            fee_per_gas_gwei: default_fee_per_gas_gwei(),
            gas_per_transaction: default_gas_per_transaction(),
            native_per_day: default_native_per_day(),
        }
    }
}

const fn default_fee_per_gas_gwei() -> i64 {
    200
}

const fn default_gas_per_transaction() -> i64 {
    3_000_000
}

fn default_native_per_day() -> String {
    "1".into()
}

const MAX_BLOCK_AGE: &str = "2m";

fn default_max_block_age() -> String {
    MAX_BLOCK_AGE.into()
}

impl PaymentNetworkSpec {
    /// `maxBlockAge` in seconds; its default where it is not a duration.
    #[must_use]
    pub fn max_block_age_seconds(&self) -> u64 {
        duration::seconds(&self.max_block_age)
            .or_else(|_| duration::seconds(MAX_BLOCK_AGE))
            .unwrap_or_default()
    }
}

const fn default_release_at() -> Finality {
    Finality::Finalized
}

fn default_grace() -> String {
    "10m".into()
}

/// An ERC-20 token. Tokens that charge a fee on transfer or rebase are not supported.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Address of the token contract.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("token.address: must not be the zero address"))]
    pub address: String,
    /// Symbol for display, 1 to 16 characters: `USDC`.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[^\p{C}\p{Z}]+$"))]
    pub symbol: String,
    /// Number of decimals, 0 to 18.
    #[schemars(schema_with = "schema::bounded::<0, 18>")]
    pub decimals: i64,
}

/// Required finality of a block.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Finality {
    /// The newest block.
    #[default]
    Latest,
    /// The newest block that the chain reports as safe.
    Safe,
    /// The newest block that the chain reports as finalized.
    Finalized,
}

/// State of a PaymentNetwork, as observed by the operator.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentNetworkStatus {
    /// Generation of the spec that this status refers to.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// Whether the chain agreed with the spec; absent until it was read for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_check: Option<ChainCheck>,
    /// Seconds after which a payment has the finality `provisionAt`, as measured between the newest block and the newest
    /// one with this finality: the largest of about the last hour. Absent with `Latest`, and until it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub finality_seconds: Option<i64>,
    /// Condition types `Reachable` and, with a second RPC endpoint, `EndpointsAgree`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Whether the chain agreed with the spec when it was last read. Nothing is offered and no lease begins on a network unless
/// this is `Matches`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum ChainCheck {
    /// It does.
    Matches,
    /// The endpoint serves another chain.
    WrongChain,
    /// There is no Leasehold escrow contract at the address.
    NoEscrow,
    /// The token has another number of decimals, or tells none.
    WrongDecimals,
}

words! {
    /// Types of a PaymentNetwork's conditions.
    pub enum NetworkCondition {
        /// The network can be used.
        Reachable,
        /// Both RPC endpoints answer, and say the same. Not set with one endpoint.
        EndpointsAgree,
    }
}

words! {
    /// Reasons of a PaymentNetwork's conditions.
    pub enum NetworkReason {
        /// The endpoint answers.
        Reachable,
        /// The endpoint does not answer.
        Unreachable,
        /// The endpoint serves another chain.
        WrongChain,
        /// There is no Leasehold escrow contract at the address.
        NoEscrow,
        /// The token has another number of decimals, or tells none.
        WrongDecimals,
        /// `marketId` is missing, so that no lease is served on it.
        NoMarketId,
        /// Both endpoints say the same.
        Agree,
        /// They said different things of the same block.
        Disagree,
        /// One of them does not answer.
        OneFails,
    }
}

impl ConditionType for NetworkCondition {
    type Reason = NetworkReason;
}
