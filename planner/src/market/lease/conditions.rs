//! What a person is told of a lease: conditions with reasons and what to do, money in tokens, Events.

use jiff::Timestamp;
use leasehold_crds::{
    GpuAllocation,
    lease::{AccountSummary, CloseReason, GpuLeaseStatus, IntentAction, Phase},
    market::allocation::AllocationPhase,
    payment::money::TokenAmount,
    shared::conditions::{ConditionStatus, condition, find, is_true, set},
};

use super::{
    check::{AccountState, Checked},
    decide::{ChainCall, QUEUED, Step},
    world::{Network, World},
};
use crate::{
    escrow::{Account, Terms},
    observed::Observed,
    ports::PaymentError,
};

/// Reason of Funded while providers are asked.
const NOT_OPENED: &str = "NotOpened";

/// Writes the account's money for people. Nothing in it ticks.
pub(super) fn money(status: &mut GpuLeaseStatus, account: &Account, terms: &Terms, network: &Network) {
    let time = |seconds: u64| {
        i64::try_from(seconds)
            .ok()
            .filter(|s| *s > 0)
            .and_then(|s| Timestamp::from_second(s).ok())
            .map(|t| t.to_string())
    };
    let tokens = |amount: TokenAmount| amount.to_tokens(network.decimals);
    let earned: u128 = account.legs.iter().map(|l| l.withdrawn.0 + l.owed.0).sum();
    let refunded = TokenAmount(account.deposited.0.saturating_sub(earned));
    status.money = Some(AccountSummary {
        rate: format!(
            "{} {}/h",
            terms.rate().tokens_per_hour_nearest(network.decimals),
            network.symbol
        ),
        rate_per_second: terms.rate().to_string(),
        deposited: tokens(account.deposited),
        // Known from the first read on; the chain keeps no record of it, and after a gap the sum would move it.
        started_at: status
            .money
            .as_ref()
            .and_then(|m| m.started_at.clone())
            .or_else(|| time(account.started_at)),
        paid_until: if account.closed {
            status.money.as_ref().and_then(|m| m.paid_until.clone())
        } else {
            time(account.paid_until)
        },
        spent: account.closed.then(|| tokens(TokenAmount(earned))),
        refunded: account.closed.then(|| tokens(refunded)),
    });
}

