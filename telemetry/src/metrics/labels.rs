//! Closed sets of label values.

use leasehold_crds::lease::Phase;
use leasehold_crds::market::allocation::AllocationPhase;
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// Defines an enum together with its label values.
macro_rules! closed {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label's value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}

closed!(
    /// The controllers.
    Controller {
        /// GpuLease, at the market.
        Lease = "lease",
        /// From GpuAllocation to a GpuReservation, at the provider; at the market, the release of a GpuAllocation.
        Allocation = "allocation",
        /// From GpuReservation to a workload, at the provider.
        Reservation = "reservation",
        /// The periodic search for orphans on the chain and in the cluster.
        Orphans = "orphans",
    }
);

impl Controller {
    /// Whether it reconciles each object separately, from a queue.
    #[must_use]
    pub const fn has_queue(self) -> bool {
        match self {
            Self::Lease | Self::Allocation | Self::Reservation => true,
            Self::Orphans => false,
        }
    }
}

closed!(
    /// Answers to requests at the gateway: by the class of the program's status, or given by the gateway itself.
    Answer {
        /// Status 100 to 199: a WebSocket was opened.
        Informational = "1xx",
        /// Status 200 to 299.
        Success = "2xx",
        /// Status 300 to 399.
        Redirection = "3xx",
        /// Status 400 to 499.
        ClientError = "4xx",
        /// Status 500 to 599.
        ServerError = "5xx",
        /// The gateway answered itself: no such lease, no token, a limit, or a program that can't be reached.
        Refused = "refused",
    }
);

impl Answer {
    /// The class of an HTTP status.
    #[must_use]
    pub const fn of(status: u16) -> Self {
        match status {
            0..200 => Self::Informational,
            200..300 => Self::Success,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

closed!(
    /// What became of a stream that the gateway asked a connector to open.
    StreamOutcome {
        /// The pod accepted the connection.
        Opened = "opened",
        /// It is to no declared port of a running lease of this market, or a limit of the lease is reached.
        Refused = "refused",
        /// The pod did not accept the connection.
        Failed = "failed",
    }
);

closed!(
    /// The direction of bytes of a lease.
    Direction {
        /// To the pod.
        ToPod = "to_pod",
        /// From the pod.
        FromPod = "from_pod",
    }
);

closed!(
    /// Classes of errors, by what resolves them.
    Class {
        /// A change of the object by a user.
        User = "user",
        /// An immediate retry with fresh reads.
        Conflict = "conflict",
        /// A later retry.
        Transient = "transient",
    }
);

closed!(
    /// Kinds of calls to the chain.
    ChainAction {
        /// A read.
        Read = "read",
        /// An account is opened.
        Open = "open",
        /// An account is funded.
        Fund = "fund",
        /// An account is closed.
        Close = "close",
        /// Charging of a leg starts.
        Start = "start",
        /// Charging of a leg is paused.
        Pause = "pause",
        /// Charging of a leg ends.
        End = "end",
        /// Earnings are transferred to the payee.
        Withdraw = "withdraw",
    }
);

closed!(
    /// Outcomes of calls to the chain.
    ChainOutcome {
        Ok = "ok",
        /// No answer.
        Unreachable = "unreachable",
        /// The contract reverted the call.
        Reverted = "reverted",
        /// The signer has too few native tokens for gas.
        InsufficientGas = "insufficient_gas",
        /// A ceiling of the PaymentNetwork does not permit the transaction.
        LimitExceeded = "limit_exceeded",
        /// The payer has too few tokens, or too small an allowance.
        InsufficientTokens = "insufficient_tokens",
        /// The endpoint serves another chain.
        WrongChain = "wrong_chain",
        /// Sent, but not mined in time. The intent is kept.
        Unresolved = "unresolved",
    }
);

closed!(
    /// What became of a probe of user namespaces.
    ProbeOutcome {
        /// Pods with a GPU run in user namespaces on the node.
        Proven = "proven",
        /// They do not.
        Failed = "failed",
        /// The cluster removed the probe pod, or did not schedule it.
        Interrupted = "interrupted",
        /// A pod of a lease did not start, and the node is probed again.
        Withdrawn = "withdrawn",
    }
);

closed!(
    /// Phases of a lease.
    LeasePhase {
        Pending = "Pending",
        Matched = "Matched",
        Funded = "Funded",
        Provisioning = "Provisioning",
        Active = "Active",
        Suspended = "Suspended",
        Settling = "Settling",
        Closed = "Closed",
    }
);

closed!(
    /// Phases of a provider's reservation.
    ReservationPhase {
        Requested = "Requested",
        Declined = "Declined",
        Reserved = "Reserved",
        Provisioning = "Provisioning",
        Active = "Active",
        Suspended = "Suspended",
        Stopping = "Stopping",
        Stopped = "Stopped",
    }
);

impl From<Phase> for LeasePhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Pending => Self::Pending,
            Phase::Matched => Self::Matched,
            Phase::Funded => Self::Funded,
            Phase::Provisioning => Self::Provisioning,
            Phase::Active => Self::Active,
            Phase::Suspended => Self::Suspended,
            Phase::Settling => Self::Settling,
            Phase::Closed => Self::Closed,
        }
    }
}

impl From<AllocationPhase> for ReservationPhase {
    fn from(phase: AllocationPhase) -> Self {
        match phase {
            AllocationPhase::Requested => Self::Requested,
            AllocationPhase::Declined => Self::Declined,
            AllocationPhase::Reserved => Self::Reserved,
            AllocationPhase::Provisioning => Self::Provisioning,
            AllocationPhase::Active => Self::Active,
            AllocationPhase::Suspended => Self::Suspended,
            AllocationPhase::Stopping => Self::Stopping,
            AllocationPhase::Stopped => Self::Stopped,
        }
    }
}
