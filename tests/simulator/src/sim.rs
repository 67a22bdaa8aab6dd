//! The world and its clock: events in the order of their time, chance from the seed alone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use jiff::Timestamp;
use leasehold_crds::{GpuAllocation, GpuLease, payment::money::TokenAmount};
use leasehold_planner::{
    escrow::{Address, keccak},
    placement::Money,
};

use crate::{
    api::Api,
    chain::Chain,
    invariants::Judge,
    market::{MarketProcess, Offer},
    reconcile::{Task, Who},
    provider::Site,
    random::Random,
    tenant::Tenants,
    faults::Weather,
};

/// True Unix time at which every run begins, milliseconds.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// After the storm and the deletion of every lease, nothing is left of them after so long.
const REST_MS: u64 = 300_000;
/// Lines of the log that a failure shows.
const LINES_MAX: usize = 120;

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Block,
    Kubelets(usize),
    Tenants,
    Weather,
    /// A process comes up.
    Start(Who),
    /// A cache of a process reads on.
    Sync(Who, u64, u8),
    /// The market's supply, or a provider's offer, is made anew.
    Supply(Who, u64),
    /// A provider looks for what belongs to nobody.
    Sweep(Who, u64),
    Due(Who, u64, Task),
    Continue(Who, u64, u64),
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

/// One run.
pub struct Sim {
    /// Events that happened.
    pub steps: u64,
    pub(crate) now: u64,
    pub(crate) random: Random,
    events: BinaryHeap<Reverse<At>>,
    sequence: u64,
    pub(crate) chain: Chain,
    pub(crate) money: Money,
    pub(crate) market_id: Address,
    pub(crate) closer: Address,
    pub(crate) leases: Api<GpuLease>,
    pub(crate) allocations: Api<GpuAllocation>,
    pub(crate) offers: BTreeMap<String, Offer>,
    pub(crate) markets: Vec<MarketProcess>,
    pub(crate) sites: Vec<Site>,
    pub(crate) tenants: Tenants,
    pub(crate) weather: Weather,
    pub(crate) judge: Judge,
    log: VecDeque<String>,
    loud: bool,
}

/// An address that stands for somebody.
pub(crate) fn somebody(name: &str) -> Address {
    let hash = keccak(&[name.as_bytes()]);
    let mut address = [0; 20];
    address.copy_from_slice(&hash.0[..20]);
    Address(address)
}

