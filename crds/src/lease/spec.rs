//! What a tenant requests: nodes, GPUs, placement, term, workload and payment.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    status::GpuLeaseStatus,
    workload::{Access, NodeShape, Storage, Workload},
};
use crate::shared::{architecture::Architecture, quantity, schema};

/// A lease of GPUs for a term: placed on matching providers, paid by the second from an escrow account, refunded at the
/// end.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "GpuLease",
    namespaced,
    status = "GpuLeaseStatus",
    shortname = "gl",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    doc = "A lease of GPUs for a term: placed on matching providers, paid by the second from an escrow account, refunded at the end. Anyone who can create a GpuLease in a namespace can spend the wallet that the namespace permits the market operator to read.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.gpus"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.providers"),
    printcolumn(name = "Rate", type_ = "string", json_path = ".status.money.rate"),
    printcolumn(name = "Deposited", type_ = "string", json_path = ".status.money.deposited"),
    printcolumn(name = "Paid Until", type_ = "string", json_path = ".status.money.paidUntil"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.workload.job) || !has(self.workload.job.output) || has(self.storage)").message("workload.job.output requires a volume: set storage").field_path(".workload.job.output"),
    validation = Rule::new("!has(self.workload.job) || !has(self.workload.job.output) || !has(self.storage) || (self.workload.job.output.path + '/').startsWith(self.storage.mountPath.endsWith('/') ? self.storage.mountPath : self.storage.mountPath + '/')").message("workload.job.output.path must be storage.mountPath or below it").field_path(".workload.job.output.path"),
    validation = Rule::new("self.nodes == oldSelf.nodes").message("nodes is immutable: delete the lease and create another").field_path(".nodes"),
    validation = Rule::new("self.perNode == oldSelf.perNode").message("perNode is immutable: delete the lease and create another").field_path(".perNode"),
    validation = Rule::new("has(self.gpu) == has(oldSelf.gpu) && (!has(self.gpu) || self.gpu == oldSelf.gpu)").message("gpu is immutable: delete the lease and create another").field_path(".gpu"),
    validation = Rule::new("has(self.placement) == has(oldSelf.placement) && (!has(self.placement) || self.placement == oldSelf.placement)").message("placement is immutable: delete the lease and create another").field_path(".placement"),
    validation = Rule::new("has(self.storage) == has(oldSelf.storage) && (!has(self.storage) || self.storage == oldSelf.storage)").message("storage is immutable: delete the lease and create another").field_path(".storage"),
    validation = Rule::new("self.workload == oldSelf.workload").message("workload is immutable: delete the lease and create another").field_path(".workload"),
    validation = Rule::new("(has(self.access) && has(self.access.subjects) ? self.access.subjects : []) == (has(oldSelf.access) && has(oldSelf.access.subjects) ? oldSelf.access.subjects : [])").message("access.subjects is immutable: delete the lease and create another").field_path(".access"),
    validation = Rule::new("has(self.startWithin) == has(oldSelf.startWithin) && (!has(self.startWithin) || self.startWithin == oldSelf.startWithin)").message("startWithin is immutable: delete the lease and create another").field_path(".startWithin"),
    validation = Rule::new("duration(self.term.duration) >= duration(oldSelf.term.duration)").message("term.duration can only be increased; to end the lease early, delete it").field_path(".term.duration"),
    validation = Rule::new("self.payment.network == oldSelf.payment.network").message("payment.network is immutable: delete the lease and create another").field_path(".payment.network"),
    validation = Rule::new("self.payment.wallet == oldSelf.payment.wallet").message("payment.wallet is immutable: delete the lease and create another").field_path(".payment.wallet"),
    validation = Rule::new("self.payment.maxPricePerGpuHour == oldSelf.payment.maxPricePerGpuHour").message("payment.maxPricePerGpuHour is immutable: delete the lease and create another").field_path(".payment.maxPricePerGpuHour"),
    validation = Rule::new("self.payment.onFundsEnd == oldSelf.payment.onFundsEnd").message("payment.onFundsEnd is immutable: delete the lease and create another").field_path(".payment.onFundsEnd"),
    validation = Rule::new("has(self.payment.pauseFor) == has(oldSelf.payment.pauseFor) && (!has(self.payment.pauseFor) || self.payment.pauseFor == oldSelf.payment.pauseFor)").message("payment.pauseFor is immutable: delete the lease and create another").field_path(".payment.pauseFor")
)]
pub struct GpuLeaseSpec {
    /// Number of nodes, 1 to 64. The lease gets all of them or none.
    #[serde(default = "one")]
    #[schemars(schema_with = "schema::bounded::<1, 64>")]
    pub nodes: i64,
    /// Resources of each node.
    pub per_node: NodeShape,
    /// Minimum requirements for the GPUs. If absent, any GPU matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequirements>,
    /// Regions and providers that can host the lease. If absent, there is no restriction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Duration of the lease.
    pub term: Term,
    /// Time within which the lease must start after its deposit is due, from 1m to 24h: `1h`. Starting includes the
    /// finality that a provider requires and pulling images, and is free of charge. If it has not started by then, the
    /// deposit is refunded. Defaults to 15m. Offers that do not permit it are not considered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('24h')").message("startWithin: from 1m to 24h"))]
    pub start_within: Option<String>,
    /// A volume on each node. If absent, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// The workload that runs on each node.
    pub workload: Workload,
    /// Users and groups with access to the pods of the workload, and the token for its ports. If absent, nobody has access.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Payment of the lease.
    pub payment: Payment,
}

