//! The Events of a lease: changes that are of interest to its tenant.

use leasehold_crds::{
    lease::{
        AccountSummary, Blocker, CloseReason, GpuLeaseStatus, Phase,
        conditions::{LeaseCondition, LeaseEvent, LeaseReason},
    },
    shared::conditions::{ConditionStatus, find},
};

use super::conditions::ended;

/// An Event to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whether it is a warning.
    pub warning: bool,
    /// Its reason.
    pub reason: LeaseEvent,
    /// For a person.
    pub note: String,
}

impl Event {
    fn normal(reason: LeaseEvent, note: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason,
            note: note.into(),
        }
    }

    fn warning(reason: LeaseEvent, note: impl Into<String>) -> Self {
        Self {
            warning: true,
            reason,
            note: note.into(),
        }
    }
}

/// The Events of the change from `old` to `new`.
#[must_use]
pub fn events(old: Option<&GpuLeaseStatus>, new: &GpuLeaseStatus) -> Vec<Event> {
    let was = old.map_or(Phase::Pending, |s| s.phase);
    let mut events = Vec::new();
    if was != new.phase {
        events.push(entered(new));
    }
    let longer = |s: &GpuLeaseStatus| {
        let funded = find(&s.conditions, LeaseCondition::Funded)
            .filter(|c| c.reason == LeaseReason::LongerThanSold.as_str());
        funded.map(|c| c.message.clone())
    };
    if let Some(message) = longer(new).filter(|_| old.and_then(longer).is_none()) {
        events.push(Event::warning(LeaseEvent::LongerThanSold, message));
    }
    events.extend(conditions_changed(old, new));
    if let (Some(old), Some(summary)) = (old.and_then(|s| s.money.as_ref()), &new.money)
        && old.deposited != summary.deposited
        && was != Phase::Pending
    {
        events.push(Event::normal(
            LeaseEvent::ToppedUp,
            format!(
                "deposited {} in total, previously {}",
                summary.deposited, old.deposited
            ),
        ));
    }
    let abandoned = new.close_reason == Some(CloseReason::Abandoned);
    if new.phase.is_over() && !was.is_over() && abandoned {
        let account = new.escrow.as_ref().map_or_else(
            || "any account that was opened for this lease".to_owned(),
            |e| format!("account {}", e.terms.id),
        );
        events.push(Event::warning(
            LeaseEvent::Abandoned,
            format!("the payer can recover the remaining balance by calling close(terms, 0) on the escrow for {account}"),
        ));
    }
    events
}

/// The lease has entered its phase.
fn entered(new: &GpuLeaseStatus) -> Event {
    let AccountSummary {
        deposited,
        rate,
        paid_until,
        spent,
        refunded,
        ..
    } = new.money.clone().unwrap_or_default();
    match new.phase {
        Phase::Pending => Event::warning(
            LeaseEvent::RoundLapsed,
            match new.blocked_on {
                Some(Blocker::NeverStarted) => {
                    "the account of the round is closed and refunded; the next round begins automatically"
                }
                _ => "nothing is paid; the next round begins automatically",
            },
        ),
        Phase::Matched => Event::normal(
            LeaseEvent::Matched,
            format!("requested reservations from {}", new.providers),
        ),
        Phase::Funded => Event::normal(
            LeaseEvent::Funded,
            format!("deposited {deposited}; the rate is at most {rate}"),
        ),
        Phase::Provisioning => Event::normal(
            LeaseEvent::Provisioning,
            "providers are preparing the workload; nothing is charged yet",
        ),
        Phase::Active => Event::normal(
            LeaseEvent::Active,
            format!(
                "the workload runs and is charged by the second; paid until {}",
                paid_until.unwrap_or_default()
            ),
        ),
        Phase::Suspended => Event::warning(
            LeaseEvent::Suspended,
            "the funds are spent; the workload stops until funds are added",
        ),
        Phase::Settling => Event::normal(
            LeaseEvent::Settling,
            format!("ending: {}", ended(new.close_reason)),
        ),
        Phase::Closed => {
            let reason = ended(new.close_reason);
            let earlier = new.spent_earlier.as_ref();
            let earlier = earlier.map(|spent| format!("; earlier rounds: spent {spent}"));
            let why = find(&new.conditions, LeaseCondition::Provisioned);
            let why = why.filter(|c| c.reason == reason.as_str() && !c.message.is_empty());
            let why = why.map(|c| format!("{}: ", c.message)).unwrap_or_default();
            let amounts = match (spent, refunded) {
                (Some(spent), Some(refunded)) => format!("spent {spent}, refunded {refunded}"),
                _ if is_settlement_unknown(new) => {
                    "the account was not confirmed to be closed, and what was spent is unknown".to_owned()
                }
                _ => "spent 0, refunded 0".to_owned(),
            };
            let earlier = earlier.unwrap_or_default();
            Event::normal(LeaseEvent::Closed, format!("{reason}: {why}{amounts}{earlier}"))
        }
    }
}

