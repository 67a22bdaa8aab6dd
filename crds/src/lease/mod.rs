//! GpuLease: GPUs that a tenant rents for a term at a price, and the workload that runs on them.

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

/// GPUs for a time at a price: placed on providers that fit, paid by the second from an escrow, refunded at the end.
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
    doc = "GPUs for a time at a price: placed on providers that fit, paid by the second from an escrow, refunded at the end. Whoever may create one in a namespace can spend the wallet that the namespace opts in.",
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
    validation = Rule::new("!has(self.workload.job) || !has(self.workload.job.output) || has(self.storage)").message("workload.job.output is kept on the lease's volume: set storage too").field_path(".workload.job.output"),
    validation = Rule::new("!has(self.workload.job) || !has(self.workload.job.output) || !has(self.storage) || (self.workload.job.output.path + '/').startsWith(self.storage.mountPath.endsWith('/') ? self.storage.mountPath : self.storage.mountPath + '/')").message("workload.job.output.path must be storage.mountPath or below it").field_path(".workload.job.output.path"),
    validation = Rule::new("self.nodes == oldSelf.nodes").message("nodes is immutable: delete the lease and apply another").field_path(".nodes"),
    validation = Rule::new("self.perNode == oldSelf.perNode").message("perNode is immutable: delete the lease and apply another").field_path(".perNode"),
    validation = Rule::new("has(self.gpu) == has(oldSelf.gpu) && (!has(self.gpu) || self.gpu == oldSelf.gpu)").message("gpu is immutable: delete the lease and apply another").field_path(".gpu"),
    validation = Rule::new("has(self.placement) == has(oldSelf.placement) && (!has(self.placement) || self.placement == oldSelf.placement)").message("placement is immutable: delete the lease and apply another").field_path(".placement"),
    validation = Rule::new("has(self.storage) == has(oldSelf.storage) && (!has(self.storage) || self.storage == oldSelf.storage)").message("storage is immutable: delete the lease and apply another").field_path(".storage"),
    validation = Rule::new("self.workload == oldSelf.workload").message("workload is immutable: delete the lease and apply another").field_path(".workload"),
    validation = Rule::new("has(self.access) == has(oldSelf.access) && (!has(self.access) || self.access == oldSelf.access)").message("access is immutable: delete the lease and apply another").field_path(".access"),
    validation = Rule::new("duration(self.term.duration) >= duration(oldSelf.term.duration)").message("term.duration may only grow; to end early, delete the lease").field_path(".term.duration"),
    validation = Rule::new("self.payment.network == oldSelf.payment.network").message("payment.network is immutable: delete the lease and apply another").field_path(".payment.network"),
    validation = Rule::new("self.payment.wallet == oldSelf.payment.wallet").message("payment.wallet is immutable: delete the lease and apply another").field_path(".payment.wallet"),
    validation = Rule::new("self.payment.maxPricePerGpuHour == oldSelf.payment.maxPricePerGpuHour").message("payment.maxPricePerGpuHour is immutable: delete the lease and apply another").field_path(".payment.maxPricePerGpuHour"),
    validation = Rule::new("self.payment.onFundsEnd == oldSelf.payment.onFundsEnd").message("payment.onFundsEnd is immutable: delete the lease and apply another").field_path(".payment.onFundsEnd"),
    validation = Rule::new("has(self.payment.pauseFor) == has(oldSelf.payment.pauseFor) && (!has(self.payment.pauseFor) || self.payment.pauseFor == oldSelf.payment.pauseFor)").message("payment.pauseFor is immutable: delete the lease and apply another").field_path(".payment.pauseFor")
)]
pub struct GpuLeaseSpec {
    /// Nodes of the lease, all or nothing, 1 to 64.
    #[serde(default = "one")]
    #[schemars(schema_with = "schema::bounded::<1, 64>")]
    pub nodes: i64,
    /// What the lease takes of each of its nodes.
    pub per_node: NodeShape,
    /// Which GPUs will do; any, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequirements>,
    /// Where; anywhere, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// For how long.
    pub term: Term,
    /// A volume on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// What runs.
    pub workload: Workload,
    /// Who may reach into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// How it is paid.
    pub payment: Payment,
}

const fn one() -> i64 {
    1
}

/// Floors that a GPU must reach; versions compare as numbers, memory with the class's nominal size.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuRequirements {
    /// Classes of which one will do: `h100-80g-sxm`. Any, when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<16>")]
    pub classes: Vec<String>,
    /// Least memory of one GPU in bytes, against the nominal size: `80G`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bytes")]
    pub memory: Option<String>,
    /// Least CUDA compute capability: `"9.0"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::version")]
    pub compute_capability: Option<String>,
    /// Least CUDA version of the driver: `"12.4"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::version")]
    pub cuda: Option<String>,
}