/// Sets every condition.
pub(super) fn set_all(
    world: &World,
    checked: &Checked,
    step: &Step,
    now: Timestamp,
    status: &mut GpuLeaseStatus,
) {
    let generation = world.lease.metadata.generation.unwrap_or_default();
    let mut put = |kind, truth, reason: &str, message: String| {
        set(
            &mut status.conditions,
            condition(kind, truth, reason, message, generation),
            now,
        );
    };
    let chain = match (&world.head, &world.account) {
        (Observed::Unknown(why), _) | (_, Some(Observed::Unknown(why))) => Some(why.clone()),
        _ => None,
    };
    match &chain {
        Some(why) => put(
            "ChainReachable",
            ConditionStatus::Unknown,
            "Unreachable",
            format!("{why}; what is known stays as it is, paid work runs on"),
        ),
        None => put(
            "ChainReachable",
            ConditionStatus::True,
            "Reachable",
            String::new(),
        ),
    }
    let phase = status.phase;
    let topping_up = status
        .intent
        .as_ref()
        .is_some_and(|i| i.action == IntentAction::Fund);
    let funded = is_true(&status.conditions, "Funded");
    let settling_failed = find(&status.conditions, "Settled").is_some();
    let waiting = step.blocked_on.as_ref().map(|(r, m)| (*r, m.clone()));
    let mut put = |kind, truth, reason: &str, message: String| {
        set(
            &mut status.conditions,
            condition(kind, truth, reason, message, generation),
            now,
        );
    };
    match (phase, &waiting) {
        (Phase::Pending, Some((reason, message))) => {
            let funds = [
                "WalletNotReadable",
                "WalletMalformed",
                "WalletUnknown",
                "InsufficientFunds",
                "InsufficientGas",
            ];
            if funds.contains(reason) {
                put(
                    "Matched",
                    ConditionStatus::False,
                    "WaitingForFunds",
                    "offers fit; nothing is reserved before the payer's means are seen".into(),
                );
                put("Funded", ConditionStatus::False, reason, message.clone());
            } else {
                let truth = if *reason == "ChainUnreachable" || *reason == "NetworkUnknown" {
                    ConditionStatus::Unknown
                } else {
                    ConditionStatus::False
                };
                put("Matched", truth, reason, message.clone());
                put("Funded", ConditionStatus::False, "NotMatched", String::new());
            }
        }
        (Phase::Pending, None) => {}
        (Phase::Matched, _) => {
            let trouble = waiting.clone();
            put(
                "Matched",
                ConditionStatus::True,
                "Asked",
                "providers are asked to reserve".into(),
            );
            match (trouble, checked.account_state) {
                (Some((reason, message)), _) => put("Funded", ConditionStatus::False, reason, message),
                (None, AccountState::Present | AccountState::Closed) => {}
                (None, _) => put(
                    "Funded",
                    ConditionStatus::False,
                    NOT_OPENED,
                    "the account is not open yet".into(),
                ),
            }
        }
        (Phase::Funded | Phase::Provisioning | Phase::Active | Phase::Suspended, _) => {
            put("Matched", ConditionStatus::True, "Placed", String::new());
            match (phase, &waiting) {
                (Phase::Suspended, _) => put("Funded", ConditionStatus::False, "FundsSpent", "the funds are spent: let term.duration grow, or top up the account, before pauseFor ends".into()),
                (_, Some((reason, message))) => put("Funded", ConditionStatus::Unknown, reason, message.clone()),
                // A top-up failed and is tried again: it is told until one is mined.
                _ if topping_up && !funded => {}
                _ => match served_until(world, checked) {
                    None => put("Funded", ConditionStatus::True, "Deposited", String::new()),
                    Some(message) => put("Funded", ConditionStatus::True, "LongerThanSold", message),
                },
            }
        }
        (Phase::Settling, _) => {}
        (Phase::Closed, _) if settling_failed => {
            put("Settled", ConditionStatus::True, "Closed", String::new())
        }
        (Phase::Closed, _) => {}
    }
    let statuses: Vec<_> = world
        .allocations
        .iter()
        .map(|a| a.object.status.as_ref())
        .collect();
    let active = !statuses.is_empty()
        && statuses
            .iter()
            .all(|s| s.is_some_and(|s| s.phase == AllocationPhase::Active));
    let unhealthy = statuses
        .iter()
        .flatten()
        .find_map(|s| find(&s.conditions, "GpusHealthy").filter(|c| c.status == "False"));
    let not_ready = statuses
        .iter()
        .flatten()
        .find_map(|s| find(&s.conditions, "Ready").filter(|c| c.status != "True" && !c.message.is_empty()));
    let (truth, reason, message) = match phase {
        Phase::Active | Phase::Suspended if active => {
            (ConditionStatus::True, "Serving".to_owned(), String::new())
        }
        Phase::Closed | Phase::Settling => (
            ConditionStatus::False,
            reason_text(status.close_reason).to_owned(),
            String::new(),
        ),
        // What a provider prepares is told once the account is seen to be open.
        Phase::Pending | Phase::Matched => (ConditionStatus::False, "InProgress".to_owned(), String::new()),
        _ => match (not_ready, find(&status.conditions, "Provisioned")) {
            (Some(c), _) => (ConditionStatus::False, c.reason.clone(), c.message.clone()),
            // Its pods are ready, its leg is about to start: not worth a word of its own.
            (None, Some(c)) if c.status == "False" => {
                (ConditionStatus::False, c.reason.clone(), c.message.clone())
            }
            (None, _) => (ConditionStatus::False, "InProgress".to_owned(), String::new()),
        },
    };
    let mut put = |kind, truth, reason: &str, message: String| {
        set(
            &mut status.conditions,
            condition(kind, truth, reason, message, generation),
            now,
        );
    };
    put("Provisioned", truth, &reason, message.clone());
    let silent: Vec<&str> = world
        .allocations
        .iter()
        .filter_map(|a| {
            let name = a
                .object
                .metadata
                .namespace
                .as_deref()?
                .strip_prefix(leasehold_crds::PROVIDER_NAMESPACE_PREFIX)?;
            world
                .providers
                .iter()
                .find(|p| p.name == name && !p.alive)
                .map(|p| p.name.as_str())
        })
        .collect();
    if silent.is_empty() {
        put(
            "ProviderReachable",
            ConditionStatus::True,
            "Reachable",
            String::new(),
        );
    } else {
        put(
            "ProviderReachable",
            ConditionStatus::Unknown,
            "Silent",
            format!(
                "not heard of for a minute: {}; a provider serves on what is paid",
                silent.join(", ")
            ),
        );
    }
    let (truth, reason, message) = match (phase, unhealthy, status.close_reason) {
        (Phase::Closed, _, Some(CloseReason::JobSucceeded)) => {
            (ConditionStatus::True, "JobSucceeded".to_owned(), String::new())
        }
        (Phase::Active, Some(c), _) => (
            ConditionStatus::False,
            c.reason.clone(),
            format!("{}; its share is not charged until it is well again", c.message),
        ),
        (Phase::Active, None, _) if active && !silent.is_empty() => (
            ConditionStatus::Unknown,
            "ProviderSilent".to_owned(),
            String::new(),
        ),
        (Phase::Active, None, _) if active && chain.is_some() => (
            ConditionStatus::Unknown,
            "ChainUnreachable".to_owned(),
            String::new(),
        ),
        _ => (truth, reason, message),
    };
    let message = match (&waiting, phase) {
        (Some((_, m)), _) if message.is_empty() => m.clone(),
        _ => message,
    };
    let reason = match (&waiting, phase) {
        (Some((r, _)), Phase::Pending) => (*r).to_owned(),
        _ => reason,
    };
    set(
        &mut status.conditions,
        condition("Ready", truth, &reason, message, generation),
        now,
    );
}

