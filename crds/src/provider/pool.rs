//! GpuPool: what a provider sells.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::schema;

/// What this provider sells.
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
    doc = "What this provider sells: which nodes, at which price, on which terms.",
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
    /// Name of the GpuProvider whose pool it is, where several providers share a cluster; any, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub provider: Option<String>,
    /// Labels a node must have, at most 16; every GPU node, when empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::labels")]
    pub node_selector: BTreeMap<String, String>,
    /// GPU class sold; nodes of another class are left out. Any, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub class: Option<String>,
    /// Price of one GPU-hour in the network's token: `"1.85"`.
    #[schemars(schema_with = "schema::price")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("pricePerGpuHour: must be more than zero"))]
    pub price_per_gpu_hour: String,
    /// Name of the PaymentNetwork.
    #[schemars(schema_with = "schema::name")]
    pub network: String,
    /// Longest term sold.
    #[serde(default = "default_max_duration")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("maxDuration: from 10s to 8784h (366 days)"))]
    pub max_duration: String,
    /// Longest pause that storage is kept for when a lease's funds end; `0s` for none.
    #[serde(default = "default_max_pause")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8784h')").message("maxPause: at most 8784h (366 days)"))]
    pub max_pause: String,
    /// Longest that what a job left behind is kept on its volume after the end, free of charge; `0s` for not at all.
    #[serde(default = "default_max_keep_results_for")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('720h')").message("maxKeepResultsFor: at most 720h (30 days)"))]
    pub max_keep_results_for: String,
    /// Volumes for leases; none, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<PoolStorage>,
    /// RuntimeClass of the workloads, such as `nvidia`; the node's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub runtime_class_name: Option<String>,
    /// How ports of a lease are exposed.
    #[serde(default)]
    pub exposure: Exposure,
    /// When what running leases have earned is sent to the payee; only at the end of each lease, when absent. A later
    /// change holds for leases that run already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdraw: Option<Withdraw>,
    /// Hours of sale; always, when empty. Outside of them nothing new is accepted; what runs runs on.
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

/// Volumes for leases.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PoolStorage {
    /// StorageClass; the cluster's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::subdomain")]
    pub class_name: Option<String>,
    /// Largest volume of one node of a lease.
    #[schemars(schema_with = "schema::bytes")]
    #[x_kube(validation = Rule::new("self.matches('[1-9]')").message("storage.maxSize: must be more than zero"))]
    pub max_size: String,
}

/// When what a running lease has earned is sent to the payee. Each time is a transaction that the controller's key pays
/// for (about 65,000 gas), and what was sent can't be given back any more for a fault that is noticed later.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Withdraw {
    /// At most so often: once each so many served seconds of a share.
    #[serde(default = "default_withdraw_every")]
    #[schemars(schema_with = "schema::duration")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('8784h')").message("withdraw.every: from 10s to 8784h (366 days)"))]
    pub every: String,
    /// And only what is at least so much, in the network's token: `"10.00"`.
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

/// How ports of a lease are exposed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Exposure {
    /// A port of the nodes.
    #[default]
    NodePort,
    /// A load balancer of the provider's cluster.
    LoadBalancer,
}

/// A span of a week, in UTC.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from < self.to").message("hours: to must be later than from; a night is two spans").field_path(".to"))]
pub struct SaleHours {
    /// Days it holds on: `Mon`, `Tue`, `Wed`, `Thu`, `Fri`, `Sat`, `Sun`. Every day, when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Day>,
    /// First minute, `HH:MM` UTC.
    #[schemars(length(max = 5), regex(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub from: String,
    /// Minute it ends at, `HH:MM` UTC, later than `from`; `24:00` for the end of the day.
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

/// What became of a pool.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuPoolStatus {
    /// Generation of the spec that this status answers.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// Nodes of the pool.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 100000>")]
    pub nodes: i64,
    /// GPUs that can be sold now.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1000000>")]
    pub gpus_free: i64,
    /// Nodes that are not sold, each with the reason; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub not_sold: Vec<NotSold>,
    /// `Selling`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A node that is not sold.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotSold {
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// One word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What is wrong with it, for a person; absent where the word says all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
}