/// Where a lease may go.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Regions of which one will do. Any, when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<16>")]
    pub regions: Vec<String>,
    /// Providers of which one will do. Any, when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<16>")]
    pub providers: Vec<String>,
    /// How the nodes of the lease spread over providers.
    #[serde(default)]
    pub spread: Spread,
}

/// How the nodes of a lease spread over providers.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Spread {
    /// The cheapest, whoever they are.
    #[default]
    Any,
    /// All nodes at one provider.
    SameProvider,
    /// Each node at a provider of its own.
    DistinctProviders,
}

/// For how long.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Term {
    /// Paid time, counted from the second the first node serves: `2h`. It may only grow; growing it adds funds.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("term.duration: from 10s to 8784h (366 days)"))]
    pub duration: String,
}

/// How a lease is paid.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.pauseFor) || self.onFundsEnd == 'Pause'").message("payment.pauseFor: only with onFundsEnd: Pause").field_path(".pauseFor"))]
pub struct Payment {
    /// Name of the PaymentNetwork.
    #[schemars(schema_with = "schema::name")]
    pub network: String,
    /// Most that one GPU-hour may cost, all legs together, in the network's token: `"1.90"`.
    #[schemars(schema_with = "schema::price")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("payment.maxPricePerGpuHour: must be more than zero"))]
    pub max_price_per_gpu_hour: String,
    /// The wallet that pays.
    pub wallet: Wallet,
    /// Adds funds before they end; never, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_up: Option<TopUp>,
    /// What happens when the funds end.
    #[serde(default)]
    pub on_funds_end: OnFundsEnd,
    /// How long a paused lease keeps its storage and waits for funds: `24h`; an hour when absent. Only with `onFundsEnd: Pause`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8784h')").message("payment.pauseFor: at most 8784h (366 days)"))]
    pub pause_for: Option<String>,
}

/// A key in a Secret of the lease's namespace.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wallet {
    /// Secret whose entry `privateKey` holds the payer's key (0x and 64 hexadecimal digits). A RoleBinding in
    /// this namespace must let the market's operator read this one Secret.
    #[schemars(schema_with = "schema::subdomain")]
    pub secret_name: String,
}

/// Adds funds before they end.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TopUp {
    /// Tops up when less paid time than this is left: `30m`.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8784h')").message("payment.topUp.whenRunwayBelow: at most 8784h (366 days)"))]
    pub when_runway_below: String,
    /// By how much paid time: `1h`.
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("payment.topUp.extendBy: from 10s to 8784h (366 days)"))]
    pub extend_by: String,
    /// Most that the lease may deposit in all, in whole tokens of the network: `"60"`.
    #[schemars(schema_with = "schema::price")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("payment.topUp.totalAtMost: must be more than zero"))]
    pub total_at_most: String,
}

/// What happens when the funds end.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum OnFundsEnd {
    /// The lease ends.
    #[default]
    Close,
    /// The workload stops, its storage stays for `pauseFor`, new funds resume it.
    Pause,
}

/// What the market's operator knows of a lease. It holds facts and intents, never a clock: what changes with
/// time alone is computed by who shows it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuLeaseStatus {
    /// Generation of the spec that this status answers.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// Where the lease is in its life.
    #[serde(default)]
    pub phase: Phase,
    /// Why it closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<CloseReason>,
    /// Number of the escrow account, from 1; grows only after the earlier one is closed or can't be opened any more.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1000000>")]
    pub round: i64,
    /// GPUs of the lease in all.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1024>")]
    pub gpus: i64,
    /// Names of the providers, joined by commas.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4200))]
    pub providers: String,
    /// What could be had, asked before any money moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quote: Option<Quote>,
    /// This round's account and who serves which leg of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escrow: Option<LeaseEscrow>,
    /// A write to the chain that was decided and is not yet seen there (stored before it is sent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// The account in money, as last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money: Option<AccountSummary>,
    /// How the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobResult>,
    /// Where the ports answer, at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub endpoints: Vec<Endpoint>,
    /// Where what the job left behind is fetched, one for each node; it stays when the lease is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub results: Vec<ResultsAt>,
    /// `Matched`, `Funded`, `Provisioned`, `Ready`, `ChainReachable`, `ProviderReachable`; `Settled` once a close failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Where a lease is in its life.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum Phase {
    /// Looking for offers that fit.
    #[default]
    Pending,
    /// Providers are asked, or have reserved; nothing is paid.
    Matched,
    /// The escrow is open.
    Funded,
    /// Providers make the workload ready; nothing is charged.
    Provisioning,
    /// The workload serves and is charged by the second.
    Active,
    /// The funds ended; storage is kept and new funds resume it.
    Suspended,
    /// The escrow is being closed, workloads are being stopped.
    Settling,
    /// Refunded and gone.
    Closed,
}

