//! What follows from the world: the state of the account, and whether the lease is to end.

use leasehold_crds::{
    ANNOTATION_ABANDON,
    lease::{CloseReason, GpuLeaseStatus, IntentAction, LeaseLeg, OnFundsEnd, Phase, workload::JobResult},
    market::allocation::StopReason,
};

use super::{
    LAG_SECONDS, UNSTARTED_ROUNDS_MAX,
    serving::is_provider,
    unstarted::{bit, has_run, is_lost, is_over, leg_of},
    world::{AllocationSeen, World},
};
use crate::{
    escrow::{Account, AccountAt, AccountRead, Terms},
    observed::Observed,
    ports::FINAL_READS,
};

/// What follows from a [`World`].
#[derive(Clone, Debug)]
pub struct Checked {
    /// Our account, when the chain shows it.
    pub account: Option<Account>,
    /// What is at the account's id.
    pub account_state: AccountState,
    /// Whether its funds are spent, by two reads.
    pub exhausted: bool,
    /// Why the lease is to end, if it is.
    pub end: Option<CloseReason>,
    /// Whether the round is to end because a leg was not started: its account is closed, and another one begins.
    pub ends_round: bool,
    /// How the job ended, when all nodes are done or one has failed.
    pub job: Option<JobResult>,
}

/// What is known of the account's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// Status names no account.
    NoTerms,
    /// The chain could not be read.
    Unknown,
    /// There is no account, and one may still be opened.
    Absent,
    /// Nothing is there and nothing will come: two reads agree and `open_by` is past on the chain, or the lease ends before
    /// anything was intended.
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
    let nothing = GpuLeaseStatus::default();
    let status = world.lease.status.as_ref().unwrap_or(&nothing);
    let account_state = account_state(world, status);
    let account = first(world).and_then(AccountAt::present).cloned();
    let exhausted = account
        .as_ref()
        .zip(terms(world))
        .is_some_and(|(account, terms)| {
            is_exhausted(account, terms) && agreed(world, |a| is_exhausted(a, terms))
        });
    let job = job(world, account.as_ref());
    let mut checked = Checked {
        account,
        account_state,
        exhausted,
        end: None,
        ends_round: false,
        job,
    };
    let account = checked.account.as_ref();
    // What ends for want of funds may have ended before all could start, unless it was being closed for it before.
    let counts = !checked.exhausted || status.intends(IntentAction::Close);
    let lost = counts && account.is_some_and(|account| is_lost(world, status, account));
    let over = status.phase == Phase::Settling || status.phase.is_over();
    let repeats = lost && !over && status.unstarted_rounds + 1 < UNSTARTED_ROUNDS_MAX;
    checked.end = end(world, status, &checked, (lost, repeats));
    checked.ends_round = checked.end.is_none() && repeats;
    checked
}

/// The terms in status, if they can be read.
fn terms(world: &World) -> Option<&Terms> {
    world.parsed.terms.as_ref()?.as_ref().ok()
}

pub(super) fn account_state(world: &World, status: &GpuLeaseStatus) -> AccountState {
    let Some(escrow) = &status.escrow else {
        return AccountState::NoTerms;
    };
    let unknown = if ends_before_payment(world, status) {
        AccountState::NeverOpened
    } else {
        AccountState::Unknown
    };
    let Some(one) = first(world) else {
        return unknown;
    };
    match (&one.read, second_read(world)) {
        (AccountRead::Present(a), _) if a.closed && agreed(world, |a| a.closed) => AccountState::Closed,
        (AccountRead::Present(_), _) => AccountState::Present,
        // A single reading of these counts as none.
        (AccountRead::Mismatch, Some(other)) if other.read == AccountRead::Mismatch => AccountState::Mismatch,
        (AccountRead::Absent, Some(other)) if other.read == AccountRead::Absent => {
            let older = one.block.time.min(other.block.time);
            absent(world, status, escrow.open_by, older)
        }
        (AccountRead::Mismatch | AccountRead::Absent, _) => unknown,
    }
}

/// Two reads show no account, the older one at a block of that time. Only an absence in a block after `open_by` shows that
/// none will come: a block after an earlier one may still contain the account.
fn absent(world: &World, status: &GpuLeaseStatus, open_by: i64, block_time: u64) -> AccountState {
    let time = i64::try_from(block_time).unwrap_or(i64::MAX);
    let past = time > open_by.saturating_add(LAG_SECONDS);
    if past || ends_before_payment(world, status) {
        AccountState::NeverOpened
    } else {
        AccountState::Absent
    }
}

/// Whether the lease ends before anything was intended on the chain: no account was opened for it, whether the chain can
/// be read or not.
fn ends_before_payment(world: &World, status: &GpuLeaseStatus) -> bool {
    (status.close_reason.is_some() || deleting(world)) && !may_be_under_way(status)
}

