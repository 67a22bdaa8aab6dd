//! What is to be done about a lease: a plan so exact that the edge has no choice left.
//!
//! Order of a lease's steps: hold the finalizer; find what an earlier life left; match; ask providers; store the
//! intent to open; open; wait for the first leg; fund when the term grew or the runway is short; store the intent to
//! close; close; let go.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use leasehold_crds::{
    PROVIDER_NAMESPACE_PREFIX,
    lease::{
        CloseReason, GpuLeaseStatus, Intent, IntentAction, LeaseEscrow, Phase, Quote, QuotedOffer, Share,
        workload::ResultsAt,
    },
    market::allocation::{AllocationPhase, GpuAllocationSpec, LeaseReference},
    payment::money::TokenAmount,
};

use super::{
    BACKOFF_SECONDS_MAX, NOT_AFTER_MARGIN_SECONDS, OPEN_MARGIN_SECONDS, OPEN_WITHIN_SECONDS,
    START_WITHIN_SECONDS, UNANSWERED_PER_PROVIDER_MAX, UNFUNDED_PER_NAMESPACE_MAX,
    check::{AccountState, Checked, deleting, may_be_under_way},
    conditions,
    reads::{CHAIN_UNREACHABLE, has_finalizer},
    world::{AllocationSeen, Network, RecoveredAccount, Wallet, World},
};
use crate::{
    escrow::{Account, Leg, Terms, lease_name, salt},
    market::lease::phase::{Fact, after},
    observed::Observed,
    placement::{Choice, place},
    ports::Head,
    request::Request,
};

/// Reason of a lease that waits until a provider has answered others.
pub const QUEUED: &str = "Queued";
/// It is woken when it is its turn; this is for the case that nobody does.
const QUEUED_LOOK_SECONDS: u64 = 300;

/// A write to the chain that a stored intent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainCall {
    /// Open the account with that deposit; refused after `valid_until` (Unix seconds).
    Open {
        terms: Terms,
        deposit: TokenAmount,
        valid_until: u64,
    },
    /// Fill it up to that total.
    Fund { terms: Terms, total: TokenAmount },
    /// Close it and pay out the legs in the bitmap.
    Close { terms: Terms, payouts: u16 },
}

/// A write to an allocation.
#[derive(Clone, Debug, PartialEq)]
pub enum AllocationWrite {
    /// Ask a provider.
    Create {
        namespace: String,
        name: String,
        spec: Box<GpuAllocationSpec>,
    },
    /// Ask it to stop.
    Release {
        namespace: String,
        name: String,
        /// Whether what its job left behind goes too.
        drop_results: bool,
    },
    /// Let it serve longer.
    Prolong {
        namespace: String,
        name: String,
        not_after: i64,
    },
    /// Nothing was ever paid: take the question back.
    Delete { namespace: String, name: String },
}

/// What is to be done on this pass, and when to look again.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Whether the finalizer is to be held; `None` leaves it as it is.
    pub finalizer: Option<bool>,
    /// Writes to allocations, in this order.
    pub allocations: Vec<AllocationWrite>,
    /// The write to the chain that an intent stored earlier asks for.
    pub call: Option<ChainCall>,
    /// The status to be reported.
    pub status: GpuLeaseStatus,
    /// The provider whose answers to others are waited for; when there is one less of them, it is time to look again.
    pub queued_at: Option<String>,
    /// When to look again at the latest.
    pub wake: Timestamp,
}

impl Plan {
    /// What is reported when not every write to an allocation was done: a lease is not closed before what it asked for was
    /// taken back, as nobody would do it after that.
    #[must_use]
    pub fn status_if_incomplete(&self, before: &GpuLeaseStatus) -> GpuLeaseStatus {
        match self.status.phase {
            Phase::Closed => before.clone(),
            _ => self.status.clone(),
        }
    }

    /// The questions that begin with this plan: provider and name of the allocation.
    pub fn new_allocations(&self, before: &GpuLeaseStatus) -> impl Iterator<Item = (&str, &str)> {
        let begins = (before.round, &before.escrow) != (self.status.round, &self.status.escrow);
        let escrow = self.status.escrow.as_ref().filter(|_| begins);
        let shares = escrow.into_iter().flat_map(|e| &e.shares);
        shares.map(|share| (share.provider.as_str(), share.namespace.as_str()))
    }

