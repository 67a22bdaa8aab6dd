//! Plays the story of a lease: each reconcile's plan is carried out as the market's operator would, and its status is
//! what the next one reads.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use leasehold_crds::{
    FINALIZER_MARKET, GpuAllocation, GpuLease,
    lease::GpuLeaseStatus,
    market::allocation::{Acceptance, AllocationPhase, GpuAllocationStatus},
    payment::money::TokenAmount,
    provider::reservation::{ReservationCondition, ReservationReason},
    shared::conditions::{ConditionStatus, condition, set},
};
use leasehold_planner::{
    escrow::{AccountAt, AccountRead, Terms, allocation_name},
    market::lease::{
        AccessToken, AllocationSeen, AllocationWrite, ChainCall, Deletion, Network, Parsed, Plan,
        RecoveredAccount, Wallet, World, chain_failure, check, concerns, decide, events, needs_chain,
        needs_prior, needs_wallet, prior_rounds, trim_allocation, trim_lease, wants_final, wants_second,
    },
    observed::Observed,
    placement::{Candidate, Provider},
    ports::{Balances, FINAL_READS, PaymentError},
};

use crate::{
    account::OpenAccount,
    fixtures::{PAYER, START, at, block, candidates, lease, network, providers},
    page::{Page, time, tokens},
};

/// A market with one lease.
pub(crate) struct Market {
    pub(crate) page: Page,
    pub(crate) now: i64,
    pub(crate) lease: GpuLease,
    pub(crate) network: Observed<Option<Network>>,
    pub(crate) providers: Vec<Provider>,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) allocations: Vec<AllocationSeen>,
    pub(crate) wallet: Observed<Wallet>,
    pub(crate) tokens: TokenAmount,
    pub(crate) gas_wei: u128,
    /// Other leases of the namespace that are matched and unfunded.
    pub(crate) unfunded: usize,
    pub(crate) account: Option<OpenAccount>,
    /// Whether the account's id holds an account of other terms.
    pub(crate) mismatch: bool,
    /// Why the chain cannot be read, if it cannot.
    pub(crate) chain_fails: Option<String>,
    /// What becomes of the next transaction, if it fails.
    pub(crate) call_fails: Option<PaymentError>,
    pub(crate) unanswered: BTreeMap<String, usize>,
}

impl Market {
    /// A lease that was just applied, and a payer with 10 USDC.
    pub(crate) fn new(about: &str) -> Self {
        Self {
            page: Page::new(about),
            now: START,
            lease: lease(),
            network: Observed::Known(Some(network())),
            providers: providers(),
            candidates: candidates(),
            allocations: Vec::new(),
            wallet: Observed::Known(Wallet::Ready(PAYER)),
            tokens: TokenAmount(10_000_000),
            gas_wei: 1_000_000_000_000_000,
            unfunded: 0,
            account: None,
            mismatch: false,
            chain_fails: None,
            call_fails: None,
            unanswered: BTreeMap::new(),
        }
    }

    /// A lease that has been active for a minute. The steps until then are in the story `lease_from_apply_to_active`.
    pub(crate) fn active(about: &str, change: impl FnOnce(&mut GpuLease)) -> Self {
        let mut market = Self::open(about, change);
        market.provider(|status| {
            status.phase = AllocationPhase::Active;
            ready(status, true, "");
        });
        market.start();
        market.quietly();
        market.later(60);
        market
    }

    /// A lease whose account is open; no leg has started.
    pub(crate) fn open(about: &str, change: impl FnOnce(&mut GpuLease)) -> Self {
        let mut market = Self::matched(about, change);
        market.now = START;
        market.accept();
        for _ in 0..3 {
            market.quietly();
        }
        market
    }

    /// A lease whose round has begun: the allocation is created.
    pub(crate) fn matched(about: &str, change: impl FnOnce(&mut GpuLease)) -> Self {
        let mut market = Self::new(about);
        change(&mut market.lease);
        for _ in 0..2 {
            market.quietly();
        }
        market.later(1);
        market
    }

    fn quietly(&mut self) {
        let page = std::mem::replace(&mut self.page, Page::new(""));
        self.reconcile("");
        self.page = page;
    }

    /// Time passes.
    pub(crate) fn later(&mut self, seconds: i64) {
        self.now += seconds;
    }

