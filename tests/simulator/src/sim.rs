//! The simulated world and its clock: events in the order of their time, with randomness from the seed only.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use jiff::Timestamp;
use leasehold_crds::{GpuAllocation, GpuLease, payment::money::TokenAmount};
use leasehold_planner::{
    escrow::{Address, MarketSecret, keccak},
    placement::Currency,
    ports::SigningKey,
};

use crate::{
    api::Api,
    chain::Chain,
    faults::Faults,
    invariants::Invariants,
    market::{MarketProcess, Offer},
    provider::Site,
    random::Random,
    reconcile::{ProcessId, Task},
    rpc::Reader,
    scenario::{Backup, Scenario},
    tenant::Tenants,
};

/// Time at which every run begins, in Unix milliseconds.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// Time after which nothing may remain once faults have stopped and all leases were deleted.
const REST_MS: u64 = 300_000;
/// Number of log lines that a failure shows.
const LINES_MAX: usize = 120;

/// What happens at a point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Block,
    Kubelets(usize),
    Tenants,
    Faults,
    /// The actor or the fault of a scenario acts.
    Scenario(Scenario),
    /// A process starts.
    Start(ProcessId),
    /// A cache of a process reads further events.
    Sync(ProcessId, u64, u8),
    /// The market refreshes its supply, or a provider its offer.
    Supply(ProcessId, u64),
    /// A provider looks for orphaned namespaces, or the market for orphaned accounts.
    Orphans(ProcessId, u64),
    /// An operator reads the newest block for the status of its PaymentNetworks.
    Networks(ProcessId, u64),
    Due(ProcessId, u64, Task),
    Continue(ProcessId, u64, u64),
}

