//! GpuAllocation: the request of the market operator to one provider to host its part of a lease.

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
    shared::{schema, words::words},
};

/// The request of the market operator to one provider to host its part of a lease.
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
    doc = "The request of the market operator to one provider to host its part of a lease. The market operator writes the spec, and the provider operator writes the status.",
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
    validation = Rule::new("self.notAfter >= oldSelf.notAfter").message("notAfter cannot be lowered"),
    validation = Rule::new("!oldSelf.release || self.release").message("release cannot be reset"),
    validation = Rule::new("!oldSelf.dropResults || self.dropResults").message("dropResults cannot be reset")
)]
pub struct GpuAllocationSpec {
    /// The lease that the allocation belongs to.
    pub lease: LeaseReference,
    /// Round of the lease, from 1. The allocations of a later round have a higher number.
    #[schemars(schema_with = "schema::bounded::<1, 1000000>")]
    pub round: i64,
    /// Terms of the escrow account that pays. The provider reads the account from the chain itself.
    pub escrow: EscrowTerms,
    /// Number of this provider's leg in the terms, from 0 to 15.
    #[schemars(schema_with = "schema::bounded::<0, 15>")]
    pub leg: i64,
    /// Minimum deposit of the account before anything runs, in base units.
    #[schemars(schema_with = "schema::amount")]
    pub deposit: String,
    /// Unix time in seconds after which the account can no longer be opened.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub open_by: i64,
    /// Pool of the offer row.
    #[schemars(schema_with = "schema::name")]
    pub pool: String,
    /// GPU class.
    #[schemars(schema_with = "schema::name")]
    pub class: String,
    /// Price of one GPU-hour in whole tokens of the network, as offered.
    #[schemars(schema_with = "schema::price")]
    pub price_per_gpu_hour: String,
    /// Number of nodes to host, 1 to 64.
    #[schemars(schema_with = "schema::bounded::<1, 64>")]
    pub nodes: i64,
    /// Number of the first of these nodes within the lease, from 0 to 63.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 63>")]
    pub first_rank: i64,
    /// Resources of each node.
    pub per_node: NodeShape,
    /// A volume on each node. If absent, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// The workload that runs on each node.
    pub workload: Workload,
    /// Users and groups with access to the pods of the workload. If absent, nobody has access.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub subjects: Vec<Subject>,
    /// What happens when the funds are spent.
    #[serde(default)]
    pub on_funds_end: OnFundsEnd,
    /// Unix time in seconds at which the provider stops in any case. It is never lowered.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after: i64,
    /// Asks the provider to stop. It is never reset.
    #[serde(default)]
    pub release: bool,
    /// With `release`: results of the job are not kept, because the tenant deleted the lease while the job ran. It is
    /// never reset.
    #[serde(default)]
    pub drop_results: bool,
}

/// Reference to a lease.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaseReference {
    /// Namespace in the market cluster.
    #[schemars(schema_with = "schema::name")]
    pub namespace: String,
    /// Name in the market cluster.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID in the market cluster.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// State of the allocation, as reported by the provider. Payments do not depend on it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuAllocationStatus {
    /// Generation of the spec that this status refers to.
    #[serde(default)]
    #[schemars(schema_with = "schema::bounded::<0, 9007199254740991>")]
    pub observed_generation: i64,
    /// Phase of the allocation.
    #[serde(default)]
    pub phase: AllocationPhase,
    /// Signed acceptance of the provider. Set when capacity is reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Acceptance>,
    /// Why the provider declined. Absent unless it declined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declined: Option<Declined>,
    /// Unix time in seconds at which the provider stops in any case: `spec.notAfter`, or earlier if its pool does not
    /// sell a term of that length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after: Option<i64>,
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
    /// Time at which the last pod had stopped, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub stopped_at: Option<String>,
    /// Why the provider stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// The conditions of the GpuReservation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

words! {
    /// Phase of an allocation and of its reservation.
    #[derive(Serialize, Deserialize, Default, JsonSchema)]
    pub enum AllocationPhase {
        /// Not processed by the provider yet.
        #[default]
        Requested,
        /// Declined by the provider.
        Declined,
        /// Capacity is reserved; nothing runs.
        Reserved,
        /// Paid; the workload is being started.
        Provisioning,
        /// The workload is served and charged.
        Active,
        /// The funds are spent; storage is kept.
        Suspended,
        /// Pods are being stopped.
        Stopping,
        /// No pods run.
        Stopped,
    }
}

