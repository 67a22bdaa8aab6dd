//! The provider's side of a lease: what runs, and until when. The reservation and its account decide; the market only asks
//! for it.
//!
//! [`World`] is what was read, [`decide`] what is done, [`Plan`] what the edge carries out. A call to the chain is made only
//! for an intent that an earlier reconcile stored (M2).

use jiff::{SignedDuration, Timestamp};
use leasehold_crds::GpuReservation;

use crate::{
    escrow::{Account, AccountAt, TERM_SECONDS_MIN, Terms},
    observed::Observed,
};

mod conditions;
mod decide;
mod leg;
mod phase;
mod plan;
mod pods;
mod serving;
mod settle;
mod snapshot;
pub mod stop;
mod stop_reason;
mod world;

#[cfg(test)]
mod tests;

pub use self::{
    conditions::{News, chain_failure, news_of_gpus, object_refused},
    decide::decide,
    leg::Withdrawals,
    plan::{LegCall, Plan, Workload},
    pods::{JobEnd, NodePod, PodChange, job_end},
    world::{Reading, ResultsSeen, Running, World, wants_final, wants_live, wants_second},
};

/// Whether a reservation is that of the provider whose namespace in its market this is.
#[must_use]
pub fn holds(reservation: &GpuReservation, provider_namespace: &str) -> bool {
    reservation.spec.allocation_namespace == provider_namespace
}

/// Generation of the reservation that its conditions observe.
fn generation(world: &World<'_>) -> i64 {
    world.reservation.metadata.generation.unwrap_or_default()
}

fn later(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).min(1 << 33);
    now.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

fn unix(now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or_default()
}

fn wire(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Whether the funds are spent: the clock stands since they ended, and what is left does not pay for
/// [`TERM_SECONDS_MIN`]: pods that are started for less run longer than they are paid, until they are stopped.
fn is_spent(account: &Account, terms: &Terms) -> bool {
    let least = terms
        .burn_rate(account.ended)
        .0
        .saturating_mul(TERM_SECONDS_MIN.into());
    account.exhausted_at != 0 && account.running == 0 && account.balance_scaled < least
}

fn present(read: &Observed<AccountAt>) -> Option<&Account> {
    read.known().and_then(AccountAt::present)
}
