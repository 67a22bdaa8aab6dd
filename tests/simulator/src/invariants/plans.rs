//! What a plan may contain, and which transactions may be sent.

use jiff::Timestamp;
use leasehold_chain::machine::Action;
use leasehold_crds::{GpuLease, GpuReservation, lease::Phase, shared::conditions::find};
use leasehold_planner::{
    escrow::{Address, Terms},
    market::lease,
    orphans,
    provider::reservation::{self, Workload},
};

use super::Invariants;
use crate::{Sim, tenant::is_strangers};

/// After a dead node is back, its state is known within this time.
const REVIVED_MS: u64 = 15_000;

impl Invariants {
    fn wake(&mut self, wake: Timestamp, now: Timestamp, notes: bool, about: &str) {
        let in_time = wake <= now + jiff::SignedDuration::from_secs(3600);
        self.require(in_time, || {
            format!("{about} is requeued for {wake}, in more than an hour")
        });
        let ahead = wake > now || (notes && wake == now);
        self.require(ahead, || {
            format!("{about} is requeued for {wake}, which is not after {now}")
        });
    }

    /// Checks the market's plan for a lease.
    pub(crate) fn lease_plan(&mut self, read: &GpuLease, plan: &lease::Plan, now: Timestamp) {
        let before = read.status.clone().unwrap_or_default();
        self.wake(
            plan.wake,
            now,
            plan.must_persist_first(read.status.as_ref()),
            "a lease",
        );
        if before.phase == Phase::Closed {
            // A close that a reorganisation has dropped is sent again.
            let recloses = matches!(plan.call, None | Some(lease::ChainCall::Close { .. }));
            let quiet = recloses && plan.allocations.is_empty() && plan.status.phase == Phase::Closed;
            self.require(quiet, || "the plan for a closed lease is not empty".into());
        }
    }

    /// Checks a provider's plan for a reservation.
    pub(crate) fn reservation_plan(
        &mut self,
        read: &GpuReservation,
        plan: &reservation::Plan,
        now: Timestamp,
    ) {
        let before = read.status.clone().unwrap_or_default();
        let notes = plan.status.intent != before.intent
            || plan.status.stop_reason != before.stop_reason
            || plan.status.phase != before.phase;
        self.wake(plan.wake, now, notes, "a reservation");
        if before.stop_reason.is_some() {
            self.require(!matches!(plan.workload, Workload::Run { .. }), || {
                "a stopped workload is run again".into()
            });
        }
    }

    /// A provider sends a transaction, which must match a stored intent.
    pub(crate) fn provider_sends(&mut self, name: &str, action: &Action) {
        let has = self.leg_intents.contains(&(name.to_owned(), action.name()));
        self.require(has, || format!("M2: {name}: {action} without an intent"));
        if let Action::CreditTo { total_seconds, .. } = action {
            let total = i64::try_from(*total_seconds).unwrap_or(i64::MAX);
            let has = self.credit_intents.contains(&(name.to_owned(), total));
            self.require(has, || {
                format!("M2: {name} credits {total} seconds in total without an intent")
            });
        }
    }
}

impl Sim {
    /// The market sends a transaction, which must match a stored intent and concern an account that the wallet of a tenant
    /// opened: a stranger's costs it neither tokens nor gas.
    pub(crate) fn market_sends(&mut self, caller: Address, action: &Action) {
        let intents =
            |sim: &Self, terms: &Terms| sim.invariants.intents.get(&terms.id().to_string()).copied();
        match action {
            Action::Open { terms, deposit, .. } => {
                let id = terms.id().to_string();
                self.own_account(caller, terms);
                let most = intents(self, terms);
                let accepted = |leg: usize| {
                    let leg = i64::try_from(leg).unwrap_or(0);
                    self.invariants.accepted.contains(&(id.clone(), leg))
                };
                let missing = (0..terms.legs.len()).find(|leg| !accepted(*leg));
                self.invariants.require(most.is_some_and(|t| t >= deposit.0), || {
                    format!("M2: {id} is opened with {deposit}, but no intent allows that much")
                });
                self.invariants.require(missing.is_none(), || {
                    format!("M2: {id} is opened, but leg {missing:?} was never accepted")
                });
            }
            Action::FundTo { terms, total } => {
                self.own_account(caller, terms);
                let most = intents(self, terms);
                self.invariants.require(most.is_some_and(|t| t >= total.0), || {
                    let id = terms.id();
                    format!("M2: {id} is funded to {total}, but no intent allows that much")
                });
            }
            Action::Close { terms, .. } => {
                let id = terms.id().to_string();
                self.own_close(terms);
                let has = self.invariants.close_intents.contains(&id);
                self.invariants
                    .require(has, || format!("M2: {id} is closed without an intent"));
            }
            _ => self
                .invariants
                .violated(|| format!("the market must not send {action}")),
        }
    }

    /// The market closes an account that has no lease: one that it opened, and that is not paid for any more.
    pub(crate) fn market_sweeps(&mut self, terms: &Terms) {
        let id = terms.id();
        self.invariants.count("orphaned account closed".into());
        self.own_close(terms);
        let ended = orphans::assess(terms, &self.chain.account(terms)) != orphans::Verdict::Leave;
        self.invariants.require(ended, || {
            format!("U5: {id} is closed although it may be paid for")
        });
    }

    /// M2: no gas is spent on an account that a stranger opened.
    fn own_close(&mut self, terms: &Terms) {
        let id = terms.id();
        self.invariants.require(!is_strangers(terms), || {
            format!("M2: gas is spent on closing {id}, which a stranger opened")
        });
    }

    /// M2: the wallet pays only into accounts that it opened.
    fn own_account(&mut self, caller: Address, terms: &Terms) {
        self.invariants.require(caller == terms.payer, || {
            format!(
                "M2: {caller} pays into account {}, which {} opened",
                terms.id(),
                terms.payer
            )
        });
    }

    /// U1: a reservation's node counts as lost only while it is dead or was so recently.
    pub(crate) fn check_lost_nodes(&mut self, site: usize, read: &GpuReservation, plan: &reservation::Plan) {
        let gpus = find(&plan.status.conditions, "GpusHealthy");
        if gpus.is_none_or(|c| c.reason != "NodeLost") {
            return;
        }
        let cluster = &self.sites[site].cluster;
        let nodes = || cluster.nodes.iter().filter(|n| read.spec.nodes.contains(&n.name));
        let dead = nodes().any(|n| n.dead_since.is_some());
        let just_back = nodes().any(|n| self.now - n.revived_ms < REVIVED_MS);
        let before = read
            .status
            .as_ref()
            .and_then(|s| find(&s.conditions, "GpusHealthy"));
        if before.is_none_or(|c| c.reason != "NodeLost") {
            self.invariants.count("reservation loses its node".into());
        }
        self.invariants.require(dead || just_back, || {
            format!(
                "U1: a node of {:?} counts as lost but is alive",
                read.metadata.name
            )
        });
    }
}