impl Sim {
    /// The run of that seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let weather = Weather::of(&mut random);
        let sites = (0..random.between(1, 3))
            .map(|n| Site::new(usize::try_from(n).unwrap_or(0), &weather, &mut random))
            .collect::<Vec<_>>();
        let markets = (0..2)
            .map(|_| MarketProcess::new(&weather, &mut random))
            .collect();
        let mut sim = Self {
            steps: 0,
            now: BEGIN_MS,
            events: BinaryHeap::new(),
            sequence: 0,
            chain: Chain::new(BEGIN_MS / 1000),
            money: Money {
                chain_id: 31337,
                escrow: somebody("escrow"),
                token: somebody("token"),
            },
            market_id: somebody("market"),
            closer: somebody("closer"),
            leases: Api::default(),
            allocations: Api::default(),
            offers: BTreeMap::new(),
            markets,
            sites,
            tenants: Tenants::new(&mut random),
            weather,
            judge: Judge::default(),
            log: VecDeque::new(),
            loud: std::env::var("TRACE").is_ok(),
            random,
        };
        for (payer, amount) in sim.tenants.purses() {
            sim.chain.mint(sim.money.token, payer, amount);
            sim.judge.minted = TokenAmount(sim.judge.minted.0 + amount.0);
        }
        sim.at(0, Event::Block);
        sim.at(500, Event::Tenants);
        sim.at(1_000, Event::Weather);
        sim.at(0, Event::Start(Who::Market(0)));
        for site in 0..sim.sites.len() {
            sim.at(10, Event::Start(Who::Provider(site, 0)));
            sim.at(50, Event::Kubelets(site));
        }
        sim
    }

    /// Something happens after so many milliseconds.
    pub(crate) fn at(&mut self, after_ms: u64, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse(At(self.now + after_ms, self.sequence, event)));
    }

    /// Keeps a line for whoever looks into a failure.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let line = format!("{:>9.3} {}", self.seconds_of_run(), line());
        if self.loud {
            println!("{line}");
        }
        if self.log.len() >= LINES_MAX {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    #[expect(clippy::cast_precision_loss, reason = "for a person")]
    fn seconds_of_run(&self) -> f64 {
        (self.now - BEGIN_MS) as f64 / 1000.0
    }

    /// The leases as the API server has them now.
    pub fn leases(&self) -> impl Iterator<Item = &GpuLease> {
        self.leases.all().map(|(_, lease)| lease.as_ref())
    }

    /// The last lines, for a failure.
    #[must_use]
    pub fn lines(&self) -> String {
        self.log.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    /// How often what happened.
    #[must_use]
    pub fn happened(&self) -> BTreeMap<String, u64> {
        let calls = self.chain.calls.iter();
        let all = self.judge.happened.iter().chain(calls);
        all.map(|(what, count)| (what.clone(), *count)).collect()
    }

    /// True time by a clock that is off by so much.
    pub(crate) fn clock(&self, offset_ms: i64) -> Timestamp {
        let ms = i64::try_from(self.now).unwrap_or(i64::MAX) + offset_ms;
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// That clock so much later.
    pub(crate) fn clock_after(&self, offset_ms: i64, after_ms: u64) -> Timestamp {
        self.clock(offset_ms.saturating_add_unsigned(after_ms))
    }

    /// One event, and whether every rule still holds.
    pub fn step(&mut self) -> Result<(), String> {
        let Some(Reverse(At(time, _, event))) = self.events.pop() else {
            return Err("nothing happens any more".into());
        };
        self.now = self.now.max(time);
        self.steps += 1;
        match event {
            Event::Block => self.block(),
            Event::Kubelets(site) => self.kubelets(site),
            Event::Tenants => self.tenants_act(),
            Event::Weather => self.weather_turns(),
            Event::Start(who) => self.start(who),
            Event::Sync(who, life, cache) => self.sync(who, life, cache),
            Event::Supply(who, life) => self.supply(who, life),
            Event::Sweep(who, life) => self.sweep(who, life),
            Event::Due(who, life, task) => self.due(who, life, task),
            Event::Continue(who, life, id) => self.go_on(who, life, id),
        }
        self.spread_news();
        self.check()
    }

    fn block(&mut self) {
        if !self.chain.hung {
            let time = self.now / 1000;
            if self.weather.reorganises() && self.random.per_mille(15) {
                let depth = usize::try_from(self.random.between(1, 2)).unwrap_or(1);
                self.note(|| format!("the newest {depth} blocks are replaced"));
                self.chain.reorganise(depth);
            }
            self.chain.mine(time, &mut self.random);
        }
        self.at(self.weather.block_ms, Event::Block);
    }

    /// Whether that life of a process is still lived.
    pub(crate) fn lives(&self, who: Who, life: u64) -> bool {
        let (up, is) = match who {
            Who::Market(m) => (self.markets[m].up, self.markets[m].life),
            Who::Provider(s, p) => (self.sites[s].processes[p].up, self.sites[s].processes[p].life),
        };
        up && is == life
    }

    /// Ends a process between two writes.
    pub(crate) fn kill(&mut self, who: Who) {
        self.note(|| format!("{who:?} is killed"));
        match who {
            Who::Market(m) => self.markets[m].up = false,
            Who::Provider(s, p) => self.sites[s].processes[p].up = false,
        }
    }

    fn start(&mut self, who: Who) {
        match who {
            Who::Market(m) => self.start_market(m),
            Who::Provider(s, p) => self.start_provider(s, p),
        }
    }

    fn sync(&mut self, who: Who, life: u64, cache: u8) {
        if !self.lives(who, life) {
            return;
        }
        match who {
            Who::Market(m) => {
                self.markets[m].syncing &= !(1 << cache);
                self.sync_market(m, cache);
            }
            Who::Provider(s, p) => {
                self.sites[s].processes[p].syncing &= !(1 << cache);
                self.sync_provider(s, p, cache);
            }
        }
    }

    /// News of objects is on its way to every cache that lags; each takes its own time.
    fn spread_news(&mut self) {
        for who in self.everybody() {
            let (stale, syncing, life) = match who {
                Who::Market(m) => (
                    self.stale_at_market(m),
                    self.markets[m].syncing,
                    self.markets[m].life,
                ),
                Who::Provider(s, p) => {
                    let process = &self.sites[s].processes[p];
                    (self.stale_at_provider(s, p), process.syncing, process.life)
                }
            };
            let due = stale & !syncing;
            if due == 0 || !self.lives(who, life) {
                continue;
            }
            for cache in (0..8).filter(|c| due & (1 << c) != 0) {
                let (low, high) = self.weather.watch_lag_ms;
                let after = self.random.between(low, high);
                self.at(after, Event::Sync(who, life, cache));
            }
            match who {
                Who::Market(m) => self.markets[m].syncing |= due,
                Who::Provider(s, p) => self.sites[s].processes[p].syncing |= due,
            }
        }
    }

    fn supply(&mut self, who: Who, life: u64) {
        if !self.lives(who, life) {
            return;
        }
        match who {
            Who::Market(m) => self.refresh_supply(m),
            Who::Provider(s, p) => self.publish_offer(s, p),
        }
        let after = self.random.between(500, 5_000);
        self.at(after, Event::Supply(who, life));
    }

    fn sweep(&mut self, who: Who, life: u64) {
        if !self.lives(who, life) {
            return;
        }
        if let Who::Provider(s, p) = who {
            self.sweep_namespaces(s, p);
        }
        self.at(30_000, Event::Sweep(who, life));
    }

    /// Asks for a look at an object.
    pub(crate) fn want(&mut self, who: Who, task: &Task, after_ms: u64) {
        let at = self.now + after_ms;
        let (earlier, life) = match who {
            Who::Market(m) => (self.markets[m].desk.want(task, at), self.markets[m].life),
            Who::Provider(s, p) => {
                let process = &mut self.sites[s].processes[p];
                (process.desk.want(task, at), process.life)
            }
        };
        if earlier {
            self.at(after_ms, Event::Due(who, life, task.clone()));
        }
    }

    fn due(&mut self, who: Who, life: u64, task: Task) {
        if !self.lives(who, life) {
            return;
        }
        let taken = match who {
            Who::Market(m) => self.markets[m].desk.take(&task, self.now),
            Who::Provider(s, p) => self.sites[s].processes[p].desk.take(&task, self.now),
        };
        if !taken {
            return;
        }
        self.judge.pass_begins(who, &task, self.now);
        match (who, task) {
            (Who::Market(m), Task::Lease(key)) => self.begin_lease(m, key),
            (Who::Market(m), Task::LettingGo(key)) => self.begin_letting_go(m, key),
            (Who::Provider(s, p), Task::Intake(key)) => self.begin_intake(s, p, key),
            (Who::Provider(s, p), Task::Reservation(key)) => self.begin_reservation(s, p, key),
            (who, task) => unreachable!("{who:?} has no controller for {task:?}"),
        }
    }

    fn go_on(&mut self, who: Who, life: u64, id: u64) {
        if !self.lives(who, life) {
            return;
        }
        match who {
            Who::Market(m) => self.go_on_market(m, id),
            Who::Provider(s, p) => self.go_on_provider(s, p, id),
        }
    }

    /// A pass has ended: its object is due again after so long, or at once if something happened to it meanwhile.
    pub(crate) fn ended(&mut self, who: Who, task: &Task, again_ms: Option<u64>) {
        let waiting = match who {
            Who::Market(m) => self.markets[m].desk.due(task),
            Who::Provider(s, p) => self.sites[s].processes[p].desk.due(task),
        };
        let life = match who {
            Who::Market(m) => self.markets[m].life,
            Who::Provider(s, p) => self.sites[s].processes[p].life,
        };
        if let Some(due) = waiting {
            self.at(due.saturating_sub(self.now), Event::Due(who, life, task.clone()));
        }
        if let Some(after) = again_ms {
            self.want(who, task, after);
        }
    }

    /// Lets the storm end and the world come to rest: no fault begins any more, every tenant deletes what is left.
    /// Then nothing may be left, anywhere.
    pub fn settle(&mut self) -> Result<(), String> {
        self.calm();
        let deadline = self.tenants.leave_at.unwrap_or(self.now) + REST_MS;
        let mut quiet_since = None;
        while self.now < deadline {
            self.step()?;
            if self.what_is_left().is_none() {
                let since = *quiet_since.get_or_insert(self.now);
                if self.now - since > 60_000 {
                    return self.at_rest();
                }
            } else {
                quiet_since = None;
            }
        }
        Err(format!(
            "U5: not at rest {} s after the last lease was deleted: {}",
            REST_MS / 1000,
            self.what_is_left().unwrap_or_default()
        ))
    }

    /// All processes that are up.
    pub(crate) fn everybody(&self) -> BTreeSet<Who> {
        let markets = (0..self.markets.len()).map(Who::Market);
        let providers = self
            .sites
            .iter()
            .enumerate()
            .flat_map(|(s, site)| (0..site.processes.len()).map(move |p| Who::Provider(s, p)));
        markets.chain(providers).collect()
    }
}
