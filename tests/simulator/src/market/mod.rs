//! A process of the market's operator over leases: gathers, and writes one thing at a time, in the order of
//! `operator/src/market/lease/mod.rs`.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kube::ResourceExt as _;
use leasehold_chain::machine::Action;
use leasehold_crds::{
    ANNOTATION_ESCROW, ANNOTATION_KNOWN, FINALIZER_MARKET, GpuAllocation, GpuLease,
    PROVIDER_NAMESPACE_PREFIX,
    lease::{GpuLeaseStatus, Phase},
    market::offer::OfferRow,
};
use leasehold_planner::{
    escrow::{Address, Hash, Terms, salt},
    market::lease::{
        self, AllocationSeen, AllocationWrite, ChainCall, Network, Plan, ROUNDS_MAX, RecoveredAccount,
        Wallet, World,
    },
    observed::Observed,
    placement::{Candidate, Provider},
    ports::{Balances, PaymentError},
};

mod allocation_release;

use allocation_release::AllocationRelease;

use crate::{
    Sim,
    api::{ApiError, Cache, Key},
    faults::Faults,
    provider::is_signed,
    random::Random,
    reconcile::{ProcessId, Task, WorkQueue},
    rpc::{MINE_DEADLINE_MS, Reader},
    sim::Event,
};

/// A provider that was not heard of for so long is silent (`operator/src/market/providers/supply.rs`).
const LIVENESS_TIMEOUT_SECONDS: i64 = 60;

/// What a provider has told the market.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Offer {
    pub(crate) rows: Vec<OfferRow>,
    /// By the provider's clock, Unix seconds.
    pub(crate) renewed_at: i64,
    pub(crate) payee: Address,
    pub(crate) controller: Address,
}

/// One process.
pub(crate) struct MarketProcess {
    pub(crate) up: bool,
    pub(crate) restarts: u64,
    pub(crate) offset_ms: i64,
    /// The lease controller's own cache.
    leases: Cache<GpuLease>,
    /// The shared store.
    pub(crate) lease_store: Cache<GpuLease>,
    /// The allocation controller's own cache.
    pub(crate) allocations: Cache<GpuAllocation>,
    allocation_store: Cache<GpuAllocation>,
    offers: BTreeMap<String, Offer>,
    providers: Arc<[Provider]>,
    candidates: Arc<[Candidate]>,
    index: BTreeMap<Hash, Terms>,
    /// Caches that news is on its way to.
    pub(crate) syncing: u8,
    pub(crate) queue: WorkQueue<MarketReconcile>,
}

/// A pass that has gathered and decided, and now writes.
pub(crate) enum MarketReconcile {
    Lease(Box<LeaseReconcile>),
    AllocationRelease(AllocationRelease),
}

pub(crate) struct LeaseReconcile {
    key: Key,
    read: Arc<GpuLease>,
    /// The lease as it was last written by this pass.
    object: Arc<GpuLease>,
    has_key: bool,
    plan: Plan,
    status: GpuLeaseStatus,
    stage: Stage,
    error: Option<ApiError>,
    notes_only: bool,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Finalizer,
    /// The write of that number; a deletion takes two.
    Allocation(usize, bool),
    Call,
    Wait(u64, u64),
    Status,
    RemoveFinalizer,
}

impl MarketProcess {
    pub(crate) fn new(faults: &Faults, random: &mut Random) -> Self {
        Self {
            up: false,
            restarts: 0,
            offset_ms: faults.clock_offset(random),
            leases: Cache::default(),
            lease_store: Cache::default(),
            allocations: Cache::default(),
            allocation_store: Cache::default(),
            offers: BTreeMap::new(),
            providers: Arc::new([]),
            candidates: Arc::new([]),
            index: BTreeMap::new(),
            syncing: 0,
            queue: WorkQueue::default(),
        }
    }
}