const fn one() -> i64 {
    1
}

/// Minimum requirements for a GPU. Versions are compared as numbers, memory with the nominal size of the class.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuRequirements {
    /// Accepted GPU classes, at most 16: `h100-80g-sxm`. If empty, any class matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<16>")]
    pub classes: Vec<String>,
    /// Minimum nominal memory of one GPU in bytes: `80G`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::optional_text"
    )]
    #[schemars(schema_with = "schema::byte_quantity")]
    pub memory: Option<String>,
    /// Minimum CUDA compute capability: `"9.0"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::version")]
    pub compute_capability: Option<String>,
    /// Minimum CUDA version of the driver: `"12.4"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::version")]
    pub cuda: Option<String>,
}

/// Restrictions on where a lease is placed.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Accepted regions, at most 16. If empty, any region matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<16>")]
    pub regions: Vec<String>,
    /// Names of accepted providers, at most 16. If empty, any provider matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<16>")]
    pub providers: Vec<String>,
    /// Names of providers that must not host the lease, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<16>")]
    pub exclude_providers: Vec<String>,
    /// Processor architectures for which the image is built: `amd64`, `arm64`. GH200, GB200 and GB10 are `arm64`. If
    /// empty, any architecture matches. Defaults to `[amd64]`.
    #[serde(default = "amd64")]
    #[schemars(length(max = 2))]
    pub architectures: Vec<Architecture>,
    /// How the nodes of the lease are distributed over providers.
    #[serde(default)]
    pub spread: Spread,
}

/// Architectures of a lease that names none.
#[must_use]
pub fn amd64() -> Vec<Architecture> {
    vec![Architecture::Amd64]
}

/// How the nodes of a lease are distributed over providers.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Spread {
    /// The cheapest offers, from any providers.
    #[default]
    Any,
    /// All nodes from one pool of one provider.
    SameProvider,
    /// Each node from a different provider.
    DistinctProviders,
}

/// Duration of the lease.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Term {
    /// Paid time, from 10s to 8784h (366 days), which starts when the first node serves: `2h`. It can only be
    /// increased, which adds funds.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("term.duration: from 10s to 8784h (366 days)"))]
    pub duration: String,
}

/// Payment of a lease.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.pauseFor) || self.onFundsEnd == 'Pause'").message("payment.pauseFor: only with onFundsEnd: Pause").field_path(".pauseFor"))]
pub struct Payment {
    /// Name of the PaymentNetwork in the same cluster.
    #[schemars(schema_with = "schema::name")]
    pub network: String,
    /// Maximum price of one GPU-hour in whole tokens of the network: `"1.90"`. Offers above it are not considered.
    #[schemars(schema_with = "schema::price")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("payment.maxPricePerGpuHour: must be more than zero"))]
    pub max_price_per_gpu_hour: String,
    /// The wallet that pays the deposit.
    pub wallet: Wallet,
    /// Adds funds automatically before they are spent. If absent, no funds are added automatically.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_up: Option<TopUp>,
    /// What happens when the funds are spent.
    #[serde(default)]
    pub on_funds_end: OnFundsEnd,
    /// How long a paused lease keeps its storage and waits for funds, at most 8784h (366 days): `24h`. Defaults to 1h.
    /// Only with `onFundsEnd: Pause`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8784h')").message("payment.pauseFor: at most 8784h (366 days)"))]
    pub pause_for: Option<String>,
}

/// A key in a Secret in the namespace of the lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wallet {
    /// Name of the Secret whose entry `privateKey` contains the payer's key (0x and 64 hexadecimal digits). A
    /// RoleBinding in this namespace must permit the market operator to read this Secret.
    #[schemars(schema_with = "schema::subdomain")]
    pub secret_name: String,
}

/// Adds funds before they are spent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TopUp {
    /// Funds are added when less paid time than this is left, at most 8784h (366 days): `30m`.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8784h')").message("payment.topUp.whenRunwayBelow: at most 8784h (366 days)"))]
    pub when_runway_below: String,
    /// Paid time that is added, from 10s to 8784h (366 days): `1h`.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("payment.topUp.extendBy: from 10s to 8784h (366 days)"))]
    pub extend_by: String,
    /// Maximum total deposit of the lease in whole tokens of the network: `"60"`.
    #[schemars(schema_with = "schema::price")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("payment.topUp.totalAtMost: must be more than zero"))]
    pub total_at_most: String,
}

/// What happens when the funds are spent.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnFundsEnd {
    /// The lease is closed.
    #[default]
    Close,
    /// The workload stops, its storage is kept for `pauseFor`, and new funds resume it.
    Pause,
}