    /// Whether what begins is to be noted before anything is done: the status is written, and nothing else (M2).
    #[must_use]
    pub fn must_persist_first(&self, before: &GpuLeaseStatus) -> bool {
        let after = &self.status;
        let round = (before.round, &before.escrow) != (after.round, &after.escrow);
        round || (after.intent.is_some() && before.intent != after.intent)
    }
}

/// Decides.
#[must_use]
pub fn decide(world: &World, checked: &Checked, now: Timestamp) -> Plan {
    let mut plan = Plan {
        finalizer: None,
        allocations: Vec::new(),
        call: None,
        status: world.lease.status.clone().unwrap_or_default(),
        queued_at: None,
        wake: in_seconds(now, 60),
    };
    plan.status.observed_generation = world.lease.metadata.generation.unwrap_or_default();
    if let Ok(request) = &checked.request {
        plan.status.gpus = i64::try_from(request.gpus()).unwrap_or(i64::MAX);
    }
    if let (Some(account), Some(Ok(terms))) = (&checked.account, &checked.terms)
        && let Ok(network) = Checked::network(world)
    {
        conditions::money(&mut plan.status, account, terms, network);
    }
    copy_provider_reports(world, checked, &mut plan.status);
    let note = step(world, checked, now, &mut plan);
    conditions::set_all(world, checked, &note, now, &mut plan.status);
    plan
}