const fn reason_text(reason: Option<CloseReason>) -> &'static str {
    match reason {
        None => "Closing",
        Some(CloseReason::TermOver) => "TermOver",
        Some(CloseReason::Deleted) => "Deleted",
        Some(CloseReason::FundsSpent) => "FundsSpent",
        Some(CloseReason::JobSucceeded) => "JobSucceeded",
        Some(CloseReason::JobFailed) => "JobFailed",
        Some(CloseReason::NeverStarted) => "NeverStarted",
        Some(CloseReason::ProviderStopped) => "ProviderStopped",
        Some(CloseReason::ClosedOnChain) => "ClosedOnChain",
        Some(CloseReason::Abandoned) => "Abandoned",
    }
}

/// A write to the chain failed: the condition it is about says why and what to do.
pub fn chain_failure(
    status: &mut GpuLeaseStatus,
    call: &ChainCall,
    error: &PaymentError,
    generation: i64,
    now: Timestamp,
) {
    let (truth, reason) = match error {
        PaymentError::Unreachable(_) | PaymentError::WrongChain { .. } | PaymentError::Malformed(_) => {
            (ConditionStatus::Unknown, "Unreachable")
        }
        PaymentError::Pending { .. } => (ConditionStatus::Unknown, "Pending"),
        PaymentError::Reverted { .. } => (ConditionStatus::False, "Refused"),
        PaymentError::InsufficientGas { .. } => (ConditionStatus::False, "InsufficientGas"),
        PaymentError::InsufficientTokens { .. } => (ConditionStatus::False, "InsufficientFunds"),
    };
    let kind = match (error, call) {
        (PaymentError::Unreachable(_) | PaymentError::WrongChain { .. } | PaymentError::Malformed(_), _) => {
            "ChainReachable"
        }
        (_, ChainCall::Open { .. } | ChainCall::Fund { .. }) => "Funded",
        (_, ChainCall::Close { .. }) => "Settled",
    };
    set(
        &mut status.conditions,
        condition(kind, truth, reason, error.to_string(), generation),
        now,
    );
}

/// Whether a provider stops before the paid end, because its pool sells no longer term: until when, for a person.
fn served_until(world: &World, checked: &Checked) -> Option<String> {
    let paid_until = i64::try_from(checked.account.as_ref()?.paid_until).ok()?;
    let first = world
        .allocations
        .iter()
        .filter_map(|a| Some((a.object.status.as_ref()?.not_after?, a)))
        // What it has not answered yet may still be granted.
        .filter(|(until, a)| {
            *until < paid_until && *until < a.object.spec.not_after && is_up_to_date(&a.object)
        })
        .min_by_key(|(until, _)| *until);
    let (until, allocation) = first?;
    let time = Timestamp::from_second(until).ok()?;
    let pool = &allocation.object.spec.pool;
    Some(format!(
        "pool {pool} sells no longer: its provider stops at {time}, and what is paid beyond comes back"
    ))
}

