//! The closed sets of label values.

use leasehold_crds::lease::Phase;
use leasehold_crds::market::allocation::AllocationPhase;
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// An enum with its label values, listed once.
macro_rules! closed {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// Every value.
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
    /// What reconciles.
    Controller {
        /// GpuLease, at the market.
        Lease = "lease",
        /// GpuProvider, at the market.
        Provider = "provider",
        /// PaymentNetwork, on both sides.
        Network = "network",
        /// GpuPool and GpuNode into a GpuOffer, at the provider.
        Offer = "offer",
        /// GpuAllocation into a GpuReservation, at the provider; at the market, when it is let go.
        Allocation = "allocation",
        /// GpuReservation into what runs, at the provider.
        Reservation = "reservation",
        /// The periodic check of chain, objects and what runs.
        Sweep = "sweep",
    }
);

impl Controller {
    /// Whether each of its objects has passes of its own, for which it stands in line.
    #[must_use]
    pub const fn has_line(self) -> bool {
        matches!(self, Self::Lease | Self::Allocation | Self::Reservation)
    }
}

closed!(
    /// What an error wants to be done about it.
    Class {
        /// An edit by a person.
        User = "user",
        /// Another try at once, with what was read anew.
        Conflict = "conflict",
        /// Another try later.
        Transient = "transient",
    }
);

closed!(
    /// What was asked of the chain.
    ChainAction {
        /// A read.
        Read = "read",
        /// An account is opened.
        Open = "open",
        /// An account is filled up.
        Fund = "fund",
        /// An account is closed.
        Close = "close",
        /// A leg begins to be charged.
        Start = "start",
        /// A leg is charged no more for now.
        Pause = "pause",
        /// A leg is charged no more.
        End = "end",
        /// What was earned moves to the payee.
        Withdraw = "withdraw",
    }
);

closed!(
    /// How the chain answered.
    ChainOutcome {
        Ok = "ok",
        /// No answer.
        Unreachable = "unreachable",
        /// The contract refused.
        Reverted = "reverted",
        /// The signer can't pay for gas.
        InsufficientGas = "insufficient_gas",
        /// The payer has too few tokens, or allowed too few.
        InsufficientTokens = "insufficient_tokens",
        /// Another chain answered.
        WrongChain = "wrong_chain",
        /// Sent, and not seen mined in time: the intent stays.
        Unresolved = "unresolved",
    }
);

closed!(
    /// Where a lease is in its life.
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
    /// How far a provider is with its share of a lease.
    SharePhase {
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

impl From<AllocationPhase> for SharePhase {
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
