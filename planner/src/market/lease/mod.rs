//! The market's side of a lease, from the spec to the refund.
//!
//! [`World`] is what was read, [`check`] what follows from it, [`decide`] what is done, [`conditions`] and [`events`] what
//! is reported. A write to the chain happens only for an intent that an earlier reconcile stored (M2).

pub mod access_token;
mod check;
mod closing;
mod conditions;
mod decide;
mod events;
mod matching;
mod opening;
pub mod phase;
mod plan;
mod reads;
mod recover;
mod replacing;
mod reports;
mod serving;
mod starts;
mod summary;
mod trim;
mod unstarted;
mod world;

#[cfg(test)]
mod tests;

pub use access_token::{AccessToken, needs_access_token};
pub use check::{Checked, check};
pub use conditions::chain_failure;
pub use decide::decide;
pub use events::{Event, events};
pub use plan::{AllocationWrite, ChainCall, Plan};
pub use reads::{
    concerns, needs_chain, needs_deletion_cause, needs_prior, needs_wallet, prior_rounds, seeks_prior,
    wants_final, wants_second,
};
pub use starts::Start;
pub use trim::{trim_allocation, trim_lease};
pub use world::{AllocationSeen, Deletion, Network, Parsed, RecoveredAccount, Wallet, World};

/// Seconds a reservation waits for the money; also how long a signed `open` stays valid.
pub const OPEN_WITHIN_SECONDS: u64 = 60;
/// An `open` is not sent with less than this left: it could be mined too late.
pub const OPEN_MARGIN_SECONDS: u64 = 10;
/// A node may lag so far behind another that what a block holds is not in its answer yet.
pub const LAG_SECONDS: i64 = 15;
/// Seconds from `open_by` in which a lease that states no `startWithin` must start; afterwards anybody may close with a
/// full refund.
pub const START_WITHIN_SECONDS: u64 = 900;
/// Maximum number of leases of a namespace that are matched and unfunded.
pub const UNFUNDED_PER_NAMESPACE_MAX: usize = 20;
/// Maximum number of unanswered allocations of a provider. It has one minute to answer each; what it cannot answer in
/// that time would be created again and again.
pub const UNANSWERED_PER_PROVIDER_MAX: usize = 64;
/// Number of rounds after the one in the status that are searched on the chain.
pub const ROUNDS_MAX: u64 = 64;
/// A lease that was not started in time by all its providers in so many rounds is closed.
pub const UNSTARTED_ROUNDS_MAX: i64 = 3;
/// Longest back-off between rounds.
pub const BACKOFF_SECONDS_MAX: u64 = 300;