/// What the step says to a person about the condition it is about.
pub(super) struct Step {
    /// What is true of the lease now.
    pub(super) fact: Option<Fact>,
    /// Reason and message of what is waited for; empty when nothing is amiss.
    pub(super) blocked_on: Option<(&'static str, String)>,
}

const fn fact(fact: Fact) -> Step {
    Step {
        fact: Some(fact),
        blocked_on: None,
    }
}

fn waiting(fact: Option<Fact>, reason: &'static str, message: impl Into<String>) -> Step {
    Step {
        fact,
        blocked_on: Some((reason, message.into())),
    }
}

fn in_seconds(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX / 4).min(1 << 33);
    now.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

fn step(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    let note = next(world, checked, now, plan);
    if let Some(phase) = note.fact.and_then(|f| after(plan.status.phase, f)) {
        plan.status.phase = phase;
    }
    note
}

fn next(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    let held = has_finalizer(&world.lease);
    if plan.status.phase == Phase::Closed {
        // Closed is final. Only the finalizer may still be there.
        plan.finalizer = held.then_some(false);
        plan.wake = in_seconds(now, 3600);
        return fact(Fact::Ended);
    }
    if !held && !deleting(world) {
        plan.finalizer = Some(true);
    }
    // What an earlier life left is found before anything is begun or given up.
    if plan.status.escrow.is_none() && checked.end != Some(CloseReason::Abandoned) {
        match &world.prior {
            Observed::Unknown(why) => {
                plan.wake = in_seconds(now, 5);
                return waiting(None, CHAIN_UNREACHABLE, why.clone());
            }
            Observed::Known(Some(prior)) => {
                adopt(world, prior, plan);
                plan.wake = if plan.status.escrow.is_some() {
                    now
                } else {
                    in_seconds(now, 10)
                };
                return Step {
                    fact: None,
                    blocked_on: None,
                };
            }
            Observed::Known(None) if plan.status.round == 0 => {
                if let Some(note) = resume(world, now, plan) {
                    plan.wake = now;
                    return note;
                }
            }
            Observed::Known(None) => {}
        }
    }
    if let Some(reason) = checked.end {
        return end(world, checked, reason, now, plan);
    }
    match checked.account_state {
        AccountState::NoTerms => match_offers(world, checked, now, plan),
        AccountState::Unknown => {
            plan.wake = in_seconds(now, 3);
            Step {
                fact: None,
                blocked_on: None,
            }
        }
        AccountState::Mismatch => {
            plan.wake = in_seconds(now, 300);
            waiting(
                None,
                "AccountMismatch",
                "an account with this lease's id has other terms: it is never adopted; delete the lease and apply another",
            )
        }
        AccountState::NeverOpened => lapse("the account was not opened in time", now, plan),
        AccountState::Absent => ask_and_open(world, checked, now, plan),
        AccountState::Present | AccountState::Closed => match (&checked.account, &checked.terms) {
            (Some(account), Some(Ok(terms))) => serve(world, checked, account, terms, now, plan),
            (_, Some(Err(error))) => waiting(None, "TermsUnreadable", error.to_string()),
            _ => Step {
                fact: None,
                blocked_on: None,
            },
        },
    }
}

/// Status was lost: it is written again from the account that was found and the allocations that are there.
fn adopt(world: &World, prior: &RecoveredAccount, plan: &mut Plan) {
    let mine = || {
        let mine = |a: &&AllocationSeen| Terms::from_wire(&a.object.spec.escrow).as_ref() == Ok(&prior.terms);
        world.allocations.iter().filter(mine)
    };
    let (chain_id, contract) = match (&world.network, mine().next()) {
        (Observed::Known(Some(n)), _) => (n.currency.chain_id, n.currency.escrow),
        (_, Some(seen)) => (
            u64::try_from(seen.object.spec.escrow.chain_id).unwrap_or_default(),
            seen.object.spec.escrow.contract.parse().unwrap_or_default(),
        ),
        _ => return,
    };
    let share = |index: usize, leg: &Leg| {
        let of_leg = |a: &&AllocationSeen| usize::try_from(a.object.spec.leg) == Ok(index);
        if let Some(seen) = mine().find(of_leg) {
            let spec = &seen.object.spec;
            return Share {
                provider: provider_of(seen),
                pool: spec.pool.clone(),
                class: spec.class.clone(),
                namespace: allocation_name(&prior.terms, index),
                nodes: spec.nodes,
                price_per_gpu_hour: spec.price_per_gpu_hour.clone(),
            };
        }
        // Its allocation is gone: the leg itself says who serves it.
        let serves = |p: &&crate::placement::Provider| (p.payee, p.controller) == (leg.payee, leg.controller);
        let provider = world.providers.iter().find(serves).map_or("unknown", |p| &p.name);
        Share {
            provider: provider.into(),
            pool: "unknown".into(),
            class: "unknown".into(),
            namespace: allocation_name(&prior.terms, index),
            nodes: 1,
            price_per_gpu_hour: "0".into(),
        }
    };
    plan.status.round = i64::try_from(prior.round).unwrap_or(i64::MAX);
    plan.status.escrow = Some(LeaseEscrow {
        terms: prior.terms.to_wire(chain_id, contract),
        open_by: mine().next().map_or(0, |a| a.object.spec.open_by),
        shares: prior
            .terms
            .legs
            .iter()
            .enumerate()
            .map(|(i, l)| share(i, l))
            .collect(),
    });
    plan.status.providers = providers_text(plan.status.escrow.as_ref());
}

/// Status was lost before the chain shows an account: the newest question that is still there tells the round. When
/// every provider was asked the account may be under way, so it is that round which goes on.
fn resume(world: &World, now: Timestamp, plan: &mut Plan) -> Option<Step> {
    let newest = world.allocations.iter().max_by_key(|a| a.object.spec.round)?;
    let spec = &newest.object.spec;
    let round = spec.round.max(1);
    let mine = || {
        let same = |a: &&AllocationSeen| a.object.spec.escrow == spec.escrow;
        world.allocations.iter().filter(same)
    };
    let asked = |terms: &Terms| mine().count() >= terms.legs.len();
    match Terms::from_wire(&spec.escrow) {
        Ok(terms) if asked(&terms) => {
            let round = round.unsigned_abs();
            if mine().filter(|a| a.signed).count() >= terms.legs.len() {
                // All had accepted: the intent to open may have been stored, and may have been carried out.
                plan.status.intent = Some(Intent {
                    action: IntentAction::Open,
                    total: Some(spec.deposit.clone()),
                    written_at: now.to_string(),
                });
            }
            adopt(world, &RecoveredAccount { round, terms }, plan);
        }
        _ => plan.status.round = round,
    }
    Some(Step {
        fact: None,
        blocked_on: None,
    })
}

fn provider_of(allocation: &AllocationSeen) -> String {
    let namespace = allocation
        .object
        .metadata
        .namespace
        .as_deref()
        .unwrap_or_default();
    namespace
        .strip_prefix(PROVIDER_NAMESPACE_PREFIX)
        .unwrap_or(namespace)
        .to_owned()
}

fn providers_text(escrow: Option<&LeaseEscrow>) -> String {
    let mut names: Vec<&str> = escrow
        .iter()
        .flat_map(|e| &e.shares)
        .map(|s| s.provider.as_str())
        .collect();
    names.dedup();
    names.join(",")
}

/// Explain before pay: the quote first, then the payer's means, then a round.
fn match_offers(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    if !world.allocations.is_empty() {
        delete_all(world, plan);
        plan.wake = in_seconds(now, 1);
        return Step {
            fact: Some(Fact::Unmatched),
            blocked_on: None,
        };
    }
    let request = match &checked.request {
        Ok(request) => request,
        Err(error) => {
            plan.wake = in_seconds(now, 3600);
            return waiting(Some(Fact::Unmatched), "InvalidSpec", error.to_string());
        }
    };
    let network = match Checked::network(world) {
        Ok(network) => network,
        Err((reason, message)) => {
            plan.wake = in_seconds(now, 10);
            return waiting(Some(Fact::Unmatched), reason, message);
        }
    };
    if let Some(until) = backoff_until(&plan.status)
        && until > now
    {
        plan.wake = until;
        return Step {
            fact: Some(Fact::Unmatched),
            blocked_on: None,
        };
    }
    let placed = place(
        request,
        network.currency,
        network.decimals,
        &world.providers,
        &world.candidates,
    );
    plan.wake = in_seconds(now, 30);
    if placed.choices.is_empty() {
        plan.status.quote = Some(placed.quote);
        return waiting(Some(Fact::Unmatched), "NoOffer", placed.problem);
    }
    if !same_offers(plan.status.quote.as_ref(), &placed.quote) {
        plan.status.quote = Some(Quote {
            misses: Vec::new(),
            ..placed.quote
        });
    }
    if world.unfunded_in_namespace >= UNFUNDED_PER_NAMESPACE_MAX {
        plan.wake = in_seconds(now, 5);
        return waiting(
            Some(Fact::Unmatched),
            "TooManyUnfunded",
            format!(
                "{} leases of this namespace wait for their money; the next is matched when one is funded",
                world.unfunded_in_namespace
            ),
        );
    }
    if let Some(provider) = first_saturated_provider(world, &placed.choices) {
        plan.wake = in_seconds(now, QUEUED_LOOK_SECONDS);
        plan.queued_at = Some(provider.to_owned());
        return waiting(
            Some(Fact::Unmatched),
            QUEUED,
            format!(
                "{provider} has {UNANSWERED_PER_PROVIDER_MAX} questions of others to answer first; the oldest lease that waits is next"
            ),
        );
    }
    if world.wallet == Observed::Known(Wallet::NotAsked) {
        // The provider was busy when this pass began to read, and is not any more.
        plan.wake = now;
        return fact(Fact::Unmatched);
    }
    let payer = match payer(world, &placed.choices, request, network) {
        Ok(payer) => payer,
        Err((reason, message)) => {
            plan.wake = in_seconds(now, 10);
            return waiting(Some(Fact::Unmatched), reason, message);
        }
    };
    let Observed::Known(head) = &world.head else {
        plan.wake = in_seconds(now, 3);
        return Step {
            fact: Some(Fact::Unmatched),
            blocked_on: None,
        };
    };
    begin_round(world, request, network, payer, head, &placed.choices, plan);
    plan.wake = now;
    fact(Fact::Asked)
}

/// Whether a quote of earlier names the same pools at the same prices. How many of their nodes are free, and how many of these
/// in part, changes with every lease of everybody's: were that written to each lease that waits, the API server would do
/// nothing else.
fn same_offers(before: Option<&Quote>, now: &Quote) -> bool {
    let offers = |quote: &Quote| -> BTreeSet<[String; 4]> {
        let row = |o: &QuotedOffer| {
            let o = o.clone();
            [o.provider, o.pool, o.class, o.price_per_gpu_hour]
        };
        quote.offers.iter().map(row).collect()
    };
    before.is_some_and(|before| before.misses.is_empty() && offers(before) == offers(now))
}

/// The payer, if its key can be read and it has the deposit and gas.
fn payer(
    world: &World,
    choices: &[Choice],
    request: &Request,
    network: &Network,
) -> Result<crate::escrow::Address, (&'static str, String)> {
    let address = match &world.wallet {
        Observed::Known(Wallet::Ready(address)) => *address,
        Observed::Known(Wallet::NotAsked) => {
            return Err(("WalletUnknown", "the wallet was not read yet".into()));
        }
        Observed::Known(Wallet::NotReadable(message)) => return Err(("WalletNotReadable", message.clone())),
        Observed::Known(Wallet::Malformed(message)) => return Err(("WalletMalformed", message.clone())),
        Observed::Unknown(why) => return Err(("WalletUnknown", why.clone())),
    };
    let balances = match &world.balances {
        Some(Observed::Known(balances)) => balances,
        Some(Observed::Unknown(why)) => return Err((CHAIN_UNREACHABLE, why.clone())),
        None => return Err((CHAIN_UNREACHABLE, "the payer's balance was not read yet".into())),
    };
    let deposit = total_rate(choices)
        .and_then(|r| r.cost_ceil(request.term_seconds))
        .ok_or_else(|| {
            (
                "PriceOutOfRange",
                "the price of this lease is too large to be paid".to_owned(),
            )
        })?;
    if balances.token < deposit {
        return Err((
            "InsufficientFunds",
            format!(
                "{address} holds {} {symbol}, the deposit for {} is {} {symbol}: send it the difference",
                balances.token.to_tokens(network.decimals),
                leasehold_crds::shared::duration::text(request.term_seconds),
                deposit.to_tokens(network.decimals),
                symbol = network.symbol,
            ),
        ));
    }
    if balances.gas_wei == 0 {
        return Err((
            "InsufficientGas",
            format!("{address} holds nothing of the chain's own currency to pay for gas: send it some"),
        ));
    }
    Ok(address)
}

/// The first provider of these that has as many questions as it may have.
pub(super) fn first_saturated_provider<'a>(world: &'a World, choices: &[Choice]) -> Option<&'a str> {
    let name = |choice: &Choice| world.providers[choice.provider].name.as_str();
    let full = |provider: &&str| {
        let unanswered = world.unanswered.get(*provider).copied().unwrap_or_default();
        unanswered >= UNANSWERED_PER_PROVIDER_MAX
    };
    choices.iter().map(name).find(full)
}