/// Why a lease closed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum CloseReason {
    /// All paid time was served.
    TermOver,
    /// The tenant deleted the lease.
    Deleted,
    /// The funds ended and nobody added any.
    FundsSpent,
    /// The job ended with exit code 0.
    JobSucceeded,
    /// The job ended with another exit code.
    JobFailed,
    /// The workload never became ready in time.
    NeverStarted,
    /// A provider stopped serving.
    ProviderStopped,
    /// The account was closed by somebody else, such as the payer.
    ClosedOnChain,
    /// A person gave up the account by the annotation `leasehold.dev/abandon`.
    Abandoned,
}

/// This round's account and who serves which leg of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LeaseEscrow {
    /// Terms of the account.
    pub terms: EscrowTerms,
    /// Unix time in seconds after which the account can't be opened any more.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub open_by: i64,
    /// Who serves leg 0, 1, …
    #[schemars(length(max = 16))]
    pub shares: Vec<Share>,
}

/// What one provider hosts of a lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Name of the GpuProvider.
    #[schemars(schema_with = "schema::name")]
    pub provider: String,
    /// Pool the offer's row came from.
    #[schemars(schema_with = "schema::name")]
    pub pool: String,
    /// GPU class.
    #[schemars(schema_with = "schema::name")]
    pub class: String,
    /// Namespace at the provider's cluster that its pods are in: for `kubectl logs` and `exec` by `access.subjects`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Nodes of the lease here, 1 to 64.
    #[schemars(schema_with = "schema::bounded::<1, 64>")]
    pub nodes: i64,
    /// Price of one GPU-hour in the network's token.
    #[schemars(schema_with = "schema::price")]
    pub price_per_gpu_hour: String,
}

/// A write to the chain that was decided and is not yet seen there.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Intent {
    /// What is to happen.
    pub action: IntentAction,
    /// Total that the account is to hold afterwards, base units; for `Open` and `Fund`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::amount")]
    pub total: Option<String>,
    /// When it was written, RFC 3339.
    #[schemars(length(max = 40))]
    pub written_at: String,
}

/// What an intent is to do.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum IntentAction {
    /// Open the account.
    Open,
    /// Fill it up to `total`.
    Fund,
    /// Close it.
    Close,
}

/// The account in money, as last read. Whoever shows it computes what is spent now.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct AccountSummary {
    /// All legs together, for people: `22.2 USDC/h`.
    #[schemars(length(max = 80))]
    pub rate: String,
    /// All legs together, 10⁻¹² base units per second.
    #[schemars(schema_with = "schema::amount")]
    pub rate_per_second: String,
    /// Total deposited, in whole tokens.
    #[schemars(length(max = 60))]
    pub deposited: String,
    /// When the first node began to serve, RFC 3339; absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub started_at: Option<String>,
    /// Until when the deposit pays, RFC 3339; absent before the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub paid_until: Option<String>,
    /// What legs earned, in whole tokens; set when the account is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 60))]
    pub spent: Option<String>,
    /// What went back to the payer, in whole tokens; set when the account is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 60))]
    pub refunded: Option<String>,
}

/// What could be had: the ten best offers, the ten nearest misses, and counts.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Quote {
    /// Offer rows that were looked at.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub considered: i64,
    /// The ten best rows that fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub offers: Vec<QuotedOffer>,
    /// The ten rows that nearly fit, each with every dimension that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub misses: Vec<Miss>,
    /// Rows that failed, by dimension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub counts: Vec<DimensionCount>,
}

/// A row that fits.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuotedOffer {
    /// Name of the GpuProvider.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// Pool of the row.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// GPU class.
    #[schemars(length(max = 63))]
    pub class: String,
    /// Nodes free that fit, when it was quoted.
    #[schemars(schema_with = "schema::bounded::<0, 1000000>")]
    pub nodes_free: i64,
    /// Price of one GPU-hour in the network's token.
    #[schemars(length(max = 60))]
    pub price_per_gpu_hour: String,
}

/// A row that does not fit, with every dimension that failed.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Miss {
    /// Name of the GpuProvider.
    #[schemars(length(max = 63))]
    pub provider: String,
    /// Pool of the row.
    #[schemars(length(max = 63))]
    pub pool: String,
    /// Every dimension that failed.
    #[schemars(length(max = 32))]
    pub failed: Vec<FailedDimension>,
}

/// What was wanted and what was there.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedDimension {
    /// Name of the dimension: `cpu`, `gpuMemory`, `price`, …
    #[schemars(length(max = 40))]
    pub dimension: String,
    /// What the lease wants.
    #[schemars(length(max = 256))]
    pub wanted: String,
    /// What the row has.
    #[schemars(length(max = 256))]
    pub found: String,
}

/// How many rows failed in one dimension.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DimensionCount {
    /// Name of the dimension.
    #[schemars(length(max = 40))]
    pub dimension: String,
    /// Rows that failed in it.
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub rows: i64,
}