    /// The status that is stored.
    pub(crate) fn status(&self) -> GpuLeaseStatus {
        self.lease.status.clone().unwrap_or_default()
    }

    /// The tenant deletes the lease.
    pub(crate) fn delete(&mut self) {
        self.lease.metadata.deletion_timestamp = Some(Time(at(self.now)));
    }

    /// The tenant changes the spec.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut GpuLease)) {
        change(&mut self.lease);
        let generation = self.lease.metadata.generation.get_or_insert(1);
        *generation += 1;
    }

    /// The provider reports on its allocation.
    pub(crate) fn provider(&mut self, report: impl FnOnce(&mut GpuAllocationStatus)) {
        self.provider_of(0, report);
    }

    /// The provider of that leg reports on its allocation.
    pub(crate) fn provider_of(&mut self, leg: usize, report: impl FnOnce(&mut GpuAllocationStatus)) {
        let object = Arc::make_mut(&mut self.allocations[leg].object);
        let status = object.status.get_or_insert_default();
        status.observed_generation = object.metadata.generation.unwrap_or_default();
        report(status);
    }

    /// The provider reserves, and signs its acceptance.
    pub(crate) fn accept(&mut self) {
        self.accept_leg(0);
    }

    /// The provider of that leg reserves, and signs its acceptance.
    pub(crate) fn accept_leg(&mut self, leg: usize) {
        let not_after = self.allocations[leg].object.spec.not_after;
        let deadline = self.allocations[leg].object.spec.open_by + 30;
        self.provider_of(leg, |status| {
            status.phase = AllocationPhase::Reserved;
            status.not_after = Some(not_after);
            status.acceptance = Some(Acceptance {
                not_after,
                deadline,
                signature: format!("0x{}", "5".repeat(130)),
            });
        });
        self.allocations[leg].signed = true;
    }

    /// The provider starts its leg.
    pub(crate) fn start(&mut self) {
        self.start_leg(0);
    }

    /// The provider of that leg starts it.
    pub(crate) fn start_leg(&mut self, leg: usize) {
        let now = self.now.unsigned_abs();
        self.account.as_mut().unwrap().start(leg, now);
    }

    /// The plan of one reconcile, written down and carried out.
    pub(crate) fn reconcile(&mut self, what: &str) -> Plan {
        let world = self.world();
        let plan = decide(&world, &check(&world), at(self.now));
        self.page.step(what, self.now);
        let mut after = plan.status.clone();
        let before = self.status();
        let stores_first = plan.must_persist_first(self.lease.status.as_ref());
        if !stores_first {
            self.carry_out(&plan, &mut after);
        }
        self.write(&plan, &before, &after, stores_first);
        if plan.finalizer == Some(true) {
            self.lease.metadata.finalizers = Some(vec![FINALIZER_MARKET.into()]);
        }
        if plan.finalizer == Some(false) && !stores_first {
            self.lease.metadata.finalizers = None;
        }
        self.lease.status = Some(after);
        plan
    }

    fn world(&self) -> World {
        let mut lease = self.lease.clone();
        trim_lease(&mut lease);
        let status = self.status();
        let deletion = Deletion::of(&lease, None);
        let parsed = Parsed::of(
            &lease,
            &deletion,
            &self.network,
            None,
            &self.providers,
            &self.candidates,
        );
        let terms = parsed.terms.clone().and_then(Result::ok);
        let mut world = World {
            deletion,
            parsed,
            network: self.network.clone(),
            gateway: None,
            access_token: Observed::Known(AccessToken::NotRead),
            providers: self.providers.clone().into(),
            candidates: self.candidates.clone().into(),
            allocations: self.seen(&status, terms.as_ref()),
            wallet: Observed::Known(Wallet::NotRead),
            balances: None,
            head: self.read(block(self.now)),
            account: None,
            second_account: None,
            final_reads: Vec::new(),
            prior: Observed::Known(None),
            unfunded_in_namespace: self.unfunded,
            unanswered: self.unanswered.clone(),
            lease: Arc::new(lease),
        };
        if needs_wallet(&world) {
            world.wallet = self.wallet.clone();
        }
        if status.escrow.is_none() && matches!(world.wallet, Observed::Known(Wallet::Ready(_))) {
            world.balances = Some(self.read(Balances {
                token: self.tokens,
                gas_wei: self.gas_wei,
            }));
        }
        if terms.is_some() && needs_chain(&world.lease) {
            let read = self.read(self.account_read());
            world.second_account = wants_second(&world.lease, &read).then(|| read.clone());
            world.final_reads = vec![read.clone(); FINAL_READS * usize::from(wants_final(&read))];
            world.account = Some(read);
        }
        if needs_prior(&world) {
            let found = self
                .account
                .as_ref()
                .filter(|_| prior_rounds(&world.lease).contains(&1));
            let found = found.map(|account| RecoveredAccount {
                round: 1,
                terms: account.terms.clone(),
            });
            world.prior = self.read(found);
        }
        world
    }

    /// The allocations of the account in status, or all of the lease when there is none.
    fn seen(&self, status: &GpuLeaseStatus, terms: Option<&Terms>) -> Vec<AllocationSeen> {
        let is_named = |seen: &&AllocationSeen| {
            let is_of = |terms: &Terms| {
                let mut names = (0..terms.legs.len()).map(|leg| allocation_name(terms.id(), leg));
                names.any(|name| seen.object.metadata.name == Some(name))
            };
            match status.escrow {
                None => concerns(&self.lease, &seen.object, at(self.now)),
                Some(_) => terms.is_some_and(is_of),
            }
        };
        let mut seen: Vec<_> = self.allocations.iter().filter(is_named).cloned().collect();
        for allocation in &mut seen {
            trim_allocation(Arc::make_mut(&mut allocation.object));
        }
        seen
    }

    fn read<T>(&self, value: T) -> Observed<T> {
        match &self.chain_fails {
            Some(why) => Observed::Unknown(why.clone()),
            None => Observed::Known(value),
        }
    }

    fn account_read(&self) -> AccountAt {
        let read = match &self.account {
            _ if self.mismatch => AccountRead::Mismatch,
            Some(account) => account.read(self.now.unsigned_abs()),
            None => AccountRead::Absent,
        };
        AccountAt {
            block: block(self.now),
            read,
        }
    }

    /// Carries out what the plan asks for, as the operator does. A transaction is mined at once.
    fn carry_out(&mut self, plan: &Plan, status: &mut GpuLeaseStatus) {
        for write in &plan.allocations {
            self.write_allocation(write);
        }
        let Some(call) = &plan.call else {
            return;
        };
        if let Some(error) = self.call_fails.take() {
            let generation = self.lease.metadata.generation.unwrap_or_default();
            chain_failure(status, call, &error, generation, at(self.now));
            return;
        }
        let now = self.now.unsigned_abs();
        match call {
            ChainCall::Open { terms, deposit, .. } => {
                self.account = Some(OpenAccount::open(terms.clone(), *deposit));
            }
            ChainCall::Fund { total, .. } => self.account.as_mut().unwrap().fund_to(*total, now),
            ChainCall::Close { payouts, .. } => self.account.as_mut().unwrap().close(*payouts, now),
        }
    }

    fn write_allocation(&mut self, write: &AllocationWrite) {
        let find = |allocations: &mut Vec<AllocationSeen>, name: &str| {
            allocations
                .iter()
                .position(|a| a.object.metadata.name.as_deref() == Some(name))
                .unwrap()
        };
        match write {
            AllocationWrite::Create {
                namespace,
                name,
                spec,
                ..
            } => {
                let mut object = GpuAllocation::new(name, (**spec).clone());
                object.metadata.namespace = Some(namespace.clone());
                object.metadata.generation = Some(1);
                self.allocations.push(AllocationSeen {
                    object: Arc::new(object),
                    signed: false,
                });
            }
            AllocationWrite::Release {
                name, drop_results, ..
            } => {
                let i = find(&mut self.allocations, name);
                let spec = &mut Arc::make_mut(&mut self.allocations[i].object).spec;
                (spec.release, spec.drop_results) = (true, *drop_results);
                self.changed(i);
            }
            AllocationWrite::Prolong { name, not_after, .. } => {
                let i = find(&mut self.allocations, name);
                Arc::make_mut(&mut self.allocations[i].object).spec.not_after = *not_after;
                self.changed(i);
            }
            AllocationWrite::Delete { name, .. } => {
                let i = find(&mut self.allocations, name);
                self.allocations.remove(i);
            }
        }
    }

    fn changed(&mut self, i: usize) {
        let meta = &mut Arc::make_mut(&mut self.allocations[i].object).metadata;
        meta.generation = meta.generation.map(|generation| generation + 1);
    }

    /// Writes the plan down.
    fn write(&mut self, plan: &Plan, before: &GpuLeaseStatus, after: &GpuLeaseStatus, stores_first: bool) {
        let page = &mut self.page;
        page.status((before, &before.conditions), (after, &after.conditions));
        for event in events(Some(before), after) {
            let kind = if event.warning { "Warning" } else { "Normal" };
            page.line("event", format!("{kind} {}: {}", event.reason, event.note));
        }
        match plan.finalizer {
            Some(true) => page.line("finalizer", "add"),
            Some(false) => page.line("finalizer", "remove"),
            None => {}
        }
        if stores_first {
            page.line(
                "writes",
                "only the status is stored; what else is to be done follows in the next reconcile",
            );
        } else {
            plan.allocations.iter().for_each(|write| write_line(page, write));
            plan.call.iter().for_each(|call| call_line(page, call));
        }
        if let Some(provider) = &plan.queued_at {
            page.line("queued at", provider);
        }
        page.wake(plan.wake, self.now);
    }
}