fn total_rate(choices: &[Choice]) -> Option<leasehold_crds::payment::money::Rate> {
    choices
        .iter()
        .try_fold(leasehold_crds::payment::money::Rate(0), |sum, c| {
            sum.checked_add(c.rate)
        })
}

fn begin_round(
    world: &World,
    request: &Request,
    network: &Network,
    payer: crate::escrow::Address,
    head: &Head,
    choices: &[Choice],
    plan: &mut Plan,
) {
    let round = plan.status.round.max(0) + 1;
    let uid = world.lease.metadata.uid.clone().unwrap_or_default();
    let open_by = head.time + OPEN_WITHIN_SECONDS;
    let terms = Terms {
        payer,
        market: network.market_id,
        token: network.currency.token,
        closer: network.closer,
        salt: salt(network.market_id, &uid, u64::try_from(round).unwrap_or_default()),
        start_by: open_by + START_WITHIN_SECONDS,
        notice_seconds: 0,
        pause_for: u32::try_from(request.pause_seconds).unwrap_or(u32::MAX),
        legs: choices
            .iter()
            .map(|c| Leg {
                payee: world.providers[c.provider].payee,
                controller: world.providers[c.provider].controller,
                rate: c.rate,
            })
            .collect(),
    };
    plan.status.round = round;
    plan.status.intent = None;
    plan.status.results = Vec::new();
    plan.status.escrow = Some(LeaseEscrow {
        terms: terms.to_wire(network.currency.chain_id, network.currency.escrow),
        open_by: i64::try_from(open_by).unwrap_or(i64::MAX),
        shares: choices
            .iter()
            .enumerate()
            .map(|(leg, c)| Share {
                provider: world.providers[c.provider].name.clone(),
                pool: c.pool.clone(),
                class: c.class.clone(),
                namespace: allocation_name(&terms, leg),
                nodes: i64::try_from(c.nodes).unwrap_or(i64::MAX),
                price_per_gpu_hour: c.price.to_string(),
            })
            .collect(),
    });
    plan.status.providers = providers_text(plan.status.escrow.as_ref());
}

