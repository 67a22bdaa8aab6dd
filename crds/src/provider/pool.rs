//! GpuPool: nodes that a provider sells under the same terms.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{conditions::ConditionType, quantity, schema, words::words};

/// Nodes that a provider sells under the same terms.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "GpuPool",
    shortname = "gpool",
    status = "GpuPoolStatus",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    doc = "Nodes that a provider sells under the same terms: labels, GPU class, price, and limits.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63").message("metadata.name: at most 63 lower-case letters, digits and hyphens, because it names rows of the offer"),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.class"),
    printcolumn(name = "Price", type_ = "string", json_path = ".spec.pricePerGpuHour"),
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Free GPUs", type_ = "integer", json_path = ".status.gpusFree"),
    printcolumn(
        name = "Selling",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Selling')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuPoolSpec {
    /// Name of the GpuProvider that sells the pool, if several providers share a cluster. If absent, every provider of
    /// the cluster sells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub provider: Option<String>,
    /// Labels that a node must have, at most 16. If empty, every GPU node is selected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: BTreeMap<String, String>,
    /// GPU class of the pool. Nodes of another class are not sold. If absent, any class is sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub class: Option<String>,
    /// Price of one GPU-hour in whole tokens of the network: `"1.85"`.
    #[schemars(schema_with = "schema::price")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("pricePerGpuHour: must be more than zero"))]
    pub price_per_gpu_hour: String,
    /// Name of the PaymentNetwork in the same cluster.
    #[schemars(schema_with = "schema::name")]
    pub network: String,
    /// Longest term, from 10s to 8784h (366 days): `720h`.
    #[serde(default = "default_max_duration")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("maxDuration: from 10s to 8784h (366 days)"))]
    pub max_duration: String,
    /// Longest pause for which storage is kept when the funds of a lease are spent, at most 8784h (366 days). `0s`
    /// permits no pauses.
    #[serde(default = "default_max_pause")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8784h')").message("maxPause: at most 8784h (366 days)"))]
    pub max_pause: String,
    /// Longest time for which job results are kept on their volume, free of charge, at most 720h (30 days). `0s`
    /// permits no retention.
    #[serde(default = "default_max_keep_results_for")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('720h')").message("maxKeepResultsFor: at most 720h (30 days)"))]
    pub max_keep_results_for: String,
    /// Volumes for leases. If absent, leases cannot have volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<PoolStorage>,
    /// RuntimeClass of the workloads, such as `nvidia`. If absent, the default runtime of the node is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub runtime_class_name: Option<String>,
    /// What a lease can have at most with each of its GPUs, so that a lease of one GPU does not take a whole node. For
    /// CPU, memory and disk that are absent, the bound is the proportion of the node: what it allocates, divided by its GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_gpu: Option<MaxPerGpu>,
    /// Whether containers run in user namespaces.
    #[serde(default)]
    pub user_namespaces: UserNamespaces,
    /// Longest time within which a lease can require to start, free of charge, from 1m to 24h. It must suffice for the
    /// finality that the PaymentNetwork requires, and for pulling images. Defaults to 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('24h')").message("maxStartWithin: from 1m to 24h"))]
    pub max_start_within: Option<String>,
    /// Taints of the nodes that the pods of leases tolerate, beside `nvidia.com/gpu`, at most 16. Nodes with other taints
    /// are not sold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<PoolToleration>,
    /// How the ports of a lease are exposed.
    #[serde(default)]
    pub exposure: Exposure,
    /// When the earnings of running leases are sent to the payee. If absent, earnings are sent only at the end of each
    /// lease. A change also applies to running leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdraw: Option<Withdraw>,
    /// Hours of sale, at most 14 spans. Outside of them no new leases are accepted, and running leases continue. If
    /// empty, there is no restriction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 14))]
    pub hours: Vec<SaleHours>,
}

fn default_max_duration() -> String {
    "720h".into()
}

fn default_max_pause() -> String {
    "0s".into()
}

fn default_max_keep_results_for() -> String {
    "24h".into()
}

