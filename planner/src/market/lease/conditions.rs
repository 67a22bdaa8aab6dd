//! The conditions of a lease: output for people and for tools that watch them. No decision reads them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use leasehold_crds::{
    GpuAllocation, PROVIDER_NAMESPACE_PREFIX,
    lease::{
        Blocker, CloseReason, GpuLeaseStatus, IntentAction, OnFundsEnd, Phase,
        conditions::{LeaseCondition, LeaseReason},
    },
    market::allocation::{AllocationPhase, GpuAllocationStatus},
    provider::reservation::ReservationCondition,
    shared::conditions::{ConditionStatus, condition, find, is_true, set},
};

use super::{
    access_token,
    check::{AccountState, Checked, is_final},
    decide::Step,
    plan::ChainCall,
    recover::provider_of,
    unstarted::{explanation, is_over},
    world::{AllocationSeen, World},
};
use crate::{observed::Observed, ports::PaymentError};

/// What a condition says, but for its type.
type Finding = (ConditionStatus, LeaseReason, String);

/// The conditions of a status while they are being set.
pub(super) struct Conditions {
    list: Vec<Condition>,
    generation: i64,
    now: Timestamp,
}

impl Conditions {
    pub(super) fn put(
        &mut self,
        type_: LeaseCondition,
        status: ConditionStatus,
        reason: LeaseReason,
        message: String,
    ) {
        let next = condition(type_, status, reason, message, self.generation);
        set(&mut self.list, next, self.now);
    }

    /// Takes away a condition that says nothing of this lease any more.
    pub(super) fn remove(&mut self, type_: LeaseCondition) {
        self.list.retain(|c| c.type_ != type_.as_str());
    }
}

/// Sets every condition.
pub(super) fn set_all(
    world: &World,
    checked: &Checked,
    step: &Step,
    now: Timestamp,
    status: &mut GpuLeaseStatus,
) {
    let mut conditions = Conditions {
        list: std::mem::take(&mut status.conditions),
        generation: world.lease.metadata.generation.unwrap_or_default(),
        now,
    };
    let chain_is_read = set_chain_reachable(world, &mut conditions);
    set_matched_and_funded(world, checked, step, status, &mut conditions);
    let provisioned = provisioned(world, status, &conditions);
    let (truth, reason, message) = provisioned.clone();
    conditions.put(LeaseCondition::Provisioned, truth, reason, message);
    let all_report = set_provider_reachable(world, &mut conditions);
    let (truth, reason, message) = ready(world, status, step, provisioned, all_report, chain_is_read);
    conditions.put(LeaseCondition::Ready, truth, reason, message);
    access_token::set_published(world, status, &mut conditions);
    status.conditions = conditions.list;
}

/// Sets `ChainReachable`, and returns whether the chain could be read.
fn set_chain_reachable(world: &World, conditions: &mut Conditions) -> bool {
    match (&world.head, &world.account) {
        (Observed::Unknown(why), _) | (_, Some(Observed::Unknown(why))) => {
            conditions.put(
                LeaseCondition::ChainReachable,
                ConditionStatus::Unknown,
                LeaseReason::Unreachable,
                format!("{why}; the last known state is kept, and paid work continues"),
            );
            false
        }
        _ => {
            conditions.put(
                LeaseCondition::ChainReachable,
                ConditionStatus::True,
                LeaseReason::Reachable,
                String::new(),
            );
            true
        }
    }
}

/// Sets `Matched` and `Funded`, and `Settled` of a lease that is closed.
fn set_matched_and_funded(
    world: &World,
    checked: &Checked,
    step: &Step,
    status: &GpuLeaseStatus,
    conditions: &mut Conditions,
) {
    use ConditionStatus::{False, True, Unknown};
    use LeaseCondition::{Funded, Matched, Settled};
    match status.phase {
        Phase::Pending => {
            if let Some((blocker, message)) = &step.blocked_on {
                set_blocked(*blocker, message, conditions);
            }
        }
        Phase::Matched => {
            let waiting = "waiting for the providers to reserve";
            conditions.put(Matched, True, LeaseReason::Asked, waiting.into());
            match (&step.blocked_on, checked.account_state) {
                (Some((blocker, message)), _) => {
                    conditions.put(Funded, False, (*blocker).into(), message.clone());
                }
                (None, AccountState::Present | AccountState::Closed) => {}
                (
                    None,
                    AccountState::NoTerms
                    | AccountState::Unknown
                    | AccountState::Absent
                    | AccountState::NeverOpened
                    | AccountState::Mismatch,
                ) => {
                    let message = "the account is not open yet";
                    conditions.put(Funded, False, LeaseReason::NotOpened, message.into());
                }
            }
        }
        Phase::Funded | Phase::Provisioning | Phase::Active | Phase::Suspended => {
            conditions.put(Matched, True, LeaseReason::Placed, String::new());
            set_funded(world, checked, step, status, conditions);
        }
        Phase::Settling => {}
        Phase::Closed => match checked.account_state {
            AccountState::Closed if !is_final(world) => {
                let waiting =
                    "the account is closed in the newest block; the lease is kept until that block is final";
                conditions.put(Settled, Unknown, LeaseReason::Pending, waiting.into());
            }
            // The account cannot be read, or its close was dropped: the last reason stays.
            AccountState::Unknown | AccountState::Absent | AccountState::Present => {}
            AccountState::NoTerms
            | AccountState::NeverOpened
            | AccountState::Mismatch
            | AccountState::Closed => {
                if find(&conditions.list, Settled).is_some() {
                    conditions.put(Settled, True, LeaseReason::Closed, String::new());
                }
            }
        },
    }
}