/// Providers reserve before anybody pays; then the intent is stored; then the account is opened.
fn ask_and_open(world: &World, checked: &Checked, now: Timestamp, plan: &mut Plan) -> Step {
    let (Some(escrow), Some(Ok(terms)), Ok(request)) =
        (plan.status.escrow.clone(), &checked.terms, &checked.request)
    else {
        return lapse("the terms in status can't be read", now, plan);
    };
    let Observed::Known(head) = &world.head else {
        plan.wake = in_seconds(now, 3);
        return Step {
            fact: Some(Fact::Asked),
            blocked_on: None,
        };
    };
    let open_by = u64::try_from(escrow.open_by).unwrap_or_default();
    let deposit = terms.rate().cost_ceil(request.term_seconds);
    plan.wake = in_seconds(now, 2);

    if let Some(intent) = &plan.status.intent {
        let total = intent.total.as_deref().and_then(|t| TokenAmount::parse(t).ok());
        if let (IntentAction::Open, Some(deposit), true) = (
            intent.action,
            total,
            head.time + OPEN_MARGIN_SECONDS / 2 < open_by,
        ) {
            plan.call = Some(ChainCall::Open {
                terms: terms.clone(),
                deposit,
                valid_until: open_by,
            });
        }
        // Too late to send: wait until the chain is past `open_by`, then the round lapses.
        return fact(Fact::Asked);
    }
    if !matches!(plan.status.phase, Phase::Pending | Phase::Matched) {
        // It was seen: a block that held it was replaced, and the next may hold it again.
        return Step {
            fact: None,
            blocked_on: None,
        };
    }
    if let Some((provider, declined)) = world.allocations.iter().find_map(|a| {
        let status = a.object.status.as_ref()?;
        (a.object.spec.escrow.id == escrow.terms.id).then_some(())?;
        Some((provider_of(a), status.declined.clone()?))
    }) {
        return lapse(
            &format!("{provider} declined: {} ({})", declined.message, declined.reason),
            now,
            plan,
        );
    }
    if head.time + OPEN_MARGIN_SECONDS > open_by {
        if may_be_under_way(&plan.status) {
            return fact(Fact::Asked);
        }
        return lapse("not every provider reserved in time", now, plan);
    }
    let mut accepted = 0;
    let mut rank = 0;
    for (leg, share) in escrow.shares.iter().enumerate() {
        let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{}", share.provider);
        let name = allocation_name(terms, leg);
        match world
            .allocations
            .iter()
            .find(|a| a.object.metadata.name.as_deref() == Some(&name))
        {
            Some(seen) if seen.signed => accepted += 1,
            Some(_) => {}
            None => plan.allocations.push(AllocationWrite::Create {
                namespace,
                name,
                spec: Box::new(allocation_spec(
                    world,
                    request,
                    &escrow,
                    leg,
                    share,
                    rank,
                    deposit.unwrap_or_default(),
                    plan.status.round,
                )),
            }),
        }
        rank += share.nodes;
    }
    if accepted == escrow.shares.len()
        && let Some(deposit) = deposit
    {
        let total = Some(deposit.to_string());
        plan.status.intent = Some(Intent {
            action: IntentAction::Open,
            total,
            written_at: now.to_string(),
        });
        plan.wake = now;
    }
    fact(Fact::Asked)
}

