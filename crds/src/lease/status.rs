//! What the market's operator reports of a lease: its phase, account, summary, and what it waits for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    quote::Quote,
    workload::{Endpoint, JobResult, ResultsAt},
};
use crate::{
    payment::escrow::EscrowTerms,
    shared::{schema, words::words},
};

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
    /// Why the lease cannot proceed while nothing is paid; absent once it is matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_on: Option<Blocker>,
    /// Earliest start of the next round, RFC 3339; set when a round ended without a deposit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub retry_after: Option<String>,
    /// Number of rounds that ended because a leg was not started in time. The lease is closed after the third.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "schema::bounded::<0, 3>")]
    pub unstarted_rounds: i64,
    /// Providers that did not start their legs in these rounds, at most 48. The lease is not placed there again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<48>")]
    pub excluded_providers: Vec<String>,
    /// Excluded providers in whose rounds nobody started a leg, at most 48. If another provider starts the lease, they count
    /// as providers that do not start what they accept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names::<48>")]
    pub suspected_providers: Vec<String>,
    /// What legs earned in rounds that ended because another leg was not started in time, in whole tokens. Absent if
    /// nothing was earned. `money.spent` does not include it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 60))]
    pub spent_earlier: Option<String>,
    /// Whether an account that the lease had before its status was lost has been looked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovery_checked: bool,
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
    /// SHA-256 digest of the token in `spec.access.tokenSecret`, 64 hexadecimal digits. Absent if there is no usable token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub access_token_sha256: Option<String>,
    /// Addresses from which the results of the job can be fetched, one per node, at most 64. They are kept when the
    /// lease is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub results: Vec<ResultsAt>,
    /// Condition types: `Matched`, `Funded`, `Provisioned`, `Ready`, `ChainReachable`, `ProviderReachable`; `Settled`
    /// when the account is closed, or closing it has failed; `TokenPublished` if the lease names a Secret with a token, or a
    /// URL requires one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

impl GpuLeaseStatus {
    /// Whether the intent of that action is stored.
    #[must_use]
    pub fn intends(&self, action: IntentAction) -> bool {
        self.intent.as_ref().is_some_and(|intent| intent.action == action)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &i64) -> bool {
    *number == 0
}

words! {
    /// Phase of a lease.
    #[derive(Serialize, Deserialize, Default, JsonSchema)]
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
}

impl Phase {
    /// Nothing is paid yet.
    #[must_use]
    pub const fn is_unpaid(self) -> bool {
        match self {
            Self::Pending | Self::Matched => true,
            Self::Funded
            | Self::Provisioning
            | Self::Active
            | Self::Suspended
            | Self::Settling
            | Self::Closed => false,
        }
    }

    /// No leg has been started yet.
    #[must_use]
    pub const fn is_unstarted(self) -> bool {
        match self {
            Self::Pending | Self::Matched | Self::Funded | Self::Provisioning => true,
            Self::Active | Self::Suspended | Self::Settling | Self::Closed => false,
        }
    }

    /// The account is open, and nothing has begun to end it.
    #[must_use]
    pub const fn is_paid(self) -> bool {
        match self {
            Self::Funded | Self::Provisioning | Self::Active | Self::Suspended => true,
            Self::Pending | Self::Matched | Self::Settling | Self::Closed => false,
        }
    }

    /// Nothing happens any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        match self {
            Self::Closed => true,
            Self::Pending
            | Self::Matched
            | Self::Funded
            | Self::Provisioning
            | Self::Active
            | Self::Suspended
            | Self::Settling => false,
        }
    }
}

words! {
    /// Why a lease was closed.
    #[derive(Serialize, Deserialize, JsonSchema)]
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
        /// A leg was not started in time.
        NeverStarted,
        /// A provider stopped before the end.
        ProviderStopped,
        /// The account was closed by somebody else, such as the payer.
        ClosedOnChain,
        /// A person released the lease with the annotation `leasehold.dev/abandon`.
        Abandoned,
    }
}

words! {
    /// Why a lease cannot proceed.
    #[derive(Serialize, Deserialize, JsonSchema)]
    pub enum Blocker {
        /// A field of the spec cannot be served.
        InvalidSpec,
        /// There is no usable PaymentNetwork of that name.
        NetworkNotFound,
        /// The PaymentNetwork cannot be read.
        NetworkUnknown,
        /// The chain cannot be read.
        ChainUnreachable,
        /// No offer matches.
        NoOffer,
        /// Too many leases of the namespace wait for their deposit.
        TooManyUnfunded,
        /// The provider has too many unanswered allocations.
        Queued,
        /// The wallet could not be read.
        WalletUnknown,
        /// The wallet does not exist, or the market may not read it.
        WalletNotReadable,
        /// The wallet holds no key.
        WalletMalformed,
        /// The wallet holds another key than the one that opened the account.
        OtherWallet,
        /// The price is beyond the range of the calculation.
        PriceOutOfRange,
        /// The wallet holds too few tokens.
        InsufficientFunds,
        /// The wallet holds no native token.
        InsufficientGas,
        /// A round ended without a deposit.
        ReservationLapsed,
        /// A leg of a round was not started in time; the account was closed, and the next round excludes its provider.
        NeverStarted,
        /// The account with the lease's id has other terms.
        AccountMismatch,
        /// The terms in the status cannot be read.
        TermsUnreadable,
    }
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
    pub legs: Vec<LeaseLeg>,
}

/// The part of a lease that one provider hosts.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeaseLeg {
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
    /// Whether the leg runs or has run, as the chain showed it last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub started: bool,
    /// Time of the block, Unix seconds, in which the leg had not run although its provider reported that its job had failed.
    /// The first such block; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::bounded::<0, 1099511627775>")]
    pub failed_since: Option<i64>,
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
