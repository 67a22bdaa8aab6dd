//! What is done about a lease: a plan so exact that the edge has no choice left.
//!
//! The steps of a lease, in order: store a first status; add the finalizer; recover what was lost ([`super::recover`]); match
//! ([`super::matching`]); ask the providers, store the intent to open, open ([`super::opening`]); wait for the first
//! leg, fund when the term grew or the runway is short ([`super::serving`]); store the intent to close, close, remove
//! the finalizer ([`super::closing`]).

use jiff::Timestamp;
use leasehold_crds::lease::{Blocker, CloseReason, Intent, IntentAction, Phase};

use super::{
    access_token,
    check::{AccountState, Checked, deleting},
    closing, conditions, matching, opening,
    phase::{Fact, after},
    plan::{Plan, in_seconds},
    reads::{has_finalizer, is_closed_without_reason, seeks_prior},
    recover, replacing, reports, serving, starts, summary, unstarted,
    world::{Deletion, RecoveredAccount, World},
};
use crate::observed::Observed;

/// The cause of a deletion that does not end the lease is read again after this long.
const DELETION_CAUSE_SECONDS: u64 = 5;

/// Decides.
#[must_use]
pub fn decide(world: &World, checked: &Checked, now: Timestamp) -> Plan {
    let mut plan = Plan {
        finalizer: None,
        allocations: Vec::new(),
        call: None,
        status: world.lease.status.clone().unwrap_or_default(),
        starts: Vec::new(),
        queued_at: None,
        wake: in_seconds(now, 60),
    };
    plan.status.observed_generation = world.lease.metadata.generation.unwrap_or_default();
    if let Ok(request) = &world.parsed.request {
        plan.status.gpus = i64::try_from(request.gpus()).unwrap_or(i64::MAX);
    }
    if let (Some(account), Some(Ok(terms))) = (&checked.account, &world.parsed.terms)
        && let Ok(network) = world.network()
    {
        summary::set(&mut plan.status, account, terms, network);
    }
    if let Some(account) = &checked.account {
        starts::record(&mut plan.status, account);
        unstarted::record_failures(world, &mut plan.status, account);
    }
    reports::copy_provider_reports(world, checked, &mut plan.status);
    access_token::publish(world, &mut plan.status);
    let step = next(world, checked, now, &mut plan);
    step.apply(&mut plan);
    match world.deletion {
        // Neither the end of the CRD's deletion nor an API server that answers again enqueues the lease.
        Deletion::ByCrd | Deletion::Unknown(_) => {
            plan.wake = plan.wake.min(in_seconds(now, DELETION_CAUSE_SECONDS));
        }
        Deletion::None | Deletion::ByTenant => {}
    }
    conditions::set_all(world, checked, &step, now, &mut plan.status);
    plan.starts = starts::of(world.lease.status.as_ref(), &plan.status);
    plan
}

/// What a step found out about the lease.
pub(super) struct Step {
    /// What is true of the lease now.
    fact: Option<Fact>,
    /// Why it cannot proceed, and a message for a person; empty if nothing is wrong.
    pub(super) blocked_on: Option<(Blocker, String)>,
}

impl Step {
    /// The lease is here.
    pub(super) const fn at(fact: Fact) -> Self {
        Self {
            fact: Some(fact),
            blocked_on: None,
        }
    }

    /// The lease stays where it is.
    pub(super) const fn unchanged() -> Self {
        Self {
            fact: None,
            blocked_on: None,
        }
    }

    /// The lease cannot proceed.
    pub(super) fn blocked(fact: Option<Fact>, blocker: Blocker, message: impl Into<String>) -> Self {
        Self {
            fact,
            blocked_on: Some((blocker, message.into())),
        }
    }

    /// Moves the phase, and stores what the lease waits for while it is not matched.
    fn apply(&self, plan: &mut Plan) {
        let status = &mut plan.status;
        if let Some(phase) = self.fact.and_then(|f| after(status.phase, f)) {
            status.phase = phase;
        }
        match (status.phase, &self.blocked_on) {
            (Phase::Pending, Some((blocker, _))) => status.blocked_on = Some(*blocker),
            (Phase::Pending, None) => {}
            (
                Phase::Matched
                | Phase::Funded
                | Phase::Provisioning
                | Phase::Active
                | Phase::Suspended
                | Phase::Settling
                | Phase::Closed,
                _,
            ) => status.blocked_on = None,
        }
    }
}

