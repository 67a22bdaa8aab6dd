//! PaymentNetwork: which money, on which chain, by which contract, and when a block counts.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// Which money, on which chain, by which contract, and when a block counts.
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
    doc = "Which money, on which chain, by which contract, and when a block counts. Each side keeps its own and takes none from the other.",
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
    validation = Rule::new("self.chainId == oldSelf.chainId").message("chainId is immutable: make another PaymentNetwork").field_path(".chainId"),
    validation = Rule::new("self.escrow == oldSelf.escrow").message("escrow is immutable: make another PaymentNetwork").field_path(".escrow"),
    validation = Rule::new("self.token == oldSelf.token").message("token is immutable: make another PaymentNetwork").field_path(".token"),
    validation = Rule::new("!has(oldSelf.marketId) || (has(self.marketId) && self.marketId == oldSelf.marketId)").message("marketId is immutable once it is set, because accounts are sought by it: make another PaymentNetwork").field_path(".marketId"),
    validation = Rule::new("has(self.rpcUrl) != has(self.rpcSecretName)").message("set exactly one of rpcUrl and rpcSecretName").field_path(".rpcUrl")
)]
pub struct PaymentNetworkSpec {
    /// EIP-155 chain id; every answer of the RPC is checked against it.
    #[schemars(schema_with = "schema::bounded::<1, 9007199254740991>")]
    pub chain_id: i64,
    /// URL of a JSON-RPC endpoint, where it is no secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https?://[!-~]+$"))]
    pub rpc_url: Option<String>,
    /// Secret in the operator's namespace whose entry `url` is the JSON-RPC endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::subdomain")]
    pub rpc_secret_name: Option<String>,
    /// Address of the escrow contract.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("escrow: the zero address is nobody's"))]
    pub escrow: String,
    /// The token.
    pub token: Token,
    /// Address that names this market in every account; needed by the market's operator only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("marketId: the zero address is nobody's"))]
    pub market_id: Option<String>,
    /// Which block counts before a provider begins to provision.
    #[serde(default)]
    pub provision_at: Finality,
    /// How long a provider serves on, at most once per lease, when the chain can't be read at `paidUntil`: `10m`.
    #[serde(default = "default_grace")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('168h')").message("outageGrace: at most 168h (a week)"))]
    pub outage_grace: String,
}

fn default_grace() -> String {
    "10m".into()
}

/// An ERC-20 token that neither takes a fee on transfer nor rebases.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Address of the contract.
    #[schemars(schema_with = "schema::address")]
    #[x_kube(validation = Rule::new("!self.matches('^0x0{40}$')").message("token.address: the zero address is nobody's"))]
    pub address: String,
    /// Symbol, for people: `USDC`.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[^\p{C}\p{Z}]+$"))]
    pub symbol: String,
    /// Decimals, 0 to 18.
    #[schemars(schema_with = "schema::bounded::<0, 18>")]
    pub decimals: i64,
}

/// Which block counts.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Finality {
    /// The newest block.
    #[default]
    Latest,
    /// The newest block the chain calls safe.
    Safe,
    /// The newest block the chain calls final.
    Finalized,
}

/// What the operator finds of a network.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentNetworkStatus {
    /// Generation of the spec that this status answers.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// `Reachable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}