impl AllocationPhase {
    /// Nothing is paid yet, or never will be.
    #[must_use]
    pub const fn is_unpaid(self) -> bool {
        match self {
            Self::Requested | Self::Declined | Self::Reserved => true,
            Self::Provisioning | Self::Active | Self::Suspended | Self::Stopping | Self::Stopped => false,
        }
    }

    /// The workload is prepared or serves.
    #[must_use]
    pub const fn is_running(self) -> bool {
        match self {
            Self::Provisioning | Self::Active => true,
            Self::Requested
            | Self::Declined
            | Self::Reserved
            | Self::Suspended
            | Self::Stopping
            | Self::Stopped => false,
        }
    }

    /// The provider is stopping or has stopped.
    #[must_use]
    pub const fn is_over(self) -> bool {
        match self {
            Self::Stopping | Self::Stopped => true,
            Self::Requested
            | Self::Declined
            | Self::Reserved
            | Self::Provisioning
            | Self::Active
            | Self::Suspended => false,
        }
    }
}

words! {
    /// Why a provider stops hosting an allocation.
    #[derive(Serialize, Deserialize, JsonSchema)]
    pub enum StopReason {
        /// The market released the allocation.
        Released,
        /// The reservation was deleted.
        ReservationDeleted,
        /// The account was closed.
        AccountClosed,
        /// The leg did not start in time.
        NeverStarted,
        /// Whether the leg started in time could not be read.
        StartUnknown,
        /// The leg did not start again in time, after a pause or because pods were missing.
        NotResumed,
        /// The account has other terms.
        AccountMismatch,
        /// The unpaid allocation was deleted.
        AllocationGone,
        /// The deposit was not paid in time.
        Unpaid,
        /// Whether the deposit was paid could not be read.
        PaymentUnknown,
        /// The funds are spent.
        FundsSpent,
        /// The funds are spent, and the pause is over.
        PauseOver,
        /// `notAfter` has passed.
        NotAfter,
        /// The chain could not be read until the end of the paid time and the grace.
        FundsUnknown,
        /// The terms cannot be read.
        BadTerms,
        /// The API server stored the pods without the isolation that was asked for.
        IsolationDropped,
    }
}

/// The signature of the provider's controller key over {escrow id, leg, rate, notAfter, deadline} (EIP-712).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Acceptance {
    /// The signed `notAfter`, Unix time in seconds.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub not_after: i64,
    /// Unix time in seconds until which the reservation waits for the deposit.
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub deadline: i64,
    /// The signature, 65 bytes in hexadecimal.
    #[schemars(length(max = 132), regex(pattern = r"^0x[0-9a-f]{130}$"))]
    pub signature: String,
}

words! {
    /// Why a provider declines an allocation.
    pub enum DeclineReason {
        /// `openBy` is in the past or too far ahead.
        BadDeadline,
        /// The pool's price cannot be read.
        BadPrice,
        /// The results that the job asks to keep cannot be served.
        BadResults,
        /// A quantity of the allocation cannot be read.
        BadShape,
        /// The terms cannot be read, or have no such leg.
        BadTerms,
        /// The deposit does not pay for the time between `startBy` and `notAfter`.
        DepositTooSmall,
        /// The name of the allocation does not follow from its account and leg.
        NameMismatch,
        /// The pool's PaymentNetwork cannot be used.
        NoPaymentNetwork,
        /// Too few nodes have the capacity.
        NoRoom,
        /// The pool is outside its hours of sale, or paused.
        NotSelling,
        /// Chain, escrow contract or token are not the pool's.
        OtherMoney,
        /// The leg pays another address, or another key controls it.
        OtherPayee,
        /// The pause is longer than the pool sells.
        PauseTooLong,
        /// The cluster refuses the pods of the workload.
        PodsRefused,
        /// The leg's rate is below the pool's price.
        PriceTooLow,
        /// A variable of the workload has a name that is reserved for the provider, or names are not unique.
        ReservedVariable,
        /// The results are to be kept longer than the pool sells.
        ResultsTooLong,
        /// Too few nodes support user namespaces.
        RootNotAllowed,
        /// `startBy` is later after `openBy` than the pool permits.
        StartTooLate,
        /// The volume is larger than the pool sells.
        StorageTooLarge,
        /// The lease asks for more beside each GPU than the pool sells.
        BeyondMaxPerGpu,
        /// The term is longer than the pool sells.
        TooLong,
        /// The provider has no such pool.
        UnknownPool,
    }
}

/// Why a provider declined an allocation.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Declined {
    /// Reason in CamelCase.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Human-readable message.
    #[schemars(length(max = 1100))]
    pub message: String,
}
