//! GpuOffer: the capacity that one provider offers.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    provider::pool::{Exposure, MaxPerGpu},
    shared::{architecture::Architecture, schema},
};

/// The capacity that one provider offers. A coordination Lease with the same name shows that the provider is alive.
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
    doc = "The capacity that one provider offers, written by the provider operator. A coordination Lease with the same name shows that the provider is alive.",
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Classes", type_ = "string", json_path = ".spec.summary.classes"),
    printcolumn(name = "Price", type_ = "string", json_path = ".spec.summary.prices"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".spec.summary.gpusFree"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuOfferSpec {
    /// Region of the provider, at most 63 characters: `eu-west`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub region: String,
    /// Offer rows, at most 64.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rows: Vec<OfferRow>,
    /// The rows in short, for `kubectl get`. Nothing is decided by it.
    #[serde(default)]
    pub summary: OfferSummary,
}

/// The rows of an offer in short.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferSummary {
    /// Classes of the rows: `a100-80g-pcie, h100-80g-sxm`.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub classes: String,
    /// Prices of one GPU-hour in whole tokens, in the order of the classes: `1.20, 1.85`; lowest and highest if the rows of a
    /// class differ: `1.20-1.40`.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub prices: String,
    /// Free GPUs of all rows.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub gpus_free: i64,
}

/// Nodes of one pool with equal free resources.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferRow {
    /// Name of the GpuPool.
    #[schemars(schema_with = "schema::name")]
    pub pool: String,
    /// GPU class.
    #[schemars(schema_with = "schema::name")]
    pub class: String,
    /// Number of nodes with these free resources.
    #[schemars(schema_with = "schema::bounded::<0, 100000>")]
    pub nodes_free: i64,
    /// Free GPUs of each node, 0 to 16.
    #[schemars(schema_with = "schema::bounded::<0, 16>")]
    pub gpus: i64,
    /// Free CPU of each node: `"32"`, `"500m"`.
    #[schemars(schema_with = "schema::cpu")]
    pub cpu: String,
    /// Free memory of each node in bytes: `128Gi`.
    #[schemars(schema_with = "schema::bytes")]
    pub memory: String,
    /// Free ephemeral disk of each node in bytes: `200Gi`.
    #[schemars(schema_with = "schema::bytes")]
    pub ephemeral_storage: String,
    /// Largest volume in bytes: `1Ti`. Absent if the pool has no volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bytes")]
    pub storage: Option<String>,
    /// What a lease can have at most with each of its GPUs. Absent values have no bound.
    #[serde(default)]
    pub max_per_gpu: MaxPerGpu,
    /// Processor architecture of the nodes. Absent if it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// Nominal memory of one GPU in bytes: `80G`.
    #[schemars(schema_with = "schema::bytes")]
    pub gpu_memory: String,
    /// CUDA compute capability: `9.0`.
    #[schemars(schema_with = "schema::version")]
    pub compute_capability: String,
    /// CUDA version of the driver: `12.4`.
    #[schemars(schema_with = "schema::version")]
    pub cuda: String,
    /// Price of one GPU-hour in whole tokens of the network.
    #[schemars(schema_with = "schema::price")]
    pub price_per_gpu_hour: String,
    /// Chain, contract and token in which the provider is paid, according to its own PaymentNetwork.
    pub payment: PaymentIdentity,
    /// Longest term: `720h`.
    #[schemars(schema_with = "schema::duration")]
    pub max_duration: String,
    /// Longest pause for which storage is kept: `24h`. `0s` if pauses are not offered.
    #[schemars(schema_with = "schema::duration")]
    pub max_pause: String,
    /// Longest time for which job results are kept: `24h`. `0s` if results are not kept.
    #[serde(default = "not_at_all")]
    #[schemars(schema_with = "schema::duration")]
    pub max_keep_results_for: String,
    /// Longest `startWithin` of a lease: `1h`.
    #[serde(default = "default_max_start_within")]
    #[schemars(schema_with = "schema::duration")]
    pub max_start_within: String,
    /// Whether containers can run as root, in user namespaces. Sessions and workloads without `runAsUser` require it.
    #[serde(default)]
    pub root_allowed: bool,
    /// How the ports and the results of a lease are exposed. With `Tunnel`, the market needs a gateway.
    #[serde(default)]
    pub exposure: Exposure,
}

fn default_max_start_within() -> String {
    "15m".into()
}

fn not_at_all() -> String {
    "0s".into()
}

/// Identifies the money of a payment. Two PaymentNetworks match if all fields are equal.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentIdentity {
    /// EIP-155 chain ID.
    #[schemars(schema_with = "schema::bounded::<1, 9007199254740991>")]
    pub chain_id: i64,
    /// Address of the escrow contract.
    #[schemars(schema_with = "schema::address")]
    pub escrow: String,
    /// Address of the ERC-20 token.
    #[schemars(schema_with = "schema::address")]
    pub token: String,
}
