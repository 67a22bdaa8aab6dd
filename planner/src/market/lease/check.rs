//! What follows from what was seen: the lease in numbers, its account, and whether it is to end.

use leasehold_crds::{
    ANNOTATION_ABANDON,
    lease::{CloseReason, GpuLeaseStatus, IntentAction, OnFundsEnd, Phase, workload::JobResult},
    market::allocation::AllocationPhase,
};

use super::{
    LAG_SECONDS,
    world::{Network, World},
};
use crate::{
    escrow::{Account, AccountRead, Terms, TermsError},
    observed::Observed,
    request::{Request, SpecError},
};

/// What follows from a [`World`].
#[derive(Clone, Debug)]
pub struct Checked {
    /// The spec in numbers.
    pub request: Result<Request, SpecError>,
    /// Terms in status.
    pub terms: Option<Result<Terms, TermsError>>,
    /// Our account, when the chain shows it.
    pub account: Option<Account>,
    /// What is at the account's id.
    pub account_state: AccountState,
    /// Whether its funds are spent, by two reads.
    pub exhausted: bool,
    /// Why the lease is to end, if it is.
    pub end: Option<CloseReason>,
    /// How the job ended, when all nodes are done or one has failed.
    pub job: Option<JobResult>,
}

/// What is known of the account's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// Status names no account.
    NoTerms,
    /// The chain could not be asked.
    Unknown,
    /// Nothing is there, and may come yet.
    Absent,
    /// Nothing is there, two reads agree, and `open_by` is past on the chain: nothing will come.
    NeverOpened,
    /// An account of other terms.
    Mismatch,
    /// Our account.
    Present,
    /// Our account, and two reads agree that it is closed.
    Closed,
}

/// Checks a world.
#[must_use]
pub fn check(world: &World) -> Checked {
    let status = world.lease.status.clone().unwrap_or_default();
    let request = Request::from_spec(&world.lease.spec);
    let terms = status.escrow.as_ref().map(|e| Terms::from_wire(&e.terms));
    let account_state = account_state(world, &status);
    let account = match &world.account {
        Some(Observed::Known(AccountRead::Present(account))) => Some(account.clone()),
        _ => None,
    };
    let exhausted = account
        .as_ref()
        .zip(terms.as_ref().and_then(|t| t.as_ref().ok()))
        .is_some_and(|(account, terms)| {
            is_exhausted(account, terms) && agreed(world, |a| is_exhausted(a, terms))
        });
    let job = job(world);
    let end = end(
        world,
        &status,
        request.as_ref().ok(),
        account.as_ref(),
        account_state,
        exhausted,
        job.as_ref(),
    );
    Checked {
        request,
        terms,
        account,
        account_state,
        exhausted,
        end,
        job,
    }
}

fn account_state(world: &World, status: &GpuLeaseStatus) -> AccountState {
    let Some(escrow) = &status.escrow else {
        return AccountState::NoTerms;
    };
    match &world.account {
        Some(Observed::Known(AccountRead::Present(a))) if a.closed && agreed(world, |a| a.closed) => {
            AccountState::Closed
        }
        Some(Observed::Known(AccountRead::Present(_))) => AccountState::Present,
        // One strange reading is none.
        Some(Observed::Known(AccountRead::Mismatch)) => match world.second_account {
            Some(Observed::Known(AccountRead::Mismatch)) => AccountState::Mismatch,
            _ => AccountState::Unknown,
        },
        Some(Observed::Known(AccountRead::Absent)) => match world.second_account {
            Some(Observed::Known(AccountRead::Absent)) => absent(world, status, escrow.open_by),
            _ => AccountState::Unknown,
        },
        Some(Observed::Unknown(_)) | None => AccountState::Unknown,
    }
}

/// Two reads show no account.
fn absent(world: &World, status: &GpuLeaseStatus, open_by: i64) -> AccountState {
    let head = world.head.known();
    let past = head.is_some_and(|h| {
        let time = i64::try_from(h.time).unwrap_or(i64::MAX);
        time > open_by.saturating_add(LAG_SECONDS)
    });
    let ends = status.close_reason.is_some() || deleting(world);
    if past || (ends && !may_be_under_way(status)) {
        AccountState::NeverOpened
    } else {
        AccountState::Absent
    }
}

/// Whether an `open` may have been sent. One that was never even intended was not.
pub(super) fn may_be_under_way(status: &GpuLeaseStatus) -> bool {
    let intended = status
        .intent
        .as_ref()
        .is_some_and(|i| i.action == IntentAction::Open);
    let seen = !matches!(status.phase, Phase::Pending | Phase::Matched);
    intended || seen
}

pub(super) fn deleting(world: &World) -> bool {
    world.lease.metadata.deletion_timestamp.is_some()
}

/// With less paid time left than this, a provider that stops is not taken for one that gave up.
const LAST_SECONDS: u64 = 5;