fn next(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    let held = has_finalizer(&world.lease);
    if plan.status.phase.is_over() {
        return closing::watch(world, checked, now, plan);
    }
    if !held && !deleting(world) && world.lease.status.is_some() {
        plan.finalizer = Some(true);
    }
    // What was lost is found before anything is begun or given up.
    let closed = is_closed_without_reason(world, &plan.status);
    if (plan.status.escrow.is_none() || plan.status.phase.is_unpaid() || closed)
        && checked.end != Some(CloseReason::Abandoned)
        && let Some(step) = recovered(world, now, plan)
    {
        return step;
    }
    if let Some(reason) = checked.end {
        return closing::end(world, checked, reason, now, plan);
    }
    if checked.ends_round {
        return replacing::end_round(world, checked, now, plan);
    }
    match checked.account_state {
        AccountState::NoTerms => matching::match_offers(world, now, plan),
        AccountState::Unknown => {
            plan.wake = in_seconds(now, 3);
            Step::unchanged()
        }
        AccountState::Mismatch => {
            plan.wake = in_seconds(now, 300);
            Step::blocked(
                None,
                Blocker::AccountMismatch,
                "an account with this lease's id has different terms and is never used; delete the lease and create another",
            )
        }
        AccountState::NeverOpened => opening::lapse("the account was not opened in time", now, plan),
        AccountState::Absent => opening::ask_and_open(world, now, plan),
        AccountState::Present | AccountState::Closed => match (&checked.account, &world.parsed.terms) {
            (Some(account), Some(Ok(terms))) => serving::serve(world, checked, account, terms, now, plan),
            (_, Some(Err(error))) => Step::blocked(None, Blocker::TermsUnreadable, error.to_string()),
            _ => Step::unchanged(),
        },
    }
}

/// The step of a lease that has paid nothing by its status, or whose account is closed for no reason that it shows: an account
/// of a later round is looked for, in case the status was lost or restored from a backup. `None` if there is none.
fn recovered(world: &World, now: Timestamp, plan: &mut Plan) -> Option<Step> {
    if plan.status.escrow.is_none() && !seeks_prior(&world.lease) {
        // It is new, or was searched for before.
        plan.status.recovery_checked = true;
    }
    match &world.prior {
        // What it prevents is the opening of the account in status.
        Observed::Unknown(_) if plan.status.escrow.is_some() && plan.status.phase.is_unpaid() => None,
        Observed::Unknown(why) => {
            plan.wake = in_seconds(now, 5);
            Some(Step::blocked(None, Blocker::ChainUnreachable, why.clone()))
        }
        Observed::Known(Some(account)) => found(world, account, now, plan),
        Observed::Known(None) if plan.status.round == 0 && plan.status.escrow.is_none() => {
            plan.status.recovery_checked = true;
            let step = recover::resume(world, now, plan)?;
            plan.wake = now;
            Some(step)
        }
        Observed::Known(None) => None,
    }
}

/// The step of a lease whose account was found.
fn found(world: &World, account: &RecoveredAccount, now: Timestamp, plan: &mut Plan) -> Option<Step> {
    if let Some(why) = recover::misfit(world, &account.terms) {
        if !deleting(world) {
            plan.wake = in_seconds(now, 60);
            let id = account.terms.id();
            return Some(Step::blocked(
                None,
                Blocker::AccountMismatch,
                format!(
                    "account {id} was opened for this lease, but {why}: delete the lease and create another"
                ),
            ));
        }
        // An account that this market opened can be closed whatever its terms are. Only one of the lease's terms is served
        // and funded.
        let is_own = world
            .network()
            .is_ok_and(|network| network.secret.chose(&account.terms));
        if !is_own {
            return None;
        }
    }
    recover::adopt(world, account, plan);
    if plan.status.escrow.is_none() {
        plan.wake = in_seconds(now, 10);
        return Some(Step::unchanged());
    }
    // The account was opened: the lease does not end before the chain shows what became of it.
    plan.status.intent = Some(Intent {
        action: IntentAction::Open,
        total: None,
        written_at: now.to_string(),
    });
    plan.wake = now;
    Some(Step::unchanged())
}