/// Sets `Matched` and `Funded` of a lease that cannot proceed while nothing is paid.
fn set_blocked(blocker: Blocker, message: &str, conditions: &mut Conditions) {
    use ConditionStatus::{False, Unknown};
    use LeaseCondition::{Funded, Matched};
    let truth = match blocker {
        Blocker::WalletNotReadable
        | Blocker::WalletMalformed
        | Blocker::OtherWallet
        | Blocker::WalletUnknown
        | Blocker::InsufficientFunds
        | Blocker::InsufficientGas => {
            let waiting = "offers match; nothing is reserved until the payer's funds are confirmed";
            conditions.put(Matched, False, LeaseReason::WaitingForFunds, waiting.into());
            conditions.put(Funded, False, blocker.into(), message.to_owned());
            return;
        }
        Blocker::ChainUnreachable | Blocker::NetworkUnknown => Unknown,
        Blocker::InvalidSpec
        | Blocker::NetworkNotFound
        | Blocker::NoOffer
        | Blocker::TooManyUnfunded
        | Blocker::Queued
        | Blocker::PriceOutOfRange
        | Blocker::ReservationLapsed
        | Blocker::NeverStarted
        | Blocker::AccountMismatch
        | Blocker::TermsUnreadable => False,
    };
    conditions.put(Matched, truth, blocker.into(), message.to_owned());
    conditions.put(Funded, False, LeaseReason::NotMatched, String::new());
}

/// Sets `Funded` of a lease whose account is open.
fn set_funded(
    world: &World,
    checked: &Checked,
    step: &Step,
    status: &GpuLeaseStatus,
    conditions: &mut Conditions,
) {
    use ConditionStatus::{False, True, Unknown};
    use LeaseCondition::Funded;
    let topping_up = status.intends(IntentAction::Fund);
    let (truth, reason, message) = match (status.phase, &step.blocked_on) {
        (Phase::Suspended, _) => (False, LeaseReason::FundsSpent, funds_spent(world).to_owned()),
        (_, Some((blocker, message))) => (Unknown, (*blocker).into(), message.clone()),
        // A top-up failed and is retried: the condition keeps the failure until one is mined.
        _ if topping_up && !is_true(&conditions.list, Funded) => return,
        _ => match served_until(world, checked) {
            None => (True, LeaseReason::Deposited, String::new()),
            Some(message) => (True, LeaseReason::LongerThanSold, message),
        },
    };
    conditions.put(Funded, truth, reason, message);
}

/// What a tenant can do about spent funds.
fn funds_spent(world: &World) -> &'static str {
    match world.lease.spec.payment.on_funds_end {
        OnFundsEnd::Pause => {
            "the funds are spent: increase term.duration, or top up the account, before pauseFor ends"
        }
        // The provider waits for an extension that the tenant requested before the end.
        OnFundsEnd::Close => {
            "the funds are spent; the provider stops unless the extension is paid immediately"
        }
    }
}

/// Statuses that providers report.
fn reports(world: &World) -> impl Iterator<Item = Option<&GpuAllocationStatus>> {
    world.allocations.iter().map(|a| a.object.status.as_ref())
}

/// Whether every leg of the lease was started, and its provider reports that it serves.
fn all_serve(world: &World, status: &GpuLeaseStatus) -> bool {
    let serves = |s: Option<&GpuAllocationStatus>| s.is_some_and(|s| s.phase == AllocationPhase::Active);
    let mut legs = status.escrow.iter().flat_map(|e| &e.legs);
    !world.allocations.is_empty() && reports(world).all(serves) && legs.all(|leg| leg.started)
}

