//! What a lease shows of its providers: which of them started what they had accepted.
//!
//! A round that no provider starts shows nothing: its image may not exist. A provider is to blame if another one started the
//! same lease, in that round or in a later one.

use leasehold_crds::lease::{CloseReason, GpuLeaseStatus, LeaseLeg};

use super::unstarted::has_run;
use crate::escrow::Account;

/// What a provider did with what it had accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its leg was started.
    InTime,
    /// It was not, and another provider started the same lease.
    Missed,
}

/// Stores which legs were started, as the account shows it. Whoever did not start an earlier round is to blame once a leg
/// was started.
pub(super) fn record(status: &mut GpuLeaseStatus, account: &Account) {
    let legs = status.escrow.iter_mut().flat_map(|e| e.legs.iter_mut());
    let mut any = false;
    for (index, leg) in legs.enumerate() {
        leg.started = has_run(account, index);
        any |= leg.started;
    }
    if any {
        status.suspected_providers.clear();
    }
}

/// What follows from a change of the status, each time once, by the names of providers.
pub(super) fn of(before: Option<&GpuLeaseStatus>, after: &GpuLeaseStatus) -> Vec<(String, Start)> {
    let nothing = GpuLeaseStatus::default();
    let before = before.unwrap_or(&nothing);
    let was_started = |index: usize| {
        let same = id(before).is_some() && id(before) == id(after);
        same && legs(before).get(index).is_some_and(|leg| leg.started)
    };
    let started = legs(after).iter().enumerate();
    let started = started.filter(|(index, leg)| leg.started && !was_started(*index));
    let started = started.map(|(_, leg)| (leg.provider.clone(), Start::InTime));

    let cleared = !before.suspected_providers.is_empty() && after.suspected_providers.is_empty();
    let suspected = before.suspected_providers.iter().filter(|_| cleared).cloned();
    // The last status of the round shows who had started.
    let left = after.unstarted_rounds > before.unstarted_rounds;
    let never = Some(CloseReason::NeverStarted);
    let closes = after.close_reason == never && before.close_reason != never;
    let last = match (left, closes) {
        (true, _) => legs(before),
        (false, true) => legs(after),
        (false, false) => &[],
    };
    let any = last.iter().any(|leg| leg.started);
    let unstarted = last.iter().filter(|leg| any && !leg.started);
    let missed = suspected.chain(unstarted.map(|leg| leg.provider.clone()));
    started.chain(missed.map(|name| (name, Start::Missed))).collect()
}

fn legs(status: &GpuLeaseStatus) -> &[LeaseLeg] {
    status.escrow.as_ref().map_or(&[], |e| &e.legs)
}

/// Id of the account in status.
fn id(status: &GpuLeaseStatus) -> Option<&str> {
    status.escrow.as_ref().map(|e| e.terms.id.as_str())
}