fn call_line(page: &mut Page, call: &ChainCall) {
    let text = match call {
        ChainCall::Open {
            deposit, valid_until, ..
        } => {
            let until = time(at(i64::try_from(*valid_until).unwrap()));
            format!("open the account with {}, valid until {until}", tokens(*deposit))
        }
        ChainCall::Fund { total, .. } => format!("fund the account to {} in all", tokens(*total)),
        ChainCall::Close { payouts, .. } => format!("close the account, pay out legs {payouts:#b}"),
    };
    page.line("chain", text);
}

fn write_line(page: &mut Page, write: &AllocationWrite) {
    match write {
        AllocationWrite::Create {
            namespace,
            name,
            spec,
            ..
        } => {
            page.line("create", format!("GpuAllocation {namespace}/{name}"));
            page.yaml(&**spec);
        }
        AllocationWrite::Release {
            namespace,
            name,
            drop_results,
        } => {
            let dropped = drop_results.then_some(", its results are dropped");
            let results = dropped.unwrap_or_default();
            page.line("release", format!("GpuAllocation {namespace}/{name}{results}"));
        }
        AllocationWrite::Prolong {
            namespace,
            name,
            not_after,
        } => {
            let until = time(at(*not_after));
            let what = format!("GpuAllocation {namespace}/{name}: notAfter {until}");
            page.line("prolong", what);
        }
        AllocationWrite::Delete { namespace, name } => {
            page.line("delete", format!("GpuAllocation {namespace}/{name}"));
        }
    }
}