/// A reason that a provider reports, as a reason of the lease.
fn reported(reason: &str) -> LeaseReason {
    LeaseReason::parse(reason).unwrap_or(LeaseReason::NotReady)
}

fn provisioned(world: &World, status: &GpuLeaseStatus, conditions: &Conditions) -> Finding {
    let in_progress = (ConditionStatus::False, LeaseReason::InProgress, String::new());
    match status.phase {
        Phase::Active | Phase::Suspended if all_serve(world, status) => {
            (ConditionStatus::True, LeaseReason::Serving, String::new())
        }
        Phase::Closed | Phase::Settling => {
            let reason = ended(status.close_reason);
            (
                ConditionStatus::False,
                reason,
                why_ended(world, status, conditions),
            )
        }
        // What a provider prepares is reported once the account is seen to be open.
        Phase::Pending | Phase::Matched => in_progress,
        Phase::Funded | Phase::Provisioning | Phase::Active | Phase::Suspended => {
            let missing = not_true(world, ReservationCondition::Provisioned);
            // Without one the leg is about to start: the last reason stays.
            let before = || {
                find(&conditions.list, LeaseCondition::Provisioned)
                    .filter(|c| c.status == ConditionStatus::False.as_str())
            };
            missing.or_else(before).map_or(in_progress, |c| {
                (ConditionStatus::False, reported(&c.reason), c.message.clone())
            })
        }
    }
}

/// Whose doing the end was, where it was that of a provider. What was said before stays when the allocations are gone.
fn why_ended(world: &World, status: &GpuLeaseStatus, conditions: &Conditions) -> String {
    let said = || {
        let reason = ended(status.close_reason);
        find(&conditions.list, LeaseCondition::Provisioned)
            .filter(|c| c.reason == reason.as_str())
            .map_or_else(String::new, |c| c.message.clone())
    };
    match status.close_reason {
        Some(CloseReason::NeverStarted) if said().is_empty() => explanation(world, status),
        Some(CloseReason::ProviderStopped) if said().is_empty() => stops(world),
        Some(CloseReason::NeverStarted | CloseReason::ProviderStopped) => said(),
        Some(
            CloseReason::TermOver
            | CloseReason::Deleted
            | CloseReason::FundsSpent
            | CloseReason::JobSucceeded
            | CloseReason::JobFailed
            | CloseReason::ClosedOnChain
            | CloseReason::Abandoned,
        )
        | None => String::new(),
    }
}

/// Which providers report that they stop, and why.
fn stops(world: &World) -> String {
    let stop = |a: &AllocationSeen| {
        let status = a.object.status.as_ref().filter(|s| is_over(s))?;
        let declined = || status.declined.as_ref().map(|d| d.reason.clone());
        let why = status.stop_reason.map(|why| why.to_string()).or_else(declined);
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        Some(format!("{}{why}", provider_of(a)))
    };
    let stopped: Vec<String> = world.allocations.iter().filter_map(stop).collect();
    match stopped.as_slice() {
        [] => String::new(),
        _ => format!("stopped: {}", stopped.join(", ")),
    }
}

/// The first condition of that type that a provider reports as not True, with a message.
fn not_true(world: &World, type_: ReservationCondition) -> Option<&Condition> {
    reports(world).flatten().find_map(|s| {
        find(&s.conditions, type_)
            .filter(|c| c.status != ConditionStatus::True.as_str() && !c.message.is_empty())
    })
}

/// Sets `ProviderReachable`, and returns whether every provider of the lease reports.
fn set_provider_reachable(world: &World, conditions: &mut Conditions) -> bool {
    let name = |a: &'_ super::AllocationSeen| {
        let namespace = a.object.metadata.namespace.as_deref()?;
        namespace
            .strip_prefix(PROVIDER_NAMESPACE_PREFIX)
            .map(str::to_owned)
    };
    let is_silent = |name: &String| world.providers.iter().any(|p| p.name == *name && !p.alive);
    let silent: Vec<String> = world
        .allocations
        .iter()
        .filter_map(name)
        .filter(is_silent)
        .collect();
    if silent.is_empty() {
        conditions.put(
            LeaseCondition::ProviderReachable,
            ConditionStatus::True,
            LeaseReason::Reachable,
            String::new(),
        );
        return true;
    }
    conditions.put(
        LeaseCondition::ProviderReachable,
        ConditionStatus::Unknown,
        LeaseReason::Silent,
        format!(
            "no report for one minute from: {}; providers continue to serve what is paid",
            silent.join(", ")
        ),
    );
    false
}

