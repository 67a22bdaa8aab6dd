//! GpuLease: GPUs that a tenant rents for a term at a price, and the workload that runs on them.

pub mod conditions;
mod quote;
mod spec;
mod status;
pub mod workload;

pub use quote::{DimensionCount, FailedDimension, Miss, Quote, QuotedOffer};
pub use spec::{
    GpuLease, GpuLeaseSpec, GpuRequirements, OnFundsEnd, Payment, Placement, Spread, Term, TopUp, Wallet,
    amd64,
};
pub use status::{
    AccountSummary, Blocker, CloseReason, GpuLeaseStatus, Intent, IntentAction, LeaseEscrow, LeaseLeg, Phase,
};
