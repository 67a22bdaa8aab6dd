//! A round in which no leg was started in time: its account is closed, its deposit is refunded, and the next round begins at
//! other providers. A provider that accepts and then stalls holds the deposit of a lease once, for `startWithin`.

use jiff::Timestamp;
use leasehold_crds::lease::{Blocker, conditions::LeaseCondition};

use super::{
    check::{AccountState, Checked},
    closing::{close, releases},
    decide::Step,
    opening::forget_account,
    phase::Fact,
    plan::{Plan, in_seconds},
    world::World,
};

/// Ends the round. Its account leaves the status when it is closed and its allocations are released: the market deletes
/// those when their providers have stopped. If a reorganisation drops the close, the search for orphans closes it again.
pub(super) fn end_round(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    plan.wake = in_seconds(now, 3);
    plan.allocations = releases(world, true);
    match checked.account_state {
        AccountState::Closed if plan.allocations.is_empty() => {}
        AccountState::Present => {
            close(world, now, plan);
            return Step::unchanged();
        }
        AccountState::Closed
        | AccountState::NoTerms
        | AccountState::Unknown
        | AccountState::Absent
        | AccountState::NeverOpened
        | AccountState::Mismatch => return Step::unchanged(),
    }
    let escrow = plan.status.escrow.take();
    let providers: Vec<String> = escrow
        .into_iter()
        .flat_map(|e| e.legs)
        .map(|leg| leg.provider)
        .collect();
    let why = format!(
        "{} did not start the lease in time, and its deposit is refunded; the next round begins elsewhere",
        providers.join(", ")
    );
    plan.status.unstarted_rounds += 1;
    plan.status.excluded_providers.extend(providers);
    plan.status.excluded_providers.sort();
    plan.status.excluded_providers.dedup();
    plan.status.money = None;
    let closed = LeaseCondition::Settled.as_str();
    plan.status.conditions.retain(|c| c.type_ != closed);
    forget_account(now, plan);
    Step::blocked(Some(Fact::NotStarted), Blocker::NeverStarted, why)
}
