//! GpuAllocation: the share of a lease that one provider is asked to host.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    lease::{
        OnFundsEnd,
        workload::{Endpoint, JobResult, NodeShape, ResultsAt, Storage, Subject, Workload},
    },
    payment::escrow::EscrowTerms,
    shared::schema,
};

/// The share of a lease that one provider is asked to host.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "GpuAllocation",
    namespaced,
    status = "GpuAllocationStatus",
    shortname = "ga",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    doc = "The share of a lease that one provider is asked to host. The market's operator writes spec, the provider's operator writes status.",
    printcolumn(name = "Lease", type_ = "string", json_path = ".spec.lease.name"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".spec.nodes"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Release", type_ = "boolean", json_path = ".spec.release"),
    printcolumn(name = "Stopped", type_ = "string", json_path = ".status.stoppedAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.lease == oldSelf.lease && self.escrow == oldSelf.escrow && self.leg == oldSelf.leg && self.nodes == oldSelf.nodes && self.round == oldSelf.round").message("lease, escrow, leg, nodes and round are immutable"),
    validation = Rule::new("self.notAfter >= oldSelf.notAfter").message("notAfter is never lowered"),
    validation = Rule::new("!oldSelf.release || self.release").message("release is never taken back"),
    validation = Rule::new("!oldSelf.dropResults || self.dropResults").message("dropResults is never taken back")
)]
pub struct GpuAllocationSpec {
    /// The lease.
    pub lease: LeaseReference,
    /// Number of this placement of the lease, from 1: a replacement has a higher one.
    #[schemars(schema_with = "schema::bounded::<1, 1000000>")]
    pub round: i64,
    /// Terms of the account that pays; the provider asks the chain itself.
    pub escrow: EscrowTerms,
    /// Which leg of it is this provider's, from 0.
    #[schemars(schema_with = "schema::bounded::<0, 15>")]
    pub leg: i64,
    /// Deposit the account must hold before anything runs, base units.
    #[schemars(schema_with = "schema::amount")]
    pub deposit: String,
    /// Unix time in seconds after which the account can't be opened any more.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub open_by: i64,
    /// Pool of the offer's row.
    #[schemars(schema_with = "schema::name")]
    pub pool: String,
    /// GPU class.
    #[schemars(schema_with = "schema::name")]
    pub class: String,
    /// Price of one GPU-hour in the network's token, as offered.
    #[schemars(schema_with = "schema::price")]
    pub price_per_gpu_hour: String,
    /// Nodes to host, 1 to 64.
    #[schemars(schema_with = "schema::bounded::<1, 64>")]
    pub nodes: i64,
    /// Rank of the first of these nodes within the lease, from 0.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 63>")]
    pub first_rank: i64,
    /// What the lease takes of each node.
    pub per_node: NodeShape,
    /// A volume on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// What runs.
    pub workload: Workload,
    /// Who may reach into it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub subjects: Vec<Subject>,
    /// What happens when the funds end.
    #[serde(default)]
    pub on_funds_end: OnFundsEnd,
    /// Unix time in seconds at which the provider stops in any case; never lowered.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after: i64,
    /// Asks the provider to stop; never taken back.
    #[serde(default)]
    pub release: bool,
    /// With `release`: the tenant gave up the lease while its job ran, nothing of it is to be kept; never taken back.
    #[serde(default)]
    pub drop_results: bool,
}

/// Which lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaseReference {
    /// Namespace on the market.
    #[schemars(schema_with = "schema::name")]
    pub namespace: String,
    /// Name on the market.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Uid on the market.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// What the provider says of its share. It is a claim: money moves by the chain alone.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuAllocationStatus {
    /// Generation of the spec that this status answers.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// How far the provider is.
    #[serde(default)]
    pub phase: AllocationPhase,
    /// The provider's signed word that it has reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Acceptance>,
    /// Why the provider will not host it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declined: Option<Declined>,
    /// Unix time in seconds at which the provider stops in any case: `spec.notAfter`, or earlier where its pool sells no
    /// longer term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after: Option<i64>,
    /// How the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobResult>,
    /// Where the ports answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub endpoints: Vec<Endpoint>,
    /// Where what the job left behind is fetched, one for each node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub results: Vec<ResultsAt>,
    /// When the last pod of this share was gone, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub stopped_at: Option<String>,
    /// Why it stopped: a reason of the stop rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub stop_reason: Option<String>,
    /// `Reserved`, `Paid`, `Ready`, `GpusHealthy`, `ChainReachable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// How far the provider is with its share.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash, JsonSchema)]
pub enum AllocationPhase {
    /// Not looked at yet.
    #[default]
    Requested,
    /// Will not be hosted.
    Declined,
    /// Capacity is held; nothing runs.
    Reserved,
    /// Paid for; the workload is being made ready.
    Provisioning,
    /// Serving.
    Active,
    /// The funds ended; storage is kept.
    Suspended,
    /// Pods are going.
    Stopping,
    /// Nothing of it runs any more.
    Stopped,
}

/// The provider's signature over {escrow id, leg, rate, notAfter, deadline} by its controller key (EIP-712).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Acceptance {
    /// `notAfter` that was signed, Unix time in seconds.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after: i64,
    /// Until when the reservation waits for the money, Unix time in seconds.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub deadline: i64,
    /// 65 bytes, hexadecimal.
    #[schemars(length(max = 132), regex(pattern = r"^0x[0-9a-f]{130}$"))]
    pub signature: String,
}

/// Why a provider will not host a share.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Declined {
    /// One word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// For a person.
    #[schemars(length(max = 1100))]
    pub message: String,
}