/// Volumes for leases of a pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PoolStorage {
    /// StorageClass of the volumes. If absent, the default of the cluster is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::subdomain")]
    pub class_name: Option<String>,
    /// Largest volume of one node of a lease in bytes: `1Ti`.
    #[serde(deserialize_with = "quantity::text")]
    #[schemars(schema_with = "schema::byte_quantity")]
    #[x_kube(validation = Rule::new("type(self) == string ? self.matches('[1-9]') : self > 0").message("storage.maxSize: must be more than zero"))]
    pub max_size: String,
}

/// What a lease can have at most with each of its GPUs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MaxPerGpu {
    /// CPU for each GPU: `"16"`.
    #[serde(
        default,
        deserialize_with = "quantity::optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::cpu_quantity")]
    pub cpu: Option<String>,
    /// Memory for each GPU in bytes: `128Gi`.
    #[serde(
        default,
        deserialize_with = "quantity::optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::byte_quantity")]
    pub memory: Option<String>,
    /// Ephemeral disk for each GPU in bytes: `200Gi`.
    #[serde(
        default,
        deserialize_with = "quantity::optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::byte_quantity")]
    pub ephemeral_storage: Option<String>,
    /// Volume for each GPU in bytes: `1Ti`. If absent, only `storage.maxSize` limits the volume.
    #[serde(
        default,
        deserialize_with = "quantity::optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::byte_quantity")]
    pub storage: Option<String>,
}

/// Whether containers run in user namespaces.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum UserNamespaces {
    /// On nodes whose runtime reports user namespaces, once a pod with one GPU has run in one there. A pod that ran is
    /// repeated when the node was restarted or its software changed.
    #[default]
    Auto,
    /// Never, where the GPU stack does not support them. Containers cannot run as root, and sessions are not sold.
    Never,
}

/// A taint that the pods of leases tolerate.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolToleration {
    /// Key of the taint: `sku`.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// Value of the taint. If absent, any value is tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// Effect of the taint: `NoSchedule` or `NoExecute`. If absent, both are tolerated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(NoSchedule|NoExecute)$"))]
    pub effect: Option<String>,
}

/// When the earnings of a running lease are sent to the payee. Each withdrawal is a transaction that the controller
/// pays for (about 65,000 gas). Withdrawn earnings cannot be credited for a fault that is detected later.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Withdraw {
    /// Minimum served time of a leg between two withdrawals, from 10s to 8784h (366 days): `168h`.
    #[serde(default = "default_withdraw_every")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("withdraw.every: from 10s to 8784h (366 days)"))]
    pub every: String,
    /// Minimum amount of a withdrawal in whole tokens of the network: `"10.00"`.
    #[serde(default = "default_withdraw_above")]
    #[schemars(schema_with = "schema::price")]
    pub above: String,
}

fn default_withdraw_every() -> String {
    "168h".into()
}

fn default_withdraw_above() -> String {
    "0".into()
}

/// How the ports of a lease are exposed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Exposure {
    /// A NodePort Service for each node of a lease.
    #[default]
    NodePort,
    /// A LoadBalancer Service for each node of a lease.
    LoadBalancer,
    /// Through the gateway of the market, to which this cluster's connector connects. Works behind NAT.
    Tunnel,
}

/// A daily span of hours in UTC.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from < self.to").message("hours: to must be later than from; use two spans for a night").field_path(".to"))]
pub struct SaleHours {
    /// Days of the span: `Mon`, `Tue`, `Wed`, `Thu`, `Fri`, `Sat`, `Sun`. If empty, every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Day>,
    /// Start of the span, `HH:MM` UTC.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// End of the span, `HH:MM` UTC, later than `from`. `24:00` is the end of the day.
    #[schemars(length(max = 5), regex(pattern = r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"))]
    pub to: String,
}

/// A day of the week.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// State of a pool, as observed by the provider operator.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuPoolStatus {
    /// Generation of the spec that this status refers to.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// Number of nodes of the pool.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 100000>")]
    pub nodes: i64,
    /// Number of GPUs that can be sold now.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1000000>")]
    pub gpus_free: i64,
    /// Nodes that are not sold, with the reason, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub not_sold: Vec<NotSold>,
    /// Whether pods with a GPU run in user namespaces, by node, at most 512. Only nodes with `userNamespaces: Auto` whose
    /// runtime reports user namespaces are listed. Containers are root only on nodes with the result `Proven`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub user_namespaces: Vec<UserNamespaceProof>,
    /// Condition types `Selling`, `RootAllowed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A node of a pool that is not sold.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotSold {
    /// Name of the Node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Reason in CamelCase.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Human-readable message. Absent if the reason is sufficient.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
}