/// Whether its provider has seen the newest that was asked.
fn is_up_to_date(allocation: &GpuAllocation) -> bool {
    let answered = allocation.status.as_ref().map(|s| s.observed_generation);
    answered == allocation.metadata.generation
}

/// What changed that a person would want to know: (warning?, reason, message) each.
#[must_use]
pub fn events(old: Option<&GpuLeaseStatus>, new: &GpuLeaseStatus) -> Vec<(bool, &'static str, String)> {
    let was = old.map_or(Phase::Pending, |s| s.phase);
    let mut events = Vec::new();
    let money = || new.money.clone().unwrap_or_default();
    if was != new.phase {
        events.push(match new.phase {
            Phase::Pending => (
                true,
                "RoundLapsed",
                "nothing was paid; the next round begins by itself".to_owned(),
            ),
            Phase::Matched => (false, "Matched", format!("asked {} to reserve", new.providers)),
            Phase::Funded => (
                false,
                "Funded",
                format!("deposited {}, {} at most", money().deposited, money().rate),
            ),
            Phase::Provisioning => (
                false,
                "Provisioning",
                "providers make the workload ready; nothing is charged yet".to_owned(),
            ),
            Phase::Active => (
                false,
                "Active",
                format!(
                    "serving and charged by the second, paid until {}",
                    money().paid_until.unwrap_or_default()
                ),
            ),
            Phase::Suspended => (
                true,
                "Suspended",
                "the funds are spent; storage is kept for pauseFor".to_owned(),
            ),
            Phase::Settling => (
                false,
                "Settling",
                format!("ending: {}", reason_text(new.close_reason)),
            ),
            Phase::Closed => (
                false,
                "Closed",
                format!(
                    "{}: spent {}, refunded {}",
                    reason_text(new.close_reason),
                    money().spent.unwrap_or_else(|| "0".into()),
                    money().refunded.unwrap_or_else(|| "0".into())
                ),
            ),
        });
    }
    let longer = |s: &GpuLeaseStatus| {
        let funded = find(&s.conditions, "Funded").filter(|c| c.reason == "LongerThanSold");
        funded.map(|c| c.message.clone())
    };
    if let Some(message) = longer(new).filter(|_| old.and_then(longer).is_none()) {
        events.push((true, "LongerThanSold", message));
    }
    for kind in [
        "Matched",
        "Funded",
        "Ready",
        "ChainReachable",
        "ProviderReachable",
    ] {
        let before = old.and_then(|s| find(&s.conditions, kind));
        if let Some(after) = find(&new.conditions, kind)
            && after.status != "True"
            && !after.message.is_empty()
            && before.is_none_or(|b| b.reason != after.reason)
            && is_news(kind, &after.reason, new.phase)
        {
            events.push((
                true,
                event_reason(kind),
                format!("{}: {}", after.reason, after.message),
            ));
        }
    }
    if let (Some(old), Some(new_money)) = (old.and_then(|s| s.money.as_ref()), &new.money)
        && old.deposited != new_money.deposited
        && was != Phase::Pending
    {
        events.push((
            false,
            "ToppedUp",
            format!("deposited {} in all, was {}", new_money.deposited, old.deposited),
        ));
    }
    if new.phase == Phase::Closed && was != Phase::Closed && new.close_reason == Some(CloseReason::Abandoned)
    {
        let id = new
            .escrow
            .as_ref()
            .map(|e| e.terms.id.clone())
            .unwrap_or_default();
        events.push((
            true,
            "Abandoned",
            format!("the payer gets the rest back by calling close(terms, 0) on the escrow for account {id}"),
        ));
    }
    events
}

/// Whether a condition that is not True is worth a warning: what every lease passes through is none.
fn is_news(kind: &str, reason: &str, phase: Phase) -> bool {
    match kind {
        "Ready" => matches!(phase, Phase::Active | Phase::Suspended),
        "Funded" if reason == NOT_OPENED => false,
        "Matched" if reason == QUEUED => false,
        _ => matches!(
            phase,
            Phase::Pending | Phase::Matched | Phase::Active | Phase::Suspended
        ),
    }
}

const fn event_reason(kind: &str) -> &'static str {
    match kind.as_bytes() {
        b"Matched" => "NotMatched",
        b"Funded" => "NotFunded",
        b"Ready" => "NotReady",
        b"ChainReachable" => "ChainUnreachable",
        _ => "ProviderSilent",
    }
}
