//! The end of a lease: its allocations are released, the account is closed, and the finalizer is removed.

use jiff::Timestamp;
use leasehold_crds::lease::{CloseReason, Intent, IntentAction};

use super::{
    check::{AccountState, Checked, abandoned, deleting, finality_lag, is_final},
    decide::Step,
    phase::Fact,
    plan::{AllocationWrite, ChainCall, Plan, in_seconds, keys},
    reads::{has_finalizer, is_served},
    world::{AllocationSeen, World},
};
use crate::{escrow::AccountAt, observed::Observed};

/// Ends the lease: its allocations are released, the account is closed, the refund is read, and the finalizer is
/// removed.
pub(super) fn end(
    world: &World,
    checked: &Checked,
    reason: CloseReason,
    now: Timestamp,
    plan: &mut Plan,
) -> Step {
    plan.status.close_reason = Some(reason);
    plan.wake = in_seconds(now, 3);
    let held = has_finalizer(&world.lease);
    let release = releases(world, reason == CloseReason::Deleted);
    let over = match checked.account_state {
        _ if reason == CloseReason::Abandoned => true,
        AccountState::NoTerms | AccountState::NeverOpened => {
            delete_all(world, plan);
            true
        }
        AccountState::Mismatch => true,
        AccountState::Unknown | AccountState::Absent | AccountState::Present => false,
        AccountState::Closed => true,
    };
    if plan.allocations.is_empty() {
        plan.allocations = release;
    }
    if over {
        plan.status.intent = None;
        let closed = checked.account_state == AccountState::Closed && reason != CloseReason::Abandoned;
        if held && deleting(world) && (!closed || is_final(world)) {
            plan.finalizer = Some(false);
        }
        plan.wake = in_seconds(now, 1);
        return Step::at(Fact::Ended);
    }
    if checked.account_state == AccountState::Present {
        close(world, now, plan);
    }
    Step::at(Fact::Ending)
}

/// A lease that is closed keeps its finalizer until the end of its account is final. If a reorganisation drops the close
/// before, it is sent again: nobody serves the lease, and its deposit would be spent.
pub(super) fn watch(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    plan.wake = in_seconds(now, 3600);
    if !has_finalizer(&world.lease) {
        return Step::at(Fact::Ended);
    }
    let given_up = plan.status.close_reason == Some(CloseReason::Abandoned) || abandoned(world, &plan.status);
    match checked.account_state {
        _ if given_up => plan.finalizer = Some(false),
        AccountState::NoTerms | AccountState::NeverOpened | AccountState::Mismatch => {
            plan.finalizer = Some(false);
        }
        AccountState::Closed if is_final(world) => plan.finalizer = Some(false),
        AccountState::Closed => {
            plan.status.intent = None;
            let wait = finality_lag(world).map_or(5, |lag| (lag / 4).clamp(1, 60));
            plan.wake = in_seconds(now, wait);
        }
        AccountState::Unknown | AccountState::Absent | AccountState::Present => {
            plan.wake = in_seconds(now, 5);
            if is_open(world) {
                close(world, now, plan);
            }
        }
    }
    Step::at(Fact::Ended)
}

/// The release of each allocation that is not released yet.
pub(super) fn releases(world: &World, drop_results: bool) -> Vec<AllocationWrite> {
    let all = world.allocations.iter();
    all.filter_map(|a| release(a, drop_results)).collect()
}

fn release(allocation: &AllocationSeen, drop_results: bool) -> Option<AllocationWrite> {
    let (namespace, name) = keys(allocation);
    (!allocation.object.spec.release).then_some(AllocationWrite::Release {
        namespace,
        name,
        drop_results,
    })
}

/// Whether two reads show that the account is open.
fn is_open(world: &World) -> bool {
    let open = |read: &Option<Observed<AccountAt>>| {
        let account = read.as_ref().and_then(|r| r.known()?.present());
        account.is_some_and(|a| !a.closed)
    };
    open(&world.account) && open(&world.second_account)
}

/// Stores the intent to close the account, or carries it out.
pub(super) fn close(world: &World, now: Timestamp, plan: &mut Plan) {
    if let Some(Ok(terms)) = &world.parsed.terms {
        match &plan.status.intent {
            Some(Intent {
                action: IntentAction::Close,
                ..
            }) => {
                plan.call = Some(ChainCall::Close {
                    terms: terms.clone(),
                    payouts: terms.all_legs(),
                });
            }
            Some(Intent {
                action: IntentAction::Open | IntentAction::Fund,
                ..
            })
            | None => {
                plan.status.intent = Some(Intent {
                    action: IntentAction::Close,
                    total: None,
                    written_at: now.to_string(),
                });
                plan.wake = now;
            }
        }
    }
}

/// Deletes the allocations of this round and of earlier ones. Allocations of a later round belong to a newer status. One that
/// its provider serves, for example because it saw an account that a reorganisation dropped, is released first.
pub(super) fn delete_all(world: &World, plan: &mut Plan) {
    let round = plan.status.round;
    let past = world.allocations.iter().filter(|a| a.object.spec.round <= round);
    plan.allocations.extend(past.filter_map(|a| {
        if is_served(&a.object) {
            return release(a, true);
        }
        let (namespace, name) = keys(a);
        Some(AllocationWrite::Delete { namespace, name })
    }));
}
