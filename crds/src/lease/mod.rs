//! GpuLease: GPUs that a tenant leases for a term at a price, and the workload that runs on them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    lease::workload::{Access, Endpoint, JobResult, NodeShape, ResultsAt, Storage, Workload},
    payment::escrow::EscrowTerms,
    shared::schema,
};

pub mod workload;

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
    validation = Rule::new("has(self.access) == has(oldSelf.access) && (!has(self.access) || self.access == oldSelf.access)").message("access is immutable: delete the lease and create another").field_path(".access"),
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
    /// A volume on each node. If absent, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// The workload that runs on each node.
    pub workload: Workload,
    /// Users and groups with access to the pods of the workload. If absent, nobody has access.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bytes")]
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
    /// How the nodes of the lease are distributed over providers.
    #[serde(default)]
    pub spread: Spread,
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

/// Observed state of a lease, written by the market operator. It contains no running totals; clients compute values
/// that change with time.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuLeaseStatus {
    /// Generation of the spec that this status refers to.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// Phase of the lease.
    #[serde(default)]
    pub phase: Phase,
    /// Why the lease was closed, or is being closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<CloseReason>,
    /// Number of the current round, from 1; 0 before the first round. Each round has its own escrow account. It
    /// increases only after the account of the previous round is closed or can no longer be opened.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1000000>")]
    pub round: i64,
    /// Total number of GPUs of the lease.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub gpus: i64,
    /// Names of the providers, separated by commas.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4200))]
    pub providers: String,
    /// Matching offers and near misses, determined before any money moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<Quote>,
    /// The escrow account of the current round, and the provider of each leg.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escrow: Option<LeaseEscrow>,
    /// A write to the chain that is stored before it is sent, and removed when the chain shows its effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// Summary of the account as last read from the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money: Option<AccountSummary>,
    /// Result of the job. Absent until the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobResult>,
    /// Addresses of the exposed ports, at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub endpoints: Vec<Endpoint>,
    /// Addresses from which the results of the job can be fetched, one per node, at most 64. They are kept when the
    /// lease is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub results: Vec<ResultsAt>,
    /// Condition types: `Matched`, `Funded`, `Provisioned`, `Ready`, `ChainReachable`, `ProviderReachable`; `Settled`
    /// after closing the account has failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Phase of a lease.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum Phase {
    /// Waiting for matching offers or for a wallet that can pay.
    #[default]
    Pending,
    /// Providers have been asked to reserve; nothing is paid.
    Matched,
    /// The escrow account is open.
    Funded,
    /// Providers are starting the workload; nothing is charged.
    Provisioning,
    /// The workload is served and charged by the second.
    Active,
    /// The funds are spent; storage is kept, and new funds resume the lease.
    Suspended,
    /// The workload is being stopped, and the account is being closed.
    Settling,
    /// The lease is over, and the remaining deposit is refunded.
    Closed,
}

/// Why a lease was closed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum CloseReason {
    /// All paid time of the term was served.
    TermOver,
    /// The tenant deleted the lease.
    Deleted,
    /// The funds were spent, and nobody added more.
    FundsSpent,
    /// The job ended with exit code 0.
    JobSucceeded,
    /// The job ended with another exit code.
    JobFailed,
    /// No leg was started in time.
    NeverStarted,
    /// A provider stopped before the end.
    ProviderStopped,
    /// The account was closed by somebody else, such as the payer.
    ClosedOnChain,
    /// A person released the lease with the annotation `leasehold.dev/abandon`.
    Abandoned,
}

/// The escrow account of the current round, and the provider of each leg.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LeaseEscrow {
    /// Terms of the account.
    pub terms: EscrowTerms,
    /// Unix time in seconds after which the account can no longer be opened.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub open_by: i64,
    /// The provider of each leg, in the order of the legs, at most 16.
    #[schemars(length(max = 16))]
    pub shares: Vec<Share>,
}

