//! GpuOffer: what can be had of one provider now.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// What can be had of one provider now. A Lease object of the same name beside it says that the provider lives.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "GpuOffer",
    namespaced,
    shortname = "go",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    doc = "What can be had of one provider now, written by its operator. A coordination Lease of the same name beside it says that the provider lives.",
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Classes", type_ = "string", json_path = ".spec.rows[*].class"),
    printcolumn(name = "Free", type_ = "string", json_path = ".spec.rows[*].nodesFree"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuOfferSpec {
    /// Region of the provider: `eu-west`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub region: String,
    /// At most 64 rows.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rows: Vec<OfferRow>,
}

/// Nodes of one pool with equal room.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferRow {
    /// Pool.
    #[schemars(schema_with = "schema::name")]
    pub pool: String,
    /// GPU class.
    #[schemars(schema_with = "schema::name")]
    pub class: String,
    /// Nodes with at least this room.
    #[schemars(schema_with = "schema::bounded::<0, 100000>")]
    pub nodes_free: i64,
    /// Free GPUs of each node.
    #[schemars(schema_with = "schema::bounded::<0, 16>")]
    pub gpus: i64,
    /// Free CPU of each node.
    #[schemars(schema_with = "schema::cpu")]
    pub cpu: String,
    /// Free memory of each node.
    #[schemars(schema_with = "schema::bytes")]
    pub memory: String,
    /// Free scratch disk of each node.
    #[schemars(schema_with = "schema::bytes")]
    pub ephemeral_storage: String,
    /// Largest volume a lease may have here; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bytes")]
    pub storage: Option<String>,
    /// Nominal memory of one GPU.
    #[schemars(schema_with = "schema::bytes")]
    pub gpu_memory: String,
    /// CUDA compute capability.
    #[schemars(schema_with = "schema::version")]
    pub compute_capability: String,
    /// CUDA version of the driver.
    #[schemars(schema_with = "schema::version")]
    pub cuda: String,
    /// Price of one GPU-hour in the network's token.
    #[schemars(schema_with = "schema::price")]
    pub price_per_gpu_hour: String,
    /// Chain, contract and token the provider wants to be paid by, by its own PaymentNetwork.
    pub payment: PaymentIdentity,
    /// Longest term it sells.
    #[schemars(schema_with = "schema::duration")]
    pub max_duration: String,
    /// Longest pause it keeps storage for; `0s` when none.
    #[schemars(schema_with = "schema::duration")]
    pub max_pause: String,
    /// Longest it keeps what a job left behind; `0s` when not at all.
    #[serde(default = "not_at_all")]
    #[schemars(schema_with = "schema::duration")]
    pub max_keep_results_for: String,
    /// Whether a session may be root inside a user namespace.
    #[serde(default)]
    pub root_allowed: bool,
}

fn not_at_all() -> String {
    "0s".into()
}

/// Two sides speak of the same money when these are equal.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentIdentity {
    /// EIP-155 chain id.
    #[schemars(schema_with = "schema::bounded::<1, 9007199254740991>")]
    pub chain_id: i64,
    /// Escrow contract.
    #[schemars(schema_with = "schema::address")]
    pub escrow: String,
    /// ERC-20 token.
    #[schemars(schema_with = "schema::address")]
    pub token: String,
}