/// Whether an `open` may have been sent. One that was never even intended was not.
pub(super) fn may_be_under_way(status: &GpuLeaseStatus) -> bool {
    status.intends(IntentAction::Open) || !status.phase.is_unpaid()
}

pub(super) fn deleting(world: &World) -> bool {
    world.deletion.ends_lease()
}

/// How long a lease whose funds are spent waits for a payment whose intent is stored.
const FUNDING_SECONDS: u64 = 60;

/// With less paid time left than this, a provider that stops is not taken for one that gave up.
const LAST_SECONDS: u64 = 5;

/// The reasons to end, in the order of their priority. The first that was stored stays, but for an account given up.
/// `lost` is whether a leg of the round was not started, and `repeats` whether another round is to begin for it unless there
/// is another reason to end.
fn end(
    world: &World,
    status: &GpuLeaseStatus,
    checked: &Checked,
    (lost, repeats): (bool, bool),
) -> Option<CloseReason> {
    // Whoever gives the account up has most often tried to end the lease before.
    if !status.phase.is_over() && abandoned(world, status) {
        return Some(CloseReason::Abandoned);
    }
    if status.close_reason.is_some() {
        return status.close_reason;
    }
    if status.phase.is_over() {
        return Some(CloseReason::ClosedOnChain);
    }
    // The jobs of a round that is being ended fail, because their pods are stopped.
    let is_ending = repeats && status.intends(IntentAction::Close);
    if let Some(job) = checked.job.as_ref().filter(|_| !is_ending) {
        return Some(if job.exit_code == 0 {
            CloseReason::JobSucceeded
        } else {
            CloseReason::JobFailed
        });
    }
    if deleting(world) {
        return Some(CloseReason::Deleted);
    }
    if checked.account_state == AccountState::NeverOpened && !status.phase.is_unpaid() {
        // The account was open before, and a chain reorganisation has removed it.
        return Some(CloseReason::ClosedOnChain);
    }
    let account = checked.account.as_ref()?;
    if lost {
        return (!repeats).then_some(CloseReason::NeverStarted);
    }
    if account.closed {
        return agreed(world, |a| a.closed).then_some(CloseReason::ClosedOnChain);
    }
    if account.started_at == 0 {
        return None;
    }
    if checked.exhausted {
        return funds_ended(world, status, account);
    }
    provider_stopped(world, account).or_else(|| leg_ended(world, status, account))
}

/// The funds are spent: the lease ends at once, or after the pause.
fn funds_ended(world: &World, status: &GpuLeaseStatus, account: &Account) -> Option<CloseReason> {
    let since = second(world).map_or(account.exhausted_at, |a| a.exhausted_at.max(account.exhausted_at));
    let waited = account.block_time.saturating_sub(since);
    let patience = match world.lease.spec.payment.on_funds_end {
        OnFundsEnd::Close => 0,
        OnFundsEnd::Pause => world.parsed.request.as_ref().map_or(0, |r| r.pause_seconds),
    };
    // The tenant may have extended in the last second: that intent is carried out first, if the wallet can pay in time.
    let extending = status.intends(IntentAction::Fund);
    let patience = patience + if extending { FUNDING_SECONDS } else { 0 };
    (waited >= patience).then_some(funds_spent(world, account))
}

/// The reason to close a lease whose funds are spent: its term is over, or they ended before it.
fn funds_spent(world: &World, account: &Account) -> CloseReason {
    let request = world.parsed.request.as_ref();
    if request.is_ok_and(|r| account.paid_seconds >= r.term_seconds) {
        CloseReason::TermOver
    } else {
        CloseReason::FundsSpent
    }
}

/// Whether the funds end now. A provider that reads it a block before us stops first: our own read shows it shortly after.
pub(super) fn is_at_the_end(world: &World, account: &Account) -> bool {
    let seconds_left = account.paid_until.saturating_sub(account.block_time);
    terms(world).is_some_and(|t| is_exhausted(account, t))
        || (account.running != 0 && seconds_left <= LAST_SECONDS)
}

/// A provider has stopped before the end of the funds. Until two reads show that a leg has not run, its provider may have
/// started it.
fn provider_stopped(world: &World, account: &Account) -> Option<CloseReason> {
    if is_at_the_end(world, account) {
        return None;
    }
    let mut served = world.allocations.iter().filter(|a| has_run(account, leg_of(a)));
    let stopped = served.find_map(|a| a.object.status.as_ref().filter(|s| is_over(s)))?;
    Some(match stopped.stop_reason {
        // Funds that come after their end resume nothing that stopped for it.
        Some(StopReason::FundsSpent) => funds_spent(world, account),
        Some(
            StopReason::Released
            | StopReason::ReservationDeleted
            | StopReason::AccountClosed
            | StopReason::NeverStarted
            | StopReason::StartUnknown
            | StopReason::NotResumed
            | StopReason::AccountMismatch
            | StopReason::AllocationGone
            | StopReason::Unpaid
            | StopReason::PaymentUnknown
            | StopReason::PauseOver
            | StopReason::NotAfter
            | StopReason::FundsUnknown
            | StopReason::BadTerms
            | StopReason::IsolationDropped,
        )
        | None => CloseReason::ProviderStopped,
    })
}