fn ready(
    world: &World,
    status: &GpuLeaseStatus,
    step: &Step,
    provisioned: Finding,
    all_report: bool,
    chain_is_read: bool,
) -> Finding {
    let unhealthy = reports(world).flatten().find_map(|s| {
        find(&s.conditions, ReservationCondition::GpusHealthy)
            .filter(|c| c.status == ConditionStatus::False.as_str())
    });
    let active = status.phase == Phase::Active;
    let serves = active && all_serve(world, status);
    let unknown = |reason| (ConditionStatus::Unknown, reason, String::new());
    let (truth, reason, message) = match unhealthy {
        Some(c) if active => (
            ConditionStatus::False,
            reported(&c.reason),
            format!("{}; its leg is not charged until the fault is over", c.message),
        ),
        None if serves && !all_report => unknown(LeaseReason::ProviderSilent),
        None if serves && !chain_is_read => unknown(LeaseReason::ChainUnreachable),
        None if serves => match not_true(world, ReservationCondition::Ready) {
            Some(c) if c.status == ConditionStatus::False.as_str() => {
                (ConditionStatus::False, reported(&c.reason), c.message.clone())
            }
            Some(c) => (ConditionStatus::Unknown, reported(&c.reason), c.message.clone()),
            None => provisioned,
        },
        _ => provisioned,
    };
    let Some((blocker, blocked)) = &step.blocked_on else {
        return (truth, reason, message);
    };
    let message = if message.is_empty() {
        blocked.clone()
    } else {
        message
    };
    let reason = match status.phase {
        Phase::Pending => (*blocker).into(),
        Phase::Matched
        | Phase::Funded
        | Phase::Provisioning
        | Phase::Active
        | Phase::Suspended
        | Phase::Settling
        | Phase::Closed => reason,
    };
    (truth, reason, message)
}

/// The reason of a lease that is ending or has ended.
pub(super) fn ended(reason: Option<CloseReason>) -> LeaseReason {
    reason.map_or(LeaseReason::Closing, LeaseReason::from)
}

/// Reports a write to the chain that failed, in the condition that it concerns.
pub fn chain_failure(
    status: &mut GpuLeaseStatus,
    call: &ChainCall,
    error: &PaymentError,
    generation: i64,
    now: Timestamp,
) {
    use ConditionStatus::{False, Unknown};
    let (truth, reason) = match error {
        PaymentError::Unreachable(_) | PaymentError::WrongChain { .. } | PaymentError::Malformed(_) => {
            (Unknown, LeaseReason::Unreachable)
        }
        PaymentError::Pending { .. } => (Unknown, LeaseReason::Pending),
        PaymentError::Reverted { .. } => (False, LeaseReason::Refused),
        PaymentError::InsufficientGas { .. } => (False, LeaseReason::InsufficientGas),
        PaymentError::LimitExceeded { .. } => (False, LeaseReason::LimitExceeded),
        PaymentError::InsufficientTokens { .. } => (False, LeaseReason::InsufficientFunds),
    };
    let type_ = match (error, call) {
        (PaymentError::Unreachable(_) | PaymentError::WrongChain { .. } | PaymentError::Malformed(_), _) => {
            LeaseCondition::ChainReachable
        }
        (_, ChainCall::Open { .. } | ChainCall::Fund { .. }) => LeaseCondition::Funded,
        (_, ChainCall::Close { .. }) => LeaseCondition::Settled,
    };
    let next = condition(type_, truth, reason, error.to_string(), generation);
    set(&mut status.conditions, next, now);
}

/// Whether a provider stops before the paid time ends, because its pool does not sell a longer term: a message with
/// that time.
fn served_until(world: &World, checked: &Checked) -> Option<String> {
    let paid_until = i64::try_from(checked.account.as_ref()?.paid_until).ok()?;
    let first = world
        .allocations
        .iter()
        .filter_map(|a| Some((a.object.status.as_ref()?.not_after?, a)))
        // A request that the provider has not answered yet may still be granted.
        .filter(|(until, a)| {
            *until < paid_until && *until < a.object.spec.not_after && is_up_to_date(&a.object)
        })
        .min_by_key(|(until, _)| *until);
    let (until, allocation) = first?;
    let time = Timestamp::from_second(until).ok()?;
    let pool = &allocation.object.spec.pool;
    Some(format!(
        "pool {pool} does not sell a longer term: its provider stops at {time}, and the amount paid beyond that is refunded"
    ))
}

/// Whether its provider has seen the newest spec.
fn is_up_to_date(allocation: &GpuAllocation) -> bool {
    let answered = allocation.status.as_ref().map(|s| s.observed_generation);
    answered == allocation.metadata.generation
}