/// Name of the allocation of a leg: the lease's name and the leg's number.
#[must_use]
pub fn allocation_name(terms: &Terms, leg: usize) -> String {
    format!("{}-{leg}", lease_name(terms.id()))
}

#[expect(clippy::too_many_arguments, reason = "one constructor of one object")]
fn allocation_spec(
    world: &World,
    request: &Request,
    escrow: &LeaseEscrow,
    leg: usize,
    share: &Share,
    first_rank: i64,
    deposit: TokenAmount,
    round: i64,
) -> GpuAllocationSpec {
    let spec = &world.lease.spec;
    let meta = &world.lease.metadata;
    let served =
        request.term_seconds + request.pause_seconds + START_WITHIN_SECONDS + NOT_AFTER_MARGIN_SECONDS;
    GpuAllocationSpec {
        lease: LeaseReference {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        },
        round,
        escrow: escrow.terms.clone(),
        leg: i64::try_from(leg).unwrap_or(i64::MAX),
        deposit: deposit.to_string(),
        open_by: escrow.open_by,
        pool: share.pool.clone(),
        class: share.class.clone(),
        price_per_gpu_hour: share.price_per_gpu_hour.clone(),
        nodes: share.nodes,
        first_rank,
        per_node: spec.per_node.clone(),
        storage: spec.storage.clone(),
        workload: spec.workload.clone(),
        subjects: spec
            .access
            .as_ref()
            .map(|a| a.subjects.clone())
            .unwrap_or_default(),
        on_funds_end: spec.payment.on_funds_end,
        not_after: escrow
            .open_by
            .saturating_add(i64::try_from(served).unwrap_or(i64::MAX / 2)),
        release: false,
        drop_results: false,
    }
}

