//! A process of the market's operator: its caches, its view of the providers' offers, and its reconciles.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use leasehold_crds::{GpuAllocation, GpuLease, lease::Phase, market::offer::OfferRow};
use leasehold_planner::{
    endpoints::Endpoints,
    escrow::Address,
    market::{accounts::Accounts, providers::liveness::Liveness},
    orphans::Sweep,
    placement::{Candidate, Provider},
};

use crate::{
    Sim,
    api::{ApiError, Cache, Key},
    faults::Faults,
    random::Random,
    reconcile::{ProcessId, Task, WorkQueue},
    sim::Event,
};

mod allocation_release;
mod lease;
mod orphans;

use allocation_release::AllocationRelease;
use lease::LeaseReconcile;

/// A provider's offer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Offer {
    pub(crate) rows: Vec<OfferRow>,
    /// By the provider's clock, Unix seconds.
    pub(crate) renewed_at: i64,
    pub(crate) payee: Address,
    pub(crate) controller: Address,
}

/// One process of the market's operator.
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
    alive: Liveness,
    index: Accounts,
    sweep: Sweep,
    pub(crate) endpoints: Endpoints,
    /// Bitmap of caches to which watch events are on their way.
    pub(crate) syncing: u8,
    pub(crate) queue: WorkQueue<MarketReconcile>,
}

/// A reconcile that has gathered and decided, and is now writing.
pub(crate) enum MarketReconcile {
    Lease(Box<LeaseReconcile>),
    AllocationRelease(AllocationRelease),
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
            alive: Liveness::default(),
            index: Accounts::default(),
            sweep: Sweep::default(),
            endpoints: faults.endpoints(),
            syncing: 0,
            queue: WorkQueue::default(),
        }
    }
}

impl Sim {
    /// Writes to the market's API server, which may be down or lose the reply.
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
        self.at(0, Event::Networks(who, restarts));
        self.at(30_000, Event::Orphans(who, restarts));
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

    /// Bitmap of caches that are not up to date.
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

    /// Refreshes the snapshot of all offers.
    pub(crate) fn refresh_supply(&mut self, m: usize) {
        if self.faults.market_up {
            self.markets[m].offers.clone_from(&self.offers);
        }
        let now = self.clock(self.markets[m].offset_ms);
        let process = &mut self.markets[m];
        let mut providers = Vec::new();
        let mut candidates = Vec::new();
        for (index, (name, offer)) in process.offers.iter().enumerate() {
            providers.push(Provider {
                name: name.clone(),
                region: String::new(),
                payee: offer.payee,
                controller: offer.controller,
                alive: process
                    .alive
                    .observe(name, Timestamp::from_second(offer.renewed_at).ok(), now),
                answers: true,
                starts: true,
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

    /// Executes the next write of a reconcile.
    pub(crate) fn resume_market(&mut self, m: usize, id: u64) {
        match self.markets[m].queue.next(id) {
            Some((task, MarketReconcile::Lease(run))) => self.resume_lease(m, id, task, run),
            Some((task, MarketReconcile::AllocationRelease(run))) => {
                self.resume_allocation_release(m, id, task, run)
            }
            None => {}
        }
    }
}

/// Treats `NotFound` as success.
pub(crate) fn ignore_not_found<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Ok(_) | Err(ApiError::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Time until `wake`, but not less than a minimum.
pub(crate) fn until_ms(wake: Timestamp, now: Timestamp) -> u64 {
    let ms = wake.duration_since(now).as_millis().clamp(20, 3_600_000);
    u64::try_from(ms).unwrap_or(20)
}
