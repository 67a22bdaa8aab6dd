//! The types and reasons of a GpuLease's conditions.

use super::{Blocker, CloseReason};
use crate::shared::{conditions::ConditionType, words::words};

words! {
    /// Types of a GpuLease's conditions.
    pub enum LeaseCondition {
        /// Offers match, and their providers have been asked or have reserved.
        Matched,
        /// The account holds the deposit.
        Funded,
        /// Every leg has been started: it is charged.
        Provisioned,
        /// The workload is charged and ready.
        Ready,
        /// The chain can be read.
        ChainReachable,
        /// Every provider of the lease reports.
        ProviderReachable,
        /// The account has been closed, and no reorganisation can undo it; set once it is closed, or closing it failed.
        Settled,
        /// The digest of the token for the ports is published; set if the lease names a Secret, or a URL requires a token.
        TokenPublished,
    }
}

words! {
    /// Reasons of a GpuLease's conditions.
    pub enum LeaseReason {
        /// A field cannot be served.
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
        /// The wallet does not exist, or may not be read.
        WalletNotReadable,
        /// The wallet holds no key.
        WalletMalformed,
        /// The wallet holds another key than the one that opened the account.
        OtherWallet,
        /// The price is beyond the range of the calculation.
        PriceOutOfRange,
        /// The payer holds too few tokens.
        InsufficientFunds,
        /// The payer holds too little native token.
        InsufficientGas,
        /// A ceiling of the PaymentNetwork does not permit the transaction.
        LimitExceeded,
        /// The round ended without a deposit.
        ReservationLapsed,
        /// The account has other terms.
        AccountMismatch,
        /// The terms in the status cannot be read.
        TermsUnreadable,
        /// Offers match; the wallet cannot pay yet.
        WaitingForFunds,
        /// Nothing has to be paid yet.
        NotMatched,
        /// The providers have been asked to reserve.
        Asked,
        /// All providers have reserved.
        Placed,
        /// The account is not open yet.
        NotOpened,
        /// The deposit is in the account.
        Deposited,
        /// A provider stops before the paid time ends.
        LongerThanSold,
        /// The contract rejected the transaction.
        Refused,
        /// The transaction is not mined yet.
        Pending,
        /// The lease is being prepared.
        InProgress,
        /// Every node serves.
        Serving,
        /// The lease is ending.
        Closing,
        /// The account has been closed.
        Closed,
        /// It answers.
        Reachable,
        /// It does not answer.
        Unreachable,
        /// A provider has not reported for a minute.
        Silent,
        /// A provider has not reported for a minute; the workload is still served.
        ProviderSilent,
        /// All paid time was served.
        TermOver,
        /// The tenant deleted the lease.
        Deleted,
        /// The funds are spent.
        FundsSpent,
        /// The job ended with exit code 0.
        JobSucceeded,
        /// The job ended with another exit code.
        JobFailed,
        /// A leg was not started in time.
        NeverStarted,
        /// A provider stopped before the end.
        ProviderStopped,
        /// Somebody else closed the account.
        ClosedOnChain,
        /// A person released the lease.
        Abandoned,
        /// A pod is not ready.
        PodsNotReady,
        /// A container has not run yet.
        ContainersNotStarted,
        /// Not all GPUs are reported as bound to the pods.
        GpusNotBound,
        /// A port has no address of a load balancer yet.
        EndpointPending,
        /// A GPU is faulty.
        GpuFault,
        /// A node does not report.
        NodeLost,
        /// A provider is stopping or has stopped.
        Stopped,
        /// A provider could not read the state of its pods.
        Unknown,
        /// A provider reports a reason that this market does not know.
        NotReady,
        /// The digest of the token is published.
        Published,
        /// A port requires a token, and the lease names no Secret with one.
        NoTokenSecret,
        /// There is no such Secret.
        TokenNotFound,
        /// The market may not read the Secret with the token.
        TokenNotReadable,
        /// The Secret contains no usable token.
        TokenMalformed,
        /// The Secret with the token could not be read.
        TokenUnknown,
    }
}

impl ConditionType for LeaseCondition {
    type Reason = LeaseReason;
}

impl From<Blocker> for LeaseReason {
    fn from(blocker: Blocker) -> Self {
        match blocker {
            Blocker::InvalidSpec => Self::InvalidSpec,
            Blocker::NetworkNotFound => Self::NetworkNotFound,
            Blocker::NetworkUnknown => Self::NetworkUnknown,
            Blocker::ChainUnreachable => Self::ChainUnreachable,
            Blocker::NoOffer => Self::NoOffer,
            Blocker::TooManyUnfunded => Self::TooManyUnfunded,
            Blocker::Queued => Self::Queued,
            Blocker::WalletUnknown => Self::WalletUnknown,
            Blocker::WalletNotReadable => Self::WalletNotReadable,
            Blocker::WalletMalformed => Self::WalletMalformed,
            Blocker::OtherWallet => Self::OtherWallet,
            Blocker::PriceOutOfRange => Self::PriceOutOfRange,
            Blocker::InsufficientFunds => Self::InsufficientFunds,
            Blocker::InsufficientGas => Self::InsufficientGas,
            Blocker::ReservationLapsed => Self::ReservationLapsed,
            Blocker::NeverStarted => Self::NeverStarted,
            Blocker::AccountMismatch => Self::AccountMismatch,
            Blocker::TermsUnreadable => Self::TermsUnreadable,
        }
    }
}

impl From<CloseReason> for LeaseReason {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::TermOver => Self::TermOver,
            CloseReason::Deleted => Self::Deleted,
            CloseReason::FundsSpent => Self::FundsSpent,
            CloseReason::JobSucceeded => Self::JobSucceeded,
            CloseReason::JobFailed => Self::JobFailed,
            CloseReason::NeverStarted => Self::NeverStarted,
            CloseReason::ProviderStopped => Self::ProviderStopped,
            CloseReason::ClosedOnChain => Self::ClosedOnChain,
            CloseReason::Abandoned => Self::Abandoned,
        }
    }
}

words! {
    /// Reasons of a GpuLease's Events.
    pub enum LeaseEvent {
        /// A round ended without a deposit, or before anything was served.
        RoundLapsed,
        /// Providers have been asked to reserve.
        Matched,
        /// The deposit is in the account.
        Funded,
        /// Providers prepare the workload.
        Provisioning,
        /// The workload serves and is charged.
        Active,
        /// The funds are spent.
        Suspended,
        /// The lease is ending.
        Settling,
        /// The lease has ended.
        Closed,
        /// A provider stops before the paid time ends.
        LongerThanSold,
        /// The lease cannot be matched.
        NotMatched,
        /// The lease cannot be funded or topped up.
        NotFunded,
        /// A leg waits for the address of a port.
        NotProvisioned,
        /// The workload is not ready.
        NotReady,
        /// The chain cannot be read.
        ChainUnreachable,
        /// A provider does not report.
        ProviderSilent,
        /// Funds were added.
        ToppedUp,
        /// The account was given up.
        Abandoned,
        /// The lease is being deleted only because its CRD is.
        KindDeleted,
        /// The token for the ports cannot be published.
        TokenNotPublished,
    }
}
