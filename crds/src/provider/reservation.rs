//! GpuReservation: the provider's durable truth of one allocation. It alone decides what runs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    lease::workload::{Endpoint, JobResult, ResultsAt},
    market::allocation::{AllocationPhase, GpuAllocationSpec},
    payment::escrow::EscrowSnapshot,
    provider::pool::Exposure,
    shared::schema,
};

/// The provider's durable truth of one allocation.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "GpuReservation",
    shortname = "gr",
    status = "GpuReservationStatus",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    doc = "The provider's durable truth of one allocation, kept in its own cluster: it alone decides what runs; market objects are requests.",
    printcolumn(name = "Lease", type_ = "string", json_path = ".spec.allocation.lease.name"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".spec.allocation.nodes"),
    printcolumn(
        name = "GPUs/Node",
        type_ = "integer",
        json_path = ".spec.allocation.perNode.gpus"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.allocationUid == oldSelf.allocationUid && self.allocation.escrow == oldSelf.allocation.escrow && self.hosting == oldSelf.hosting").message("a reservation is for one allocation and one account for ever, on the pool's terms as they were"))]
pub struct GpuReservationSpec {
    /// Name of the market the allocation came from.
    #[schemars(schema_with = "schema::name")]
    pub market: String,
    /// Namespace of the allocation on the market.
    #[schemars(schema_with = "schema::name")]
    pub allocation_namespace: String,
    /// Name of the allocation on the market.
    #[schemars(length(min = 1, max = 253))]
    pub allocation_name: String,
    /// Uid of the allocation on the market.
    #[schemars(length(min = 1, max = 64))]
    pub allocation_uid: String,
    /// The allocation as it was accepted, so that it is served on without the market. `notAfter` follows the
    /// market upwards.
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub allocation: GpuAllocationSpec,
    /// Nodes that were held for it; a pod may land on others of the pool with equal room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "node_names")]
    pub nodes: Vec<String>,
    /// How its pods are run.
    #[serde(default)]
    pub hosting: Hosting,
    /// Unix time in seconds until which an unpaid reservation is held.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub deadline: i64,
    /// The market's request to stop, taken over.
    #[serde(default)]
    pub release: bool,
}

/// How the pods of a share are run, by the pool and the nodes as they were when it was reserved: an edited pool changes
/// nothing that is paid for.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Hosting {
    /// RuntimeClass; the node's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub runtime_class_name: Option<String>,
    /// StorageClass of its volumes; the cluster's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// How its ports are exposed.
    #[serde(default)]
    pub exposure: Exposure,
    /// Whether its pods are in user namespaces: all of its nodes have them.
    #[serde(default)]
    pub user_namespaces: bool,
    /// Unix time in seconds after which nothing of it is paid for, however often it is extended: the pool's
    /// `maxDuration` from the beginning, pauses apart.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after_max: i64,
}

fn node_names(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 253}})
}

/// What became of a reservation.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuReservationStatus {
    /// How far it is; never goes back but between Active and Suspended.
    #[serde(default)]
    pub phase: AllocationPhase,
    /// The account as last read, with both clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escrow: Option<EscrowSnapshot>,
    /// A write to the chain that was decided and is not yet seen there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<LegIntent>,
    /// GPUs bound to the pods, by pod-resources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "node_names")]
    pub gpu_uuids: Vec<String>,
    /// Since when the chain could not be read, Unix time in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub chain_unreadable_since: Option<i64>,
    /// Whether the one grace for an unreadable chain is spent.
    #[serde(default)]
    pub grace_used: bool,
    /// Since when a GPU of this share is at fault, Unix time in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub fault_since: Option<i64>,
    /// Seconds to be given back for that fault; 0 when they have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub credit_due: Option<i64>,
    /// Served seconds that the chain will show once they have been given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub served_after_credit: Option<i64>,
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
    /// Unix time in seconds until which what the job left behind is kept; brought forward once it was fetched. Absent while
    /// the job runs, and where nothing is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub results_until: Option<i64>,
    /// Why the stop was decided; once set, nothing of it runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub stop_reason: Option<String>,
    /// When the last pod was gone, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub stopped_at: Option<String>,
    /// `Reserved`, `Paid`, `Ready`, `GpusHealthy`, `ChainReachable`, `MarketReachable`; `Charged` once a write to the chain
    /// failed, `ResultsServed` while a job's results are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A write to the chain for this provider's leg.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LegIntent {
    /// What is to happen.
    pub action: LegAction,
    /// When it was written, RFC 3339.
    #[schemars(length(max = 40))]
    pub written_at: String,
}

/// What a leg's controller can do.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum LegAction {
    /// The workload is ready: charge from now.
    Start,
    /// A fault: charge no more.
    Pause,
    /// Give back the seconds between the fault and the pause.
    Credit,
    /// The workload stopped early: charge no more, for good.
    End,
    /// Move what was earned to the payee.
    Withdraw,
}