/// The reasons to end, in the order of their priority. The first that was stored stays, but for an account given up.
fn end(
    world: &World,
    status: &GpuLeaseStatus,
    request: Option<&Request>,
    account: Option<&Account>,
    account_state: AccountState,
    exhausted: bool,
    job: Option<&JobResult>,
) -> Option<CloseReason> {
    // Whoever gives the account up has most often tried to end the lease before.
    if status.phase != Phase::Closed && abandoned(world, status) {
        return Some(CloseReason::Abandoned);
    }
    if status.close_reason.is_some() {
        return status.close_reason;
    }
    if status.phase == Phase::Closed {
        return Some(CloseReason::ClosedOnChain);
    }
    if let Some(job) = job {
        return Some(if job.exit_code == 0 {
            CloseReason::JobSucceeded
        } else {
            CloseReason::JobFailed
        });
    }
    if deleting(world) {
        return Some(CloseReason::Deleted);
    }
    if account_state == AccountState::NeverOpened && !matches!(status.phase, Phase::Pending | Phase::Matched)
    {
        // It was seen, and the chain has dropped it.
        return Some(CloseReason::ClosedOnChain);
    }
    let account = account?;
    if account.closed {
        return agreed(world, |a| a.closed).then_some(CloseReason::ClosedOnChain);
    }
    let now = account.block_time;
    if account.started_at == 0 {
        let start_by = status
            .escrow
            .as_ref()
            .and_then(|e| u64::try_from(e.terms.start_by).ok());
        let late = |s: u64| now > s && agreed(world, |a| a.started_at == 0 && a.block_time > s);
        return start_by.is_some_and(late).then_some(CloseReason::NeverStarted);
    }
    let stopped = |phase| matches!(phase, AllocationPhase::Stopping | AllocationPhase::Stopped);
    let statuses = || world.allocations.iter().filter_map(|a| a.object.status.as_ref());
    if exhausted {
        let since = second(world).map_or(account.exhausted_at, |a| a.exhausted_at.max(account.exhausted_at));
        let waited = now.saturating_sub(since);
        let patience = match world.lease.spec.payment.on_funds_end {
            OnFundsEnd::Close => 0,
            OnFundsEnd::Pause => request.map_or(0, |r| r.pause_seconds),
        };
        // The tenant may have extended in the last second: that intent is carried out first.
        let extending = status
            .intent
            .as_ref()
            .is_some_and(|i| i.action == IntentAction::Fund);
        if waited >= patience && !extending {
            let whole = request.is_some_and(|r| account.paid_seconds >= r.term_seconds);
            return Some(if whole {
                CloseReason::TermOver
            } else {
                CloseReason::FundsSpent
            });
        }
        return None;
    }
    // A provider that reads the end of the funds a block before us stops first: our own reading tells in a moment.
    let terms = status
        .escrow
        .as_ref()
        .and_then(|e| Terms::from_wire(&e.terms).ok());
    let at_the_end = terms.is_some_and(|t| is_exhausted(account, &t))
        || (account.running != 0 && account.paid_until.saturating_sub(now) <= LAST_SECONDS);
    let first = statuses().find(|s| stopped(s.phase)).filter(|_| !at_the_end)?;
    // Funds that come after their end resume nothing that stopped for it.
    Some(match first.stop_reason.as_deref() {
        Some("FundsSpent") => CloseReason::FundsSpent,
        _ => CloseReason::ProviderStopped,
    })
}

/// Whether the funds are spent: the clock stands since `exhausted_at`, and what is left does not cover a second.
pub(crate) fn is_exhausted(account: &Account, terms: &Terms) -> bool {
    account.exhausted_at != 0
        && account.running == 0
        && account.balance_scaled < terms.burn_rate(account.ended).0
}

/// Whether the second read agrees. What destroys never comes from one reading.
fn agreed(world: &World, fact: impl Fn(&Account) -> bool) -> bool {
    second(world).is_some_and(fact)
}

fn second(world: &World) -> Option<&Account> {
    match &world.second_account {
        Some(Observed::Known(AccountRead::Present(account))) => Some(account),
        _ => None,
    }
}

/// Whether a person gave up the account whose id is in status.
fn abandoned(world: &World, status: &GpuLeaseStatus) -> bool {
    let annotation = world
        .lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ANNOTATION_ABANDON));
    match (annotation, &status.escrow) {
        (Some(value), Some(escrow)) => *value == escrow.terms.id,
        _ => false,
    }
}

/// The job's end: when all nodes are done, or one has failed.
fn job(world: &World) -> Option<JobResult> {
    world.lease.spec.workload.job.as_ref()?;
    let results: Vec<Option<&JobResult>> = world
        .allocations
        .iter()
        .map(|a| a.object.status.as_ref().and_then(|s| s.job.as_ref()))
        .collect();
    let failed = results.iter().flatten().find(|j| j.exit_code != 0);
    let done = !results.is_empty() && results.iter().all(Option::is_some);
    failed
        .or_else(|| {
            if done {
                results.iter().flatten().next()
            } else {
                None
            }
        })
        .map(|j| (*j).clone())
}

impl Checked {
    /// The network, or why the lease has to wait for it.
    pub(super) fn network(world: &World) -> Result<&Network, (&'static str, String)> {
        match &world.network {
            Observed::Known(Some(network)) => Ok(network),
            Observed::Known(None) => Err((
                "NetworkNotFound",
                format!(
                    "there is no usable PaymentNetwork {:?} on this market: `kubectl get paymentnetworks` lists them",
                    world.lease.spec.payment.network
                ),
            )),
            Observed::Unknown(why) => Err(("NetworkUnknown", why.clone())),
        }
    }
}