/// The part of a lease that one provider hosts.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Name of the GpuProvider.
    #[schemars(schema_with = "schema::name")]
    pub provider: String,
    /// Pool of the offer row.
    #[schemars(schema_with = "schema::name")]
    pub pool: String,
    /// GPU class.
    #[schemars(schema_with = "schema::name")]
    pub class: String,
    /// Namespace of the pods in the provider cluster, for `kubectl logs` and `exec` by `access.subjects`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Number of nodes of the lease at this provider, 1 to 64.
    #[schemars(schema_with = "schema::bounded::<1, 64>")]
    pub nodes: i64,
    /// Price of one GPU-hour in whole tokens of the network.
    #[schemars(schema_with = "schema::price")]
    pub price_per_gpu_hour: String,
}

/// A write to the chain that is stored before it is sent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Intent {
    /// Action to carry out.
    pub action: IntentAction,
    /// Total deposit of the account after the action, in base units. Set for `Open` and `Fund`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::amount")]
    pub total: Option<String>,
    /// Time at which the intent was stored, RFC 3339.
    #[schemars(length(max = 40))]
    pub written_at: String,
}

/// Action of an intent.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum IntentAction {
    /// Open the account.
    Open,
    /// Raise the deposit to `total`.
    Fund,
    /// Close the account.
    Close,
}

/// Summary of the account as last read from the chain. Clients compute the current cost from the rate.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct AccountSummary {
    /// Rate of all legs for display: `22.2 USDC/h`.
    #[schemars(length(max = 80))]
    pub rate: String,
    /// Rate of all legs in 10⁻¹² base units per second.
    #[schemars(schema_with = "schema::amount")]
    pub rate_per_second: String,
    /// Total deposit in whole tokens.
    #[schemars(length(max = 60))]
    pub deposited: String,
    /// Time at which the first node started to serve, RFC 3339. Absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub started_at: Option<String>,
    /// Time until which the deposit pays, RFC 3339. Absent before the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub paid_until: Option<String>,
    /// Earnings of all legs in whole tokens. Set when the account is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 60))]
    pub spent: Option<String>,
    /// Amount refunded to the payer in whole tokens. Set when the account is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 60))]
    pub refunded: Option<String>,
}

/// The ten best offers, the ten nearest misses, and the number of failures per dimension.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Quote {
    /// Number of offer rows that were considered.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub considered: i64,
    /// The ten best matching offer rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub offers: Vec<QuotedOffer>,
    /// The ten offer rows that failed in the fewest dimensions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub misses: Vec<Miss>,
    /// Number of failed offer rows per dimension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub counts: Vec<DimensionCount>,
}

/// An offer row that matches.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotedOffer {
    /// Name of the GpuProvider.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// Pool of the offer row.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// GPU class.
    #[schemars(length(max = 63))]
    pub class: String,
    /// Number of free matching nodes at the time of the quote.
    #[schemars(schema_with = "schema::bounded::<0, 1000000>")]
    pub nodes_free: i64,
    /// Price of one GPU-hour in whole tokens of the network.
    #[schemars(length(max = 60))]
    pub price_per_gpu_hour: String,
}

/// An offer row that does not match, with every dimension that failed.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Miss {
    /// Name of the GpuProvider.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// Pool of the offer row.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// Dimensions that failed, at most 32.
    #[schemars(length(max = 32))]
    pub failed: Vec<FailedDimension>,
}

/// A dimension in which an offer row does not meet the request.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedDimension {
    /// Name of the dimension: `cpu`, `gpuMemory`, `price`, …
    #[schemars(length(max = 40))]
    pub dimension: String,
    /// Value that the lease requests.
    #[schemars(length(max = 256))]
    pub wanted: String,
    /// Value of the offer row.
    #[schemars(length(max = 256))]
    pub found: String,
}

/// Number of offer rows that failed in one dimension.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DimensionCount {
    /// Name of the dimension.
    #[schemars(length(max = 40))]
    pub dimension: String,
    /// Number of offer rows that failed in it.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub rows: i64,
}