struct At(u64, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// One run of the simulation.
pub struct Sim {
    /// Number of events so far.
    pub steps: u64,
    pub(crate) now: u64,
    pub(crate) random: Random,
    events: BinaryHeap<Reverse<At>>,
    sequence: u64,
    pub(crate) chain: Chain,
    pub(crate) currency: Currency,
    pub(crate) market_id: Address,
    pub(crate) closer: Address,
    pub(crate) secret: MarketSecret,
    pub(crate) leases: Api<GpuLease>,
    pub(crate) allocations: Api<GpuAllocation>,
    pub(crate) offers: BTreeMap<String, Offer>,
    pub(crate) markets: Vec<MarketProcess>,
    pub(crate) sites: Vec<Site>,
    pub(crate) tenants: Tenants,
    pub(crate) faults: Faults,
    pub(crate) backups: VecDeque<Backup>,
    pub(crate) invariants: Invariants,
    log: VecDeque<String>,
    verbose: bool,
}

/// A made-up address, derived from a name.
pub(crate) fn address_of(name: &str) -> Address {
    let hash = keccak(&[name.as_bytes()]);
    let mut address = [0; 20];
    address.copy_from_slice(&hash.0[..20]);
    Address(address)
}

impl Sim {
    /// Creates the run for that seed. It may contain scenarios whose findings are all closed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(seed, Scenario::drawn(seed))
    }

    /// Creates the run for that seed, in which these scenarios are forced and no others occur.
    #[must_use]
    pub fn with(seed: u64, scenarios: BTreeSet<Scenario>) -> Self {
        let mut random = Random::new(seed);
        let faults = Faults::of(&mut random, scenarios.clone());
        let sites = (0..random.between(1, 3))
            .map(|n| Site::new(usize::try_from(n).unwrap_or(0), &faults, &mut random))
            .collect::<Vec<_>>();
        let markets = (0..2).map(|_| MarketProcess::new(&faults, &mut random)).collect();
        let mut sim = Self {
            steps: 0,
            now: BEGIN_MS,
            events: BinaryHeap::new(),
            sequence: 0,
            chain: Chain::new(BEGIN_MS / 1000),
            currency: Currency {
                chain_id: 31337,
                escrow: address_of("escrow"),
                token: address_of("token"),
            },
            market_id: address_of("market"),
            closer: address_of("closer"),
            secret: MarketSecret::of(&SigningKey([7; 32])),
            leases: Api::default(),
            allocations: Api::default(),
            offers: BTreeMap::new(),
            markets,
            sites,
            tenants: Tenants::new(&mut random),
            faults,
            backups: VecDeque::new(),
            invariants: Invariants::default(),
            log: VecDeque::new(),
            verbose: std::env::var("TRACE").is_ok(),
            random,
        };
        for (payer, amount) in sim.tenants.balances() {
            sim.chain.mint(sim.currency.token, payer, amount);
            sim.invariants.minted = TokenAmount(sim.invariants.minted.0 + amount.0);
        }
        sim.at(0, Event::Block);
        sim.at(500, Event::Tenants);
        sim.at(1_000, Event::Faults);
        for scenario in scenarios {
            sim.at(2_000, Event::Scenario(scenario));
        }
        sim.at(0, Event::Start(ProcessId::Market(0)));
        for site in 0..sim.sites.len() {
            sim.at(10, Event::Start(ProcessId::Provider(site, 0)));
            sim.at(50, Event::Kubelets(site));
        }
        sim
    }

    /// Schedules an event.
    pub(crate) fn at(&mut self, after_ms: u64, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse(At(self.now + after_ms, self.sequence, event)));
    }

    /// Adds a line to the log, which a failure shows.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>9.3} {}", self.seconds_of_run(), line());
        if self.verbose {
            println!("{line}");
        }
        if self.log.len() >= LINES_MAX {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    #[expect(clippy::cast_precision_loss, reason = "for display only")]
    fn seconds_of_run(&self) -> f64 {
        (self.now - BEGIN_MS) as f64 / 1000.0
    }

    /// The leases in the API server.
    pub fn leases(&self) -> impl Iterator<Item = &GpuLease> {
        self.leases.all().map(|(_, lease)| lease.as_ref())
    }

    /// How often each thing happened.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let calls = self.chain.calls.iter();
        let all = self.invariants.counts.iter().chain(calls);
        all.map(|(what, count)| (what.clone(), *count)).collect()
    }

    /// The time of a clock with that offset.
    pub(crate) fn clock(&self, offset_ms: i64) -> Timestamp {
        let ms = i64::try_from(self.now).unwrap_or(i64::MAX) + offset_ms;
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The time of a clock with that offset, some time later.
    pub(crate) fn clock_after(&self, offset_ms: i64, after_ms: u64) -> Timestamp {
        self.clock(offset_ms.saturating_add_unsigned(after_ms))
    }

    /// Processes one event and checks all invariants.
    ///
    /// # Errors
    /// The message of the first violated invariant.
    pub fn step(&mut self) -> Result<(), String> {
        let Some(Reverse(At(time, _, event))) = self.events.pop() else {
            return Err("there are no more events".into());
        };
        self.now = self.now.max(time);
        self.steps += 1;
        match event {
            Event::Block => self.block(),
            Event::Kubelets(site) => self.kubelets(site),
            Event::Tenants => self.tenants_act(),
            Event::Faults => self.change_faults(),
            Event::Scenario(scenario) => self.scenario_acts(scenario),
            Event::Start(who) => self.start(who),
            Event::Sync(who, restarts, cache) => self.sync(who, restarts, cache),
            Event::Supply(who, restarts) => self.supply(who, restarts),
            Event::Orphans(who, restarts) => self.orphans(who, restarts),
            Event::Networks(who, restarts) => self.networks(who, restarts),
            Event::Due(who, restarts, task) => self.due(who, restarts, task),
            Event::Continue(who, restarts, id) => self.resume(who, restarts, id),
        }
        self.schedule_watch_events();
        self.check()
    }

    fn block(&mut self) {
        if !self.chain.hung {
            let time = self.now.saturating_add_signed(self.faults.chain_offset_ms) / 1000;
            if self.faults.reorganises() && self.random.per_mille(15) {
                let depth = usize::try_from(self.random.between(1, 2)).unwrap_or(1);
                self.note(|| format!("the newest {depth} blocks are reorganised"));
                self.chain.reorganise(depth, || false);
            }
            if self.faults.forces(Scenario::DroppedTransactions) && self.random.per_mille(120) {
                self.drop_transactions();
            }
            self.chain.mine(time, &mut self.random);
        }
        self.at(self.faults.block_ms, Event::Block);
    }

    /// Whether the process is up and was not restarted since.
    pub(crate) fn is_current(&self, who: ProcessId, restarts: u64) -> bool {
        let up = match who {
            ProcessId::Market(m) => self.markets[m].up,
            ProcessId::Provider(s, p) => self.sites[s].processes[p].up,
        };
        up && self.restarts(who) == restarts
    }

    /// How often the process was started.
    pub(crate) fn restarts(&self, who: ProcessId) -> u64 {
        match who {
            ProcessId::Market(m) => self.markets[m].restarts,
            ProcessId::Provider(s, p) => self.sites[s].processes[p].restarts,
        }
    }

    /// Kills a process, which happens between two writes.
    pub(crate) fn kill(&mut self, who: ProcessId) {
        self.note(|| format!("{who:?} is killed"));
        match who {
            ProcessId::Market(m) => self.markets[m].up = false,
            ProcessId::Provider(s, p) => self.sites[s].processes[p].up = false,
        }
    }

    fn start(&mut self, who: ProcessId) {
        match who {
            ProcessId::Market(m) => self.start_market(m),
            ProcessId::Provider(s, p) => self.start_provider(s, p),
        }
    }

    fn sync(&mut self, who: ProcessId, restarts: u64, cache: u8) {
        if !self.is_current(who, restarts) {
            return;
        }
        match who {
            ProcessId::Market(m) => {
                self.markets[m].syncing &= !(1 << cache);
                self.sync_market(m, cache);
            }
            ProcessId::Provider(s, p) => {
                self.sites[s].processes[p].syncing &= !(1 << cache);
                self.sync_provider(s, p, cache);
            }
        }
    }

    /// Schedules the delivery of watch events to every cache that is not up to date, each with its own delay.
    fn schedule_watch_events(&mut self) {
        for who in self.all_processes() {
            let (stale, syncing, restarts) = match who {
                ProcessId::Market(m) => (
                    self.stale_at_market(m),
                    self.markets[m].syncing,
                    self.markets[m].restarts,
                ),
                ProcessId::Provider(s, p) => {
                    let process = &self.sites[s].processes[p];
                    (self.stale_at_provider(s, p), process.syncing, process.restarts)
                }
            };
            let due = stale & !syncing;
            if due == 0 || !self.is_current(who, restarts) {
                continue;
            }
            for cache in (0..8).filter(|c| due & (1 << c) != 0) {
                let (low, high) = self.faults.watch_lag_ms;
                let after = self.random.between(low, high);
                self.at(after, Event::Sync(who, restarts, cache));
            }
            match who {
                ProcessId::Market(m) => self.markets[m].syncing |= due,
                ProcessId::Provider(s, p) => self.sites[s].processes[p].syncing |= due,
            }
        }
    }

    fn supply(&mut self, who: ProcessId, restarts: u64) {
        if !self.is_current(who, restarts) {
            return;
        }
        match who {
            ProcessId::Market(m) => self.refresh_supply(m),
            ProcessId::Provider(s, p) => self.publish_offer(s, p),
        }
        let after = self.random.between(500, 5_000);
        self.at(after, Event::Supply(who, restarts));
    }

    fn orphans(&mut self, who: ProcessId, restarts: u64) {
        if !self.is_current(who, restarts) {
            return;
        }
        match who {
            ProcessId::Market(m) => self.close_orphans(m),
            ProcessId::Provider(s, p) => self.clear_orphans(s, p),
        }
        self.at(30_000, Event::Orphans(who, restarts));
    }

    /// Reads the newest block, as each operator does for the status of its PaymentNetworks, so that it follows the chain
    /// while nothing else reads it.
    fn networks(&mut self, who: ProcessId, restarts: u64) {
        if !self.is_current(who, restarts) {
            return;
        }
        self.read_head(&mut Reader::default(), who);
        self.at(15_000, Event::Networks(who, restarts));
    }

    /// Enqueues an object.
    pub(crate) fn enqueue(&mut self, who: ProcessId, task: &Task, after_ms: u64) {
        let at = self.now + after_ms;
        let (earlier, restarts) = match who {
            ProcessId::Market(m) => (self.markets[m].queue.enqueue(task, at), self.markets[m].restarts),
            ProcessId::Provider(s, p) => {
                let process = &mut self.sites[s].processes[p];
                (process.queue.enqueue(task, at), process.restarts)
            }
        };
        if earlier {
            self.at(after_ms, Event::Due(who, restarts, task.clone()));
        }
    }

    fn due(&mut self, who: ProcessId, restarts: u64, task: Task) {
        if !self.is_current(who, restarts) {
            return;
        }
        let taken = match who {
            ProcessId::Market(m) => self.markets[m].queue.take(&task, self.now),
            ProcessId::Provider(s, p) => self.sites[s].processes[p].queue.take(&task, self.now),
        };
        if !taken {
            return;
        }
        self.invariants.reconcile_begins(who, &task, self.now);
        match (who, task) {
            (ProcessId::Market(m), Task::Lease(key)) => self.begin_lease(m, key),
            (ProcessId::Market(m), Task::AllocationRelease(key)) => self.begin_allocation_release(m, key),
            (ProcessId::Provider(s, p), Task::Allocation(key)) => self.begin_allocation(s, p, key),
            (ProcessId::Provider(s, p), Task::Reservation(key)) => self.begin_reservation(s, p, key),
            (who, task) => unreachable!("{who:?} has no controller for {task:?}"),
        }
    }

    fn resume(&mut self, who: ProcessId, restarts: u64, id: u64) {
        if !self.is_current(who, restarts) {
            return;
        }
        match who {
            ProcessId::Market(m) => self.resume_market(m, id),
            ProcessId::Provider(s, p) => self.resume_provider(s, p, id),
        }
    }

    /// Ends a reconcile. The object is due again after that time, or immediately if it was enqueued meanwhile.
    pub(crate) fn finish(&mut self, who: ProcessId, task: &Task, again_ms: Option<u64>) {
        let waiting = match who {
            ProcessId::Market(m) => self.markets[m].queue.due(task),
            ProcessId::Provider(s, p) => self.sites[s].processes[p].queue.due(task),
        };
        let restarts = match who {
            ProcessId::Market(m) => self.markets[m].restarts,
            ProcessId::Provider(s, p) => self.sites[s].processes[p].restarts,
        };
        if let Some(due) = waiting {
            self.at(
                due.saturating_sub(self.now),
                Event::Due(who, restarts, task.clone()),
            );
        }
        if let Some(after) = again_ms {
            self.enqueue(who, task, after);
        }
    }

    /// Processes that many events and settles.
    ///
    /// # Errors
    /// The message of the first violated invariant.
    pub fn run(&mut self, steps: u64) -> Result<(), String> {
        (0..steps).try_for_each(|_| self.step())?;
        self.settle()
    }

    /// What a failure shows: the last lines of the log, the faults, and the step.
    #[must_use]
    pub fn details(&self) -> String {
        let lines: Vec<&str> = self.log.iter().map(String::as_str).collect();
        let (log, faults, steps) = (lines.join("\n"), self.faults.text(), self.steps);
        format!("{log}\nfaults: {faults}\nstep: {steps}")
    }

    /// Stops all faults and lets tenants delete their leases. After that, nothing may remain anywhere.
    fn settle(&mut self) -> Result<(), String> {
        self.stop_faults();
        let deadline = self.tenants.leave_at.unwrap_or(self.now) + REST_MS;
        let mut quiet_since = None;
        while self.now < deadline {
            self.step()?;
            if self.remaining().is_none() {
                let since = *quiet_since.get_or_insert(self.now);
                if self.now - since > 60_000 {
                    return self.check_at_rest();
                }
            } else {
                quiet_since = None;
            }
        }
        Err(format!(
            "U8: {} s after the last lease was deleted, there still is {}",
            REST_MS / 1000,
            self.remaining().unwrap_or_default()
        ))
    }

    /// All processes, whether up or down.
    pub(crate) fn all_processes(&self) -> BTreeSet<ProcessId> {
        let markets = (0..self.markets.len()).map(ProcessId::Market);
        let providers = self
            .sites
            .iter()
            .enumerate()
            .flat_map(|(s, site)| (0..site.processes.len()).map(move |p| ProcessId::Provider(s, p)));
        markets.chain(providers).collect()
    }
}