/// Nothing was paid and nothing will be: that is noted; the questions are taken back before the next round, which
/// waits a little.
fn lapse(why: &str, now: Timestamp, plan: &mut Plan) -> Step {
    plan.status.escrow = None;
    plan.status.intent = None;
    plan.status.providers = String::new();
    plan.wake = in_seconds(now, 1);
    waiting(
        Some(Fact::Unmatched),
        "ReservationLapsed",
        format!("{why}; the next round begins by itself"),
    )
}

fn backoff_until(status: &GpuLeaseStatus) -> Option<Timestamp> {
    let matched = leasehold_crds::shared::conditions::find(&status.conditions, "Matched")?;
    (matched.reason == "ReservationLapsed").then_some(())?;
    let seconds = 1u64 << status.round.clamp(0, 9).unsigned_abs();
    Some(in_seconds(
        matched.last_transition_time.0,
        seconds.min(BACKOFF_SECONDS_MAX),
    ))
}

fn keys(seen: &AllocationSeen) -> (String, String) {
    let meta = &seen.object.metadata;
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// Takes back the questions of this round and earlier ones; what a later round asked is not ours to judge.
fn delete_all(world: &World, plan: &mut Plan) {
    let round = plan.status.round;
    let past = world.allocations.iter().filter(|a| a.object.spec.round <= round);
    plan.allocations.extend(past.map(|a| {
        let (namespace, name) = keys(a);
        AllocationWrite::Delete { namespace, name }
    }));
}

/// The account is open: provision, serve, fund.
fn serve(
    world: &World,
    checked: &Checked,
    account: &Account,
    terms: &Terms,
    now: Timestamp,
    plan: &mut Plan,
) -> Step {
    if plan
        .status
        .intent
        .as_ref()
        .is_some_and(|i| i.action == IntentAction::Open)
    {
        plan.status.intent = None;
    }
    let seconds_left = account.paid_until.saturating_sub(account.block_time);
    plan.wake = in_seconds(
        now,
        if account.running == 0 {
            5
        } else {
            seconds_left.clamp(1, 60)
        },
    );
    if let Ok(request) = &checked.request {
        fund(world, request, account, checked.exhausted, terms, now, plan);
        prolong(world, request, account, plan);
    }
    if account.running != 0 {
        return fact(Fact::Serving);
    }
    if account.started_at != 0 {
        // The clock may run with every leg paused: paid time passes, nobody serves.
        return if checked.exhausted {
            fact(Fact::OutOfFunds)
        } else {
            Step {
                fact: None,
                blocked_on: None,
            }
        };
    }
    let provisioning = world.allocations.iter().any(|a| {
        a.object
            .status
            .as_ref()
            .is_some_and(|s| matches!(s.phase, AllocationPhase::Provisioning | AllocationPhase::Active))
    });
    fact(if provisioning {
        Fact::Provisioning
    } else {
        Fact::Open
    })
}

/// Funds the account when the term grew or the runway is short: stores the intent, or carries out the stored one.
fn fund(
    world: &World,
    request: &Request,
    account: &Account,
    exhausted: bool,
    terms: &Terms,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Some(intent) = plan.status.intent.clone() {
        let total = intent.total.as_deref().and_then(|t| TokenAmount::parse(t).ok());
        match (intent.action, total) {
            (IntentAction::Fund, Some(total)) if account.deposited < total => {
                plan.call = Some(ChainCall::Fund {
                    terms: terms.clone(),
                    total,
                });
                plan.wake = in_seconds(now, 5);
                return;
            }
            (IntentAction::Fund, _) => plan.status.intent = None,
            (IntentAction::Open | IntentAction::Close, _) => return,
        }
    }
    let Some(total) = wanted_total(world, request, account, exhausted, terms) else {
        return;
    };
    if total > account.deposited {
        plan.status.intent = Some(Intent {
            action: IntentAction::Fund,
            total: Some(total.to_string()),
            written_at: now.to_string(),
        });
        plan.wake = now;
    }
}

/// What the account should hold in all: the term's cost, or more by the top-up policy.
fn wanted_total(
    world: &World,
    request: &Request,
    account: &Account,
    exhausted: bool,
    terms: &Terms,
) -> Option<TokenAmount> {
    let rate = terms.rate();
    let term = rate.cost_ceil(request.term_seconds)?;
    let Some(rule) = &request.top_up else {
        return Some(term);
    };
    let Ok(network) = Checked::network(world) else {
        return Some(term);
    };
    let cap = rule.cap(network.decimals).ok()?;
    let runway = match account.paid_until {
        0 => return Some(term),
        _ if exhausted => 0,
        _ if account.exhausted_at != 0 => return Some(term),
        until => until.saturating_sub(account.block_time),
    };
    if runway >= rule.when_below_seconds {
        return Some(term);
    }
    let topped = account
        .deposited
        .checked_add(rate.cost_ceil(rule.extend_seconds)?)?;
    Some(if topped <= cap { topped.max(term) } else { term })
}

/// `notAfter` follows the paid time upwards.
fn prolong(world: &World, request: &Request, account: &Account, plan: &mut Plan) {
    if account.paid_until == 0 {
        return;
    }
    let wanted = account.paid_until + request.pause_seconds + NOT_AFTER_MARGIN_SECONDS;
    let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
    plan.allocations.extend(
        world
            .allocations
            .iter()
            .filter(|a| a.object.spec.not_after < wanted && !a.object.spec.release)
            .map(|a| {
                let (namespace, name) = keys(a);
                AllocationWrite::Prolong {
                    namespace,
                    name,
                    not_after: wanted,
                }
            }),
    );
}

/// The end: providers are asked to stop, the account is closed, the refund is seen, the lease is let go.
fn end(world: &World, checked: &Checked, reason: CloseReason, now: Timestamp, plan: &mut Plan) -> Step {
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
        return fact(Fact::Ended);
    }
    if let (AccountState::Present, Some(Ok(terms))) = (checked.account_state, &checked.terms) {
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
    fact(Fact::Ending)
}

/// What providers report is taken over as they say it; money never depends on it.
fn copy_provider_reports(world: &World, checked: &Checked, status: &mut GpuLeaseStatus) {
    if let Some(job) = &checked.job {
        status.job = Some(job.clone());
    }
    let reports = || {
        let allocations = world.allocations.iter();
        allocations.filter_map(|a| a.object.status.as_ref())
    };
    let mut endpoints: Vec<_> = reports().flat_map(|s| s.endpoints.clone()).collect();
    // An allocation that is gone takes nothing along: its results outlive it.
    let results = reports().flat_map(|s| s.results.iter().cloned());
    let mut by_node: BTreeMap<i64, ResultsAt> = status.results.drain(..).map(|r| (r.node, r)).collect();
    by_node.extend(results.map(|r| (r.node, r)));
    status.results = by_node.into_values().take(64).collect();
    endpoints.truncate(256);
    endpoints.sort_by(|a, b| (a.node, &a.name).cmp(&(b.node, &b.name)));
    status.endpoints = endpoints;
}