/// Whether pods with a GPU run in user namespaces on a node, by a probe pod.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserNamespaceProof {
    /// Name of the Node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Result of the last probe.
    pub result: ProbeResult,
    /// Time of the result, RFC 3339. While a probe pod runs, the time at which it was created.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 40))]
    pub at: String,
    /// What was probed: the boot of the node, and the versions of kubelet, runtime, kernel and driver. If it changes, the
    /// node is probed again.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 384))]
    pub identity: String,
    /// Number of probes in a row that proved nothing. The next one waits for 10 minutes after the first of them, and twice
    /// as long after each further one, at most 6 hours.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1000>")]
    pub attempts: i64,
    /// Human-readable reason, in the words of the pod or of the cluster.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub message: String,
}

/// Result of the probe of a node.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ProbeResult {
    /// A pod with a GPU has run in a user namespace.
    Proven,
    /// A pod with a GPU did not run in a user namespace.
    Failed,
    /// A probe pod runs.
    Probing,
    /// The node was not probed, or the probe was interrupted.
    #[default]
    Unknown,
}

words! {
    /// Reasons of `status.notSold`. The reason of a condition of the GpuNode is used too, if that condition prevents the
    /// sale.
    pub enum NotSoldReason {
        /// The node has GPUs but no GpuNode.
        NoAgent,
        /// `spec.sell` of its GpuNode is `false`.
        NotForSale,
        /// The agent has not reported for one minute.
        AgentSilent,
        /// The agent has not evaluated the node yet.
        Unhealthy,
        /// Another node reports a GPU with the same UUID.
        DuplicateUuid,
        /// The node is not Ready, is cordoned, or has not the labels that the RuntimeClass requires.
        NotSchedulable,
        /// The node has a taint that workloads do not tolerate.
        Tainted,
        /// The runtime of the node does not have the handler of the RuntimeClass.
        NoRuntimeHandler,
        /// The class of the GPUs is not the class of the pool, or is not a name.
        OtherClass,
        /// Several containers can get the same GPU: time-slicing, MPS, or more advertised GPUs than the node has.
        SharedGpus,
        /// NVML reports no memory for a GPU, and nothing else states it.
        GpuMemoryUnknown,
        /// GPUs of the node are in MIG mode and cannot be sold by the slice.
        MigEnabled,
        /// The device plugin advertises fewer GPUs than the node has.
        GpusNotAdvertised,
        /// All GPUs are requested or reserved.
        NoGpuFree,
        /// The node has as many pods as its kubelet admits.
        NoPodFree,
        /// GPUs are free, but no CPU, memory or disk for a pod beside them.
        NoRoomFree,
        /// A pool that comes first in alphabetical order sells the node.
        SoldByAnotherPool,
    }
}

words! {
    /// Types of a GpuPool's conditions.
    pub enum PoolCondition {
        /// The pool is offered.
        Selling,
        /// Containers can be root on every node of the pool.
        RootAllowed,
    }
}

words! {
    /// Reasons of a GpuPool's conditions.
    pub enum PoolReason {
        /// The pool is offered.
        Offered,
        /// No node of the pool can be sold now.
        NothingFree,
        /// It is outside the hours of sale.
        OutsideHours,
        /// The cluster refused the pods of leases of several payers in a row.
        PodsRefused,
        /// There is no usable PaymentNetwork of that name.
        NoPaymentNetwork,
        /// Payments on the PaymentNetwork become final later than leases of the pool must start, or how late is unknown.
        FinalityTooSlow,
        /// There is no RuntimeClass of that name.
        NoRuntimeClass,
        /// Pods with a GPU run in user namespaces on every node whose runtime reports them.
        Proven,
        /// Pods with a GPU do not run in user namespaces on a node.
        ProbeFailed,
        /// Nodes have not been probed yet.
        Probing,
        /// The runtime of no node reports user namespaces.
        NotReported,
        /// The pool has `userNamespaces: Never`.
        NotPermitted,
    }
}

impl ConditionType for PoolCondition {
    type Reason = PoolReason;
}
