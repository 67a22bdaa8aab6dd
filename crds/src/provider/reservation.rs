//! GpuReservation: the provider's own record of an allocation that it accepted. It alone determines what runs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    lease::workload::{Endpoint, JobResult, ResultsAt},
    market::allocation::{AllocationPhase, GpuAllocationSpec, StopReason},
    payment::escrow::EscrowSnapshot,
    provider::pool::{Exposure, PoolToleration},
    shared::{conditions::ConditionType, schema, words::words},
};

/// The provider's own record of an allocation that it accepted.
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
    doc = "The provider's own record of an allocation that it accepted, in its own cluster. It alone determines what runs; objects of the market are requests.",
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
#[x_kube(validation = Rule::new("self.allocationUid == oldSelf.allocationUid && self.allocation.escrow == oldSelf.allocation.escrow && self.hosting == oldSelf.hosting").message("allocationUid, allocation.escrow and hosting are immutable"))]
pub struct GpuReservationSpec {
    /// Name of the market that created the allocation.
    #[schemars(schema_with = "schema::name")]
    pub market: String,
    /// Namespace of the allocation in the market cluster.
    #[schemars(schema_with = "schema::name")]
    pub allocation_namespace: String,
    /// Name of the allocation in the market cluster.
    #[schemars(length(min = 1, max = 253))]
    pub allocation_name: String,
    /// UID of the allocation in the market cluster.
    #[schemars(length(min = 1, max = 64))]
    pub allocation_uid: String,
    /// The allocation as it was accepted, so that it can be served without the market. `notAfter` follows increases of
    /// the market operator.
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub allocation: GpuAllocationSpec,
    /// Names of the reserved nodes, at most 64. Pods of the reservation are scheduled only to these nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "node_names")]
    pub nodes: Vec<String>,
    /// How the pods of the reservation are run.
    #[serde(default)]
    pub hosting: Hosting,
    /// Unix time in seconds until which an unpaid reservation is kept.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub deadline: i64,
    /// Whether the market operator has asked the provider to stop.
    #[serde(default)]
    pub release: bool,
}

/// How the pods of a reservation are run, according to the pool and the nodes at the time of the reservation. Later
/// changes to the pool have no effect on it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct Hosting {
    /// RuntimeClass of the pods. If absent, the default runtime of the node is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub runtime_class_name: Option<String>,
    /// StorageClass of the volumes. If absent, the default of the cluster is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// How the ports are exposed.
    #[serde(default)]
    pub exposure: Exposure,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<PoolToleration>,
    /// What the RuntimeClass takes for each pod, beside its containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead: Option<PodOverhead>,
    /// Whether the pods run in user namespaces. True if all reserved nodes support them.
    #[serde(default)]
    pub user_namespaces: bool,
    /// Upper limit of `notAfter` for all extensions, Unix time in seconds: the time of the reservation plus
    /// `maxDuration`, `maxPause` and `maxStartWithin` of the pool and one hour.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after_max: i64,
}

/// What a RuntimeClass takes for each pod.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodOverhead {
    /// CPU: `250m`.
    #[schemars(schema_with = "schema::cpu")]
    pub cpu: String,
    /// Memory in bytes: `120Mi`.
    #[schemars(schema_with = "schema::bytes")]
    pub memory: String,
    /// Ephemeral disk in bytes.
    #[schemars(schema_with = "schema::bytes")]
    pub ephemeral_storage: String,
}

fn node_names(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 253}})
}

/// State of a reservation, as observed by the provider operator.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuReservationStatus {
    /// Phase of the reservation. It never goes back, except between Active and Suspended.
    #[serde(default)]
    pub phase: AllocationPhase,
    /// The account as last read from the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escrow: Option<EscrowSnapshot>,
    /// A write to the chain that is stored before it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<LegIntent>,
    /// UUIDs of the GPUs that are bound to the pods, as reported by the kubelets, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "node_names")]
    pub gpu_uuids: Vec<String>,
    /// Unix time in seconds since which the chain cannot be read. Absent if it can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub chain_unreadable_since: Option<i64>,
    /// Unix time in seconds since which the workload is being started again, after a pause, after a fault, or because a pod is
    /// missing. Absent when its leg runs, or stands for another reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub resuming_since: Option<i64>,
    /// Whether the room of its pods is held again after a pause, in which it may have been promised to others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds_room: bool,
    /// Seconds that all earlier starts after an interruption took together. They limit how long the next one may take.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub resumed_seconds: i64,
    /// Whether the grace period for an unreadable chain has been used.
    #[serde(default)]
    pub grace_used: bool,
    /// Unix time in seconds since which a GPU or a node of the reservation is faulty. Absent without a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub fault_since: Option<i64>,
    /// Seconds that are still to be credited for the fault, or for the time since the stop. 0 when they have been credited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub credit_due: Option<i64>,
    /// Served seconds of the leg when the fault began, or when the workload had stopped. All that it serves beyond them is
    /// credited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub served_after_credit: Option<i64>,
    /// Served seconds of the leg when it was last started again. They are not credited for a fault that is detected later
    /// and began before. Absent if it had served none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub served_at_start: Option<i64>,
    /// The pods that ran when the leg was started last, at most 64. A pod that differs later was interrupted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub proven_pods: Vec<ProvenPod>,
    /// When pods were last created. Absent before the first creation, and after the pods were removed for a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_creations: Option<PodCreations>,
    /// Result of the job. Absent until the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobResult>,
    /// Addresses of the exposed ports, at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub endpoints: Vec<Endpoint>,
    /// Addresses from which the results of the job can be fetched, one per node, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub results: Vec<ResultsAt>,
    /// Unix time in seconds until which the results of the job are kept. It is set to an earlier time when they have
    /// been fetched. Absent while the job runs, and if nothing is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub results_until: Option<i64>,
    /// Unix time in seconds since which the market has no such allocation. Absent while it has, and while the market cannot
    /// be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub allocation_gone_since: Option<i64>,
    /// Why the reservation stops. Once it is set, the workload never runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Time at which the last pod had stopped, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub stopped_at: Option<String>,
    /// Condition types: `Reserved`, `Paid`, `Provisioned`, `Ready`, `GpusHealthy`, `ChainReachable`, `MarketReachable`; `Charged`
    /// after a write to the chain has failed; `ResultsServed` while the results of a job are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// A pod that ran when the leg was started.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProvenPod {
    /// UID of the pod.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Time since which its sandbox was ready, Unix time in seconds by the clock of its node.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub up_since: i64,
}