impl Sim {
    /// A write to the market's API: with no answer when it is down, and with a lost one now and then.
    pub(crate) fn market_write<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if !self.faults.market_up {
            return Err(ApiError::Unreachable);
        }
        let written = write(self);
        let lost = self.faults.lost_writes_per_mille;
        if self.random.per_mille(lost) {
            return Err(ApiError::Unreachable);
        }
        written
    }

    pub(crate) fn start_market(&mut self, m: usize) {
        if self.markets[m].up {
            return;
        }
        let who = ProcessId::Market(m);
        if !self.faults.market_up {
            self.at(2_000, Event::Start(who));
            return;
        }
        self.note(|| format!("{who:?} starts"));
        let offset_ms = self.markets[m].offset_ms;
        let restarts = self.markets[m].restarts + 1;
        let mut process = MarketProcess::new(&self.faults, &mut self.random);
        (process.up, process.restarts, process.offset_ms) = (true, restarts, offset_ms);
        self.markets[m] = process;
        for cache in 0..4 {
            self.follow_market(m, cache, usize::MAX);
        }
        self.at(0, Event::Supply(who, restarts));
    }

    pub(crate) fn sync_market(&mut self, m: usize, cache: u8) {
        if self.faults.market_up {
            let events = usize::try_from(self.random.between(1, 12)).unwrap_or(1);
            self.follow_market(m, cache, events);
        }
    }

    fn follow_market(&mut self, m: usize, cache: u8, events: usize) {
        let who = ProcessId::Market(m);
        let process = &mut self.markets[m];
        let mut wanted = Vec::new();
        match cache {
            0 => {
                for (key, _) in process.leases.follow(&self.leases, events) {
                    wanted.push(Task::Lease(key));
                }
            }
            1 => drop(process.lease_store.follow(&self.leases, events)),
            2 => {
                for (key, _) in process.allocations.follow(&self.allocations, events) {
                    wanted.push(Task::AllocationRelease(key));
                }
            }
            _ => {
                for (key, a) in process.allocation_store.follow(&self.allocations, events) {
                    let lease = &a.spec.lease;
                    wanted.push(Task::Lease((lease.namespace.clone(), lease.name.clone())));
                    wanted.push(Task::AllocationRelease(key));
                }
            }
        }
        for task in wanted {
            self.enqueue(who, &task, 0);
        }
    }

    /// Caches that do not know all that happened.
    pub(crate) fn stale_at_market(&self, m: usize) -> u8 {
        let process = &self.markets[m];
        [
            process.leases.is_fresh(&self.leases),
            process.lease_store.is_fresh(&self.leases),
            process.allocations.is_fresh(&self.allocations),
            process.allocation_store.is_fresh(&self.allocations),
        ]
        .iter()
        .enumerate()
        .fold(0, |map, (cache, fresh)| map | u8::from(!fresh) << cache)
    }

    /// The snapshot of all offers.
    pub(crate) fn refresh_supply(&mut self, m: usize) {
        if self.faults.market_up {
            self.markets[m].offers.clone_from(&self.offers);
        }
        let now = self.clock(self.markets[m].offset_ms).as_second();
        let process = &mut self.markets[m];
        let mut providers = Vec::new();
        let mut candidates = Vec::new();
        for (index, (name, offer)) in process.offers.iter().enumerate() {
            providers.push(Provider {
                name: name.clone(),
                region: String::new(),
                payee: offer.payee,
                controller: offer.controller,
                alive: now - offer.renewed_at <= LIVENESS_TIMEOUT_SECONDS,
                answers: true,
            });
            candidates.extend(
                offer
                    .rows
                    .iter()
                    .filter_map(|row| Candidate::from_wire(index, row)),
            );
        }
        let changed = *process.providers != *providers || *process.candidates != *candidates;
        process.providers = providers.into();
        process.candidates = candidates.into();
        if changed {
            let pending: Vec<Key> = process
                .lease_store
                .all()
                .filter(|(_, l)| l.status.as_ref().is_none_or(|s| s.phase == Phase::Pending))
                .map(|(key, _)| key.clone())
                .collect();
            for key in pending {
                self.enqueue(ProcessId::Market(m), &Task::Lease(key), 0);
            }
        }
    }

    pub(crate) fn begin_lease(&mut self, m: usize, key: Key) {
        let Some(mut read) = self.markets[m].leases.get(&key).cloned() else {
            return;
        };
        lease::trim_lease(Arc::make_mut(&mut read));
        let mut reader = Reader::default();
        let world = self.gather_lease(m, &read, &mut reader);
        let now = self.clock_after(self.markets[m].offset_ms, reader.cost_ms);
        let checked = lease::check(&world);
        let plan = lease::decide(&world, &checked, now);
        self.invariants.lease_plan(&read, &plan, now);
        let has_key = matches!(world.wallet, Observed::Known(Wallet::Ready(_)));
        let run = LeaseReconcile {
            object: read.clone(),
            read,
            has_key,
            status: plan.status.clone(),
            plan,
            stage: Stage::Finalizer,
            error: None,
            notes_only: false,
            key: key.clone(),
        };
        let id = self.markets[m]
            .queue
            .begin(Task::Lease(key), MarketReconcile::Lease(Box::new(run)));
        let restarts = self.markets[m].restarts;
        self.at(
            reader.cost_ms,
            Event::Continue(ProcessId::Market(m), restarts, id),
        );
    }

    /// The market's side of every lease as a further pass sees it: what it would do.
    pub(crate) fn plan_lease(&mut self, m: usize, key: &Key) -> Option<(Arc<GpuLease>, Plan)> {
        let read = self.markets[m].leases.get(key).cloned()?;
        let now = self.clock(self.markets[m].offset_ms);
        let world = self.gather_lease(m, &read, &mut Reader::default());
        let plan = lease::decide(&world, &lease::check(&world), now);
        Some((read, plan))
    }

    fn gather_lease(&mut self, m: usize, read: &Arc<GpuLease>, reader: &mut Reader) -> World {
        let who = ProcessId::Market(m);
        let status = read.status.clone().unwrap_or_default();
        let closed = status.phase == Phase::Closed;
        let network = Network {
            currency: self.currency,
            market_id: self.market_id,
            closer: self.closer,
            symbol: "USDC".into(),
            decimals: 6,
        };
        let mut world = World {
            lease: read.clone(),
            network: Observed::Known(Some(network)),
            providers: self.markets[m].providers.clone(),
            candidates: self.markets[m].candidates.clone(),
            allocations: self.allocations_of(m, read, &status),
            wallet: Observed::Known(Wallet::NotAsked),
            balances: None,
            head: Observed::Unknown("there is no usable PaymentNetwork".into()),
            account: None,
            second_account: None,
            prior: Observed::Known(None),
            unfunded_in_namespace: self.unfunded_beside(m, read),
            // Of so few leases no provider is ever busy.
            unanswered: BTreeMap::new(),
        };
        if lease::needs_wallet(&world) {
            world.wallet = if self.faults.market_up {
                reader.cost_ms += 3;
                Observed::Known(self.tenants.wallet(&read.namespace().unwrap_or_default()))
            } else {
                Observed::Unknown("the API server can't be reached".into())
            };
        }
        let terms = status
            .escrow
            .as_ref()
            .and_then(|e| Terms::from_wire(&e.terms).ok());
        if !closed {
            world.head = self.read_head(reader, who);
            if let (Observed::Known(Wallet::Ready(address)), None) = (&world.wallet, &status.escrow) {
                world.balances = Some(match self.read_balance(reader, who, *address) {
                    Observed::Known(token) => Observed::Known(Balances { token, gas_wei: 1 }),
                    Observed::Unknown(why) => Observed::Unknown(why),
                });
            }
            if let Some(terms) = &terms {
                let first = self.read_account(reader, who, terms, 0);
                if lease::wants_second(&first) {
                    world.second_account = Some(self.read_account(reader, who, terms, 0));
                }
                world.account = Some(first);
            }
        }
        world.prior = if !lease::seeks_prior(read) || self.faults.market_up {
            self.prior(m, read, reader)
        } else {
            Observed::Unknown("the allocations can't be listed".into())
        };
        world
    }

    fn unfunded_beside(&self, m: usize, read: &GpuLease) -> usize {
        if read.status.as_ref().is_some_and(|s| s.escrow.is_some()) {
            return 0;
        }
        let others = |l: &&Arc<GpuLease>| {
            l.metadata.namespace == read.metadata.namespace
                && l.status.as_ref().is_some_and(|s| s.phase == Phase::Matched)
        };
        let all = self.markets[m].lease_store.all();
        all.map(|(_, l)| l).filter(others).count()
    }

    fn allocations_of(&self, m: usize, read: &GpuLease, status: &GpuLeaseStatus) -> Vec<AllocationSeen> {
        let store = &self.markets[m].allocation_store;
        let found: Vec<Arc<GpuAllocation>> = match &status.escrow {
            Some(escrow) => {
                let Ok(terms) = Terms::from_wire(&escrow.terms) else {
                    return Vec::new();
                };
                let shares = escrow.shares.iter().enumerate();
                shares
                    .filter_map(|(leg, share)| {
                        let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{}", share.provider);
                        store
                            .get(&(namespace, lease::allocation_name(&terms, leg)))
                            .cloned()
                    })
                    .collect()
            }
            None => {
                let uid = read.metadata.uid.as_ref();
                let mine = |a: &&Arc<GpuAllocation>| Some(&a.spec.lease.uid) == uid;
                if lease::seeks_prior(read) {
                    self.allocations
                        .all()
                        .map(|(_, a)| a)
                        .filter(mine)
                        .cloned()
                        .collect()
                } else {
                    store.all().map(|(_, a)| a).filter(mine).cloned().collect()
                }
            }
        };
        found
            .into_iter()
            .map(|mut object| {
                lease::trim_allocation(Arc::make_mut(&mut object));
                AllocationSeen {
                    signed: is_signed(&object),
                    object,
                }
            })
            .collect()
    }

    fn prior(
        &mut self,
        m: usize,
        read: &GpuLease,
        reader: &mut Reader,
    ) -> Observed<Option<RecoveredAccount>> {
        if !lease::seeks_prior(read) {
            return Observed::Known(None);
        }
        let head = match self.read_head(reader, ProcessId::Market(m)) {
            Observed::Known(head) => head,
            Observed::Unknown(why) => return Observed::Unknown(why),
        };
        let market = self.market_id;
        let index = &mut self.markets[m].index;
        index.extend(
            self.chain
                .opened(head.number)
                .map(|o| (o.terms.salt, o.terms.clone())),
        );
        let uid = read.metadata.uid.clone().unwrap_or_default();
        Observed::Known((1..=ROUNDS_MAX).rev().find_map(|round| {
            let terms = index.get(&salt(market, &uid, round))?.clone();
            Some(RecoveredAccount { round, terms })
        }))
    }

    /// The next write of a pass.
    pub(crate) fn resume_market(&mut self, m: usize, id: u64) {
        match self.markets[m].queue.next(id) {
            Some((task, MarketReconcile::Lease(run))) => self.resume_lease(m, id, task, run),
            Some((task, MarketReconcile::AllocationRelease(run))) => {
                self.resume_allocation_release(m, id, task, run)
            }
            None => {}
        }
    }

    fn resume_lease(&mut self, m: usize, id: u64, task: Task, mut run: Box<LeaseReconcile>) {
        let who = ProcessId::Market(m);
        let next = match run.stage {
            Stage::Finalizer => Some(self.add_finalizer(&mut run)),
            Stage::Allocation(n, half) => Some(self.write_allocation(&mut run, n, half)),
            Stage::Call => Some(self.call_for_lease(who, &mut run)),
            Stage::Wait(transaction, until) => Some(self.wait_for_lease(m, &mut run, transaction, until)),
            Stage::Status => match self.report_lease(&mut run) {
                Ok(()) => Some((Stage::RemoveFinalizer, 2)),
                Err(error) => {
                    self.finish(who, &task, Some(error.retry_ms()));
                    return;
                }
            },
            Stage::RemoveFinalizer => match self.remove_finalizer(&run) {
                Ok(()) => None,
                Err(error) => {
                    self.finish(who, &task, Some(error.retry_ms()));
                    return;
                }
            },
        };
        match next {
            Some((stage, after)) => {
                run.stage = stage;
                let slow = self.random.between(0, self.faults.write_ms);
                let restarts = self.markets[m].restarts;
                self.markets[m]
                    .queue
                    .put_back(id, task, MarketReconcile::Lease(run));
                self.at(after + slow, Event::Continue(who, restarts, id));
            }
            None => {
                let wake = until_ms(run.plan.wake, self.clock(self.markets[m].offset_ms));
                let again = run.error.map_or(wake, |e| wake.min(e.retry_ms()));
                self.finish(who, &task, Some(again));
            }
        }
    }

    fn add_finalizer(&mut self, run: &mut LeaseReconcile) -> (Stage, u64) {
        let held = run.read.finalizers().iter().any(|f| f == FINALIZER_MARKET);
        if run.plan.finalizer == Some(true) && !held {
            let mut finalizers = run.read.finalizers().to_vec();
            finalizers.push(FINALIZER_MARKET.into());
            match self.market_write(|sim| {
                sim.leases
                    .add_finalizers(&run.read, &run.key, finalizers, ANNOTATION_KNOWN)
            }) {
                Ok(object) => run.object = object,
                Err(error) => return failed(run, error),
            }
        }
        let before = run.read.status.clone().unwrap_or_default();
        if run.plan.must_persist_first(&before) {
            run.notes_only = true;
            return (Stage::Status, 1);
        }
        (Stage::Allocation(0, false), 1)
    }

    fn write_allocation(&mut self, run: &mut LeaseReconcile, n: usize, half: bool) -> (Stage, u64) {
        let Some(write) = run.plan.allocations.get(n).cloned() else {
            return (Stage::Call, 0);
        };
        let now = self.clock(0);
        let done = match write {
            AllocationWrite::Create {
                namespace,
                name,
                spec,
            } => {
                let id = spec.escrow.id.clone();
                let mut object = GpuAllocation::new(&name, *spec);
                object.metadata.finalizers = Some(vec![FINALIZER_MARKET.into()]);
                object.metadata.annotations = Some([(ANNOTATION_ESCROW.to_owned(), id)].into());
                self.note(|| format!("creates allocation {namespace}/{name}"));
                self.market_write(|sim| sim.allocations.apply(&(namespace, name), &object).map(drop))
            }
            AllocationWrite::Release {
                namespace,
                name,
                drop_results,
            } => {
                self.note(|| format!("releases {namespace}/{name}"));
                ignore_not_found(self.market_write(|sim| {
                    sim.allocations.patch(&(namespace, name), |a| {
                        a.spec.release = true;
                        a.spec.drop_results |= drop_results;
                    })
                }))
            }
            AllocationWrite::Prolong {
                namespace,
                name,
                not_after,
            } => {
                self.note(|| format!("prolongs {namespace}/{name}"));
                ignore_not_found(self.market_write(|sim| {
                    sim.allocations
                        .patch(&(namespace, name), |a| a.spec.not_after = not_after)
                }))
            }
            AllocationWrite::Delete { namespace, name } => {
                let key = (namespace, name);
                self.note(|| format!("deletes {key:?}, {half}"));
                if half {
                    ignore_not_found(self.market_write(|sim| sim.allocations.delete(&key, now)))
                } else {
                    let off = ignore_not_found(
                        self.market_write(|sim| sim.allocations.set_finalizers(&key, None, Vec::new())),
                    );
                    match off {
                        Ok(()) => return (Stage::Allocation(n, true), 1),
                        Err(error) => Err(error),
                    }
                }
            }
        };
        match done {
            Ok(()) => (Stage::Allocation(n + 1, false), 1),
            Err(error) => failed(run, error),
        }
    }

    fn call_for_lease(&mut self, who: ProcessId, run: &mut LeaseReconcile) -> (Stage, u64) {
        let Some(call) = run.plan.call.clone() else {
            return (Stage::Status, 0);
        };
        let payer = |terms: &Terms| {
            if run.has_key {
                Ok(terms.payer)
            } else {
                Err(PaymentError::Unreachable(
                    "the payer's key can't be read now".into(),
                ))
            }
        };
        let wish = match call {
            ChainCall::Open {
                terms,
                deposit,
                valid_until,
            } => payer(&terms).map(|payer| {
                let action = Action::Open {
                    terms,
                    deposit,
                    valid_until,
                };
                (payer, action)
            }),
            ChainCall::Fund { terms, total } => {
                let there = self.chain.account(&terms);
                if there.present().is_some_and(|a| !a.closed && a.deposited >= total) {
                    return (Stage::Status, 5);
                }
                payer(&terms).map(|payer| (payer, Action::FundTo { terms, total }))
            }
            ChainCall::Close { terms, payouts } => Ok((self.closer, Action::Close { terms, payouts })),
        };
        match wish {
            Ok((caller, action)) => {
                self.invariants.market_sends(&action);
                let (sent, cost) = self.send(who, caller, action);
                match sent {
                    Ok(transaction) => (Stage::Wait(transaction, self.now + MINE_DEADLINE_MS), cost),
                    Err(error) => self.lease_call_failed(who, run, &error, cost),
                }
            }
            Err(error) => self.lease_call_failed(who, run, &error, 0),
        }
    }

    fn wait_for_lease(
        &mut self,
        m: usize,
        run: &mut LeaseReconcile,
        transaction: u64,
        until: u64,
    ) -> (Stage, u64) {
        let who = ProcessId::Market(m);
        let answers = !self.chain.hung && !self.faults.cut_from_chain.contains(&who);
        match self.chain.result(transaction).copied() {
            Some(Ok(())) if answers => (Stage::Status, 1),
            Some(Err(refusal)) if answers => {
                let error = PaymentError::Reverted {
                    error: refusal.to_string(),
                };
                self.lease_call_failed(who, run, &error, 1)
            }
            _ if self.now >= until => {
                let error = PaymentError::Pending {
                    transaction: Hash::default(),
                };
                self.lease_call_failed(who, run, &error, 1)
            }
            _ => (Stage::Wait(transaction, until), 400),
        }
    }

    fn lease_call_failed(
        &mut self,
        who: ProcessId,
        run: &mut LeaseReconcile,
        error: &PaymentError,
        cost: u64,
    ) -> (Stage, u64) {
        let ProcessId::Market(m) = who else {
            return (Stage::Status, cost);
        };
        let now = self.clock(self.markets[m].offset_ms);
        let generation = run.read.metadata.generation.unwrap_or_default();
        if let Some(call) = &run.plan.call {
            lease::chain_failure(&mut run.status, call, error, generation, now);
        }
        (Stage::Status, cost)
    }

    fn report_lease(&mut self, run: &mut LeaseReconcile) -> Result<(), ApiError> {
        if run.read.status.as_ref() == Some(&run.status) {
            return Ok(());
        }
        let (key, status, object) = (&run.key, run.status.clone(), run.object.clone());
        let written = self.market_write(|sim| sim.leases.set_status(&object, key, status));
        if run.read.status.as_ref().map(|s| s.phase) != Some(run.status.phase)
            || run.read.status.as_ref().map(|s| &s.intent) != Some(&run.status.intent)
        {
            let (phase, intent) = (run.status.phase, run.status.intent.as_ref().map(|i| i.action));
            let reason = run.status.close_reason;
            let round = run.status.round;
            let ok = written.as_ref().err();
            self.note(|| {
                format!(
                    "{} is {phase:?}, round {round}, intent {intent:?}, {reason:?}: {ok:?}",
                    key.1
                )
            });
        }
        run.object = written?;
        Ok(())
    }

    fn remove_finalizer(&mut self, run: &LeaseReconcile) -> Result<(), ApiError> {
        if run.plan.finalizer != Some(false) || run.error.is_some() || run.notes_only {
            return Ok(());
        }
        let version = run.object.resource_version();
        self.note(|| format!("lets {} go", run.key.1));
        ignore_not_found(self.market_write(|sim| {
            sim.leases
                .set_finalizers(&run.key, version.as_deref(), Vec::new())
        }))
    }
}

fn failed(run: &mut LeaseReconcile, error: ApiError) -> (Stage, u64) {
    let before = run.read.status.clone().unwrap_or_default();
    run.status = run.plan.status_if_incomplete(&before);
    run.error = Some(error);
    (Stage::Status, 1)
}

/// `Ok` also when it was gone already.
pub(crate) fn ignore_not_found<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Ok(_) | Err(ApiError::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// From now until `wake`, at least a little (`runtime/src/api_writes.rs`).
pub(crate) fn until_ms(wake: Timestamp, now: Timestamp) -> u64 {
    let ms = wake.duration_since(now).as_millis().clamp(20, 3_600_000);
    u64::try_from(ms).unwrap_or(20)
}