/// Whether money may be in the account of a closed lease although the account was not seen to be closed.
fn is_settlement_unknown(status: &GpuLeaseStatus) -> bool {
    status.money.is_some() || status.close_reason == Some(CloseReason::Abandoned)
}

/// Conditions that are not True and whose reason has changed.
fn conditions_changed(old: Option<&GpuLeaseStatus>, new: &GpuLeaseStatus) -> impl Iterator<Item = Event> {
    LeaseCondition::ALL.iter().filter_map(move |type_| {
        let event = event_of(*type_)?;
        let before = old.and_then(|s| find(&s.conditions, type_));
        let after = find(&new.conditions, type_)?;
        let changed = after.status != ConditionStatus::True.as_str()
            && !after.message.is_empty()
            && before.is_none_or(|b| b.reason != after.reason);
        (changed && is_news(*type_, &after.reason, new.phase))
            .then(|| Event::warning(event, format!("{}: {}", after.reason, after.message)))
    })
}

/// Whether a condition that is not True deserves a warning. A reason that every lease has for a while does not.
fn is_news(type_: LeaseCondition, reason: &str, phase: Phase) -> bool {
    let expected = match type_ {
        LeaseCondition::Funded => Some(LeaseReason::NotOpened),
        LeaseCondition::Matched => Some(LeaseReason::Queued),
        LeaseCondition::Provisioned
        | LeaseCondition::Ready
        | LeaseCondition::ChainReachable
        | LeaseCondition::ProviderReachable
        | LeaseCondition::Settled
        | LeaseCondition::TokenPublished => None,
    };
    if expected.is_some_and(|expected| expected.as_str() == reason) {
        return false;
    }
    if type_ == LeaseCondition::Provisioned {
        // Images are pulled, and GPUs bound, for every lease.
        return reason == LeaseReason::EndpointPending.as_str();
    }
    if type_ == LeaseCondition::TokenPublished {
        // It is set only while it matters.
        return true;
    }
    match phase {
        Phase::Pending | Phase::Matched => type_ != LeaseCondition::Ready,
        Phase::Active | Phase::Suspended => true,
        Phase::Funded | Phase::Provisioning | Phase::Settling | Phase::Closed => false,
    }
}

/// The reason of the Event of a condition that is not True; `None` where there is none.
const fn event_of(type_: LeaseCondition) -> Option<LeaseEvent> {
    match type_ {
        LeaseCondition::Matched => Some(LeaseEvent::NotMatched),
        LeaseCondition::Funded => Some(LeaseEvent::NotFunded),
        LeaseCondition::Ready => Some(LeaseEvent::NotReady),
        LeaseCondition::ChainReachable => Some(LeaseEvent::ChainUnreachable),
        LeaseCondition::ProviderReachable => Some(LeaseEvent::ProviderSilent),
        LeaseCondition::Provisioned => Some(LeaseEvent::NotProvisioned),
        LeaseCondition::TokenPublished => Some(LeaseEvent::TokenNotPublished),
        LeaseCondition::Settled => None,
    }
}