/// Creations of pods. The wait until the next one grows from 3 to 60 seconds with their number.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct PodCreations {
    /// Number of times in a row at which missing pods were created, each at most ten minutes after the one before.
    #[schemars(schema_with = "schema::bounded::<1, 1000>")]
    pub times: i64,
    /// Unix time in seconds of the last one.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub last_at: i64,
}

/// A write to the chain for the leg of this provider that is stored before it is sent.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LegIntent {
    /// Action to carry out.
    pub action: LegAction,
    /// For the action `Credit`: seconds that the leg has credited in total after it. A credit names a total, so a repeat
    /// credits nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub credited_total: Option<i64>,
    /// Time at which the intent was stored, RFC 3339.
    #[schemars(length(max = 40))]
    pub written_at: String,
}

/// Action of the controller of a leg.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum LegAction {
    /// Start the leg, because every container of the workload has run.
    Start,
    /// Pause the leg, because of a fault.
    Pause,
    /// Credit the seconds between the fault and the pause, or between the stop of the workload and the pause.
    Credit,
    /// End the leg permanently, because the workload has stopped.
    End,
    /// Send the earnings to the payee.
    Withdraw,
}

words! {
    /// Types of a GpuReservation's conditions; its GpuAllocation reports the same.
    pub enum ReservationCondition {
        /// Capacity is held.
        Reserved,
        /// The account holds the deposit.
        Paid,
        /// Every container has run, the GPUs are bound, and every port has an address: the leg is charged.
        Provisioned,
        /// The pods are ready.
        Ready,
        /// All GPUs are healthy.
        GpusHealthy,
        /// The chain can be read.
        ChainReachable,
        /// The market can be reached and has the allocation.
        MarketReachable,
        /// The leg's last transaction was mined; set once one failed.
        Charged,
        /// The job's results are served; set while they are kept.
        ResultsServed,
    }
}

words! {
    /// Reasons of a GpuReservation's conditions.
    pub enum ReservationReason {
        /// Capacity is held.
        Held,
        /// The capacity that was free in a pause is promised to others.
        RoomTaken,
        /// The deposit is in the account.
        Deposited,
        /// The account holds less than the deposit of the lease.
        DepositTooSmall,
        /// The payment is not yet in a block of the required finality.
        NotFinalYet,
        /// The terms cannot be read.
        BadTerms,
        /// The pods are ready.
        PodsReady,
        /// A pod is not ready.
        PodsNotReady,
        /// Every container has run, its GPUs are bound, and every port has an address.
        Started,
        /// A container has not run yet.
        ContainersNotStarted,
        /// Not all GPUs are reported as bound to the pods.
        GpusNotBound,
        /// A port has no address of a load balancer yet.
        EndpointPending,
        /// The reservation is stopping or has stopped.
        Stopped,
        /// The pods could not be read.
        Unknown,
        /// All GPUs are healthy.
        Healthy,
        /// A GPU is faulty.
        GpuFault,
        /// A node does not report.
        NodeLost,
        /// The state of the GPUs is unknown.
        AgentSilent,
        /// It answers.
        Reachable,
        /// It does not answer.
        Unreachable,
        /// The time of the newest block is far from the local clock.
        ClockOffset,
        /// The market has no such allocation.
        AllocationGone,
        /// The results are served.
        Served,
        /// The results are not served yet.
        NotServed,
        /// The transaction was mined.
        Mined,
        /// The transaction is not mined yet.
        Pending,
        /// The contract rejected the transaction.
        Refused,
        /// The controller holds too little native token.
        InsufficientGas,
        /// A ceiling of the PaymentNetwork does not permit the transaction.
        LimitExceeded,
        /// The controller holds too few tokens.
        InsufficientFunds,
    }
}

impl ConditionType for ReservationCondition {
    type Reason = ReservationReason;
}