/// Sets the condition `Ready` that a provider reports.
pub(crate) fn ready(status: &mut GpuAllocationStatus, is_ready: bool, message: &str) {
    let (truth, reason) = if is_ready {
        (ConditionStatus::True, ReservationReason::PodsReady)
    } else {
        (ConditionStatus::False, ReservationReason::PodsNotReady)
    };
    report(status, ReservationCondition::Ready, truth, reason, message);
}

/// Sets the condition `Provisioned` that a provider reports.
pub(crate) fn provisioned(status: &mut GpuAllocationStatus, missing: Option<&str>) {
    let (truth, reason) = match missing {
        Some(_) => (ConditionStatus::False, ReservationReason::ContainersNotStarted),
        None => (ConditionStatus::True, ReservationReason::Started),
    };
    let message = missing.unwrap_or_default();
    report(status, ReservationCondition::Provisioned, truth, reason, message);
}

/// Sets the condition `GpusHealthy` that a provider reports.
pub(crate) fn report_gpu_fault(status: &mut GpuAllocationStatus, fault: Option<&str>) {
    let (truth, reason) = match fault {
        Some(_) => (ConditionStatus::False, ReservationReason::GpuFault),
        None => (ConditionStatus::True, ReservationReason::Healthy),
    };
    let message = fault.unwrap_or_default();
    report(status, ReservationCondition::GpusHealthy, truth, reason, message);
}

/// Sets a condition that a provider reports.
fn report(
    status: &mut GpuAllocationStatus,
    type_: ReservationCondition,
    truth: ConditionStatus,
    reason: ReservationReason,
    message: &str,
) {
    let next = condition(type_, truth, reason, message, 1);
    set(&mut status.conditions, next, at(START));
}