/// By two reads nobody serves a leg any more, and no allocation reports it: its provider has ended it, which is for good, or
/// it does not run and its provider has left the market.
fn leg_ended(world: &World, status: &GpuLeaseStatus, account: &Account) -> Option<CloseReason> {
    let second = second(world)?;
    let legs = || status.escrow.iter().flat_map(|e| e.legs.iter().enumerate());
    let stands = |bit: u16| (account.running | second.running) & bit == 0;
    let is_left = |(index, leg): (usize, &LeaseLeg)| {
        let reported = world.allocations.iter().any(|a| leg_of(a) == index);
        let left = !world.providers.is_empty() && !is_provider(world, &leg.provider);
        !reported && left && stands(bit(index)) && has_run(account, index)
    };
    let ended = account.ended & second.ended != 0;
    let spent = account.exhausted_at != 0 && second.exhausted_at != 0;
    match (ended, spent) {
        (true, true) => Some(funds_spent(world, account)),
        (true, false) => Some(CloseReason::ProviderStopped),
        (false, _) => legs().any(is_left).then_some(CloseReason::ProviderStopped),
    }
}

/// Whether the funds are spent: the clock stands since `exhausted_at`, and what is left does not cover a second.
fn is_exhausted(account: &Account, terms: &Terms) -> bool {
    account.exhausted_at != 0
        && account.running == 0
        && account.balance_scaled < terms.burn_rate(account.ended).0
}

/// Whether the second read agrees. What destroys never comes from one reading.
fn agreed(world: &World, fact: impl Fn(&Account) -> bool) -> bool {
    second(world).is_some_and(fact)
}

pub(super) fn second(world: &World) -> Option<&Account> {
    second_read(world)?.present()
}

fn first(world: &World) -> Option<&AccountAt> {
    world.account.as_ref().and_then(Observed::known)
}

fn second_read(world: &World) -> Option<&AccountAt> {
    world.second_account.as_ref().and_then(Observed::known)
}

/// Whether the account is closed at the block level at which no reorganisation undoes it.
pub(super) fn is_final(world: &World) -> bool {
    let closed = |read: &Observed<AccountAt>| {
        let account = read.known().and_then(AccountAt::present);
        account.is_some_and(|a| a.closed)
    };
    world.final_reads.len() >= FINAL_READS && world.final_reads.iter().all(closed)
}

/// By how many seconds the newest final block is behind the newest one.
pub(super) fn finality_lag(world: &World) -> Option<u64> {
    let last = world.final_reads.first()?.known()?.block.time;
    Some(first(world)?.block.time.saturating_sub(last))
}

/// Whether a person gave up the account whose id is in status, or, where status names none, the lease with that UID.
pub(super) fn abandoned(world: &World, status: &GpuLeaseStatus) -> bool {
    let annotation = world
        .lease
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ANNOTATION_ABANDON));
    let named = match &status.escrow {
        Some(escrow) => Some(&escrow.terms.id),
        None => world.lease.metadata.uid.as_ref(),
    };
    annotation.is_some() && annotation == named
}

/// Whether the leg of an allocation runs or has run; as long as the account cannot be read, by what the status shows.
fn was_started(world: &World, account: Option<&Account>, allocation: &AllocationSeen) -> bool {
    let leg = leg_of(allocation);
    if let Some(account) = account {
        return has_run(account, leg);
    }
    let escrow = world.lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    escrow
        .and_then(|e| e.legs.get(leg))
        .is_some_and(|leg| leg.started)
}

/// The job's end: when all nodes are done, or one has failed. A leg that was not started has no result: where nothing has
/// run, nothing has succeeded, and a provider that does not start ends no lease that others serve.
fn job(world: &World, account: Option<&Account>) -> Option<JobResult> {
    world.lease.spec.workload.job.as_ref()?;
    let result = |a: &'_ AllocationSeen| {
        let status = a.object.status.as_ref()?;
        let result = status.job.as_ref()?;
        was_started(world, account, a).then(|| result.clone())
    };
    let results: Vec<Option<JobResult>> = world.allocations.iter().map(result).collect();
    let failed = results.iter().flatten().find(|j| j.exit_code != 0);
    let status = world.lease.status.as_ref();
    let legs = status.and_then(|s| s.escrow.as_ref()).map_or(0, |e| e.legs.len());
    // An allocation that is missing says nothing of its leg.
    let done = !results.is_empty() && results.len() >= legs && results.iter().all(Option::is_some);
    failed
        .or_else(|| {
            if done {
                results.iter().flatten().next()
            } else {
                None
            }
        })
        .cloned()
}
