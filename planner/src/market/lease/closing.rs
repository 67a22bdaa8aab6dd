//! The end of a lease: its allocations are released, the account is closed, and the finalizer is removed.

use jiff::Timestamp;
use leasehold_crds::lease::{CloseReason, Intent, IntentAction};

use super::{
    check::{AccountState, Checked, deleting},
    decide::Step,
    phase::Fact,
    plan::{AllocationWrite, ChainCall, Plan, in_seconds, keys},
    reads::has_finalizer,
    world::World,
};
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
    let release: Vec<_> = world
        .allocations
        .iter()
        .filter(|a| !a.object.spec.release)
        .map(|a| {
            let (namespace, name) = keys(a);
            AllocationWrite::Release {
                namespace,
                name,
                drop_results: reason == CloseReason::Deleted,
            }
        })
        .collect();
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
        if held && deleting(world) {
            plan.finalizer = Some(false);
        }
        plan.wake = in_seconds(now, 1);
        return Step::at(Fact::Ended);
    }
    if let (AccountState::Present, Some(Ok(terms))) = (checked.account_state, &world.parsed.terms) {
        match &plan.status.intent {
            Some(Intent {
                action: IntentAction::Close,
                ..
            }) => {
                let payouts = u16::try_from((1u32 << terms.legs.len()) - 1).unwrap_or(u16::MAX);
                plan.call = Some(ChainCall::Close {
                    terms: terms.clone(),
                    payouts,
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
    Step::at(Fact::Ending)
}

/// Deletes the allocations of this round and of earlier ones. Allocations of a later round belong to a newer status.
pub(super) fn delete_all(world: &World, plan: &mut Plan) {
    let round = plan.status.round;
    let past = world.allocations.iter().filter(|a| a.object.spec.round <= round);
    plan.allocations.extend(past.map(|a| {
        let (namespace, name) = keys(a);
        AllocationWrite::Delete { namespace, name }
    }));
}
