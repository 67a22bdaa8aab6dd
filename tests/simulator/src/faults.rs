//! Which faults occur, and when. Each seed selects some kinds of faults, which begin and end at random.

use std::collections::BTreeSet;

use leasehold_crds::GpuReservation;
use leasehold_planner::endpoints::{Endpoint, Endpoints};

use crate::{
    Sim,
    cluster::Node,
    random::Random,
    reconcile::ProcessId,
    scenario::{Scenario, chain::Way},
    sim::Event,
};

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Crashes,
    TwoLeaders,
    ChainHangs,
    ChainCut,
    FlakyReads,
    StaleReads,
    FalseReads,
    LostReplies,
    Congestion,
    LostTransactions,
    Reorganisations,
    MarketDown,
    SitesDown,
    MarketCut,
    SlowWatches,
    SlowWrites,
    LostWrites,
    FaultyGpus,
    SilentAgents,
    Clocks,
}

const ALL_FAULTS: [Fault; 20] = [
    Fault::Crashes,
    Fault::TwoLeaders,
    Fault::ChainHangs,
    Fault::ChainCut,
    Fault::FlakyReads,
    Fault::StaleReads,
    Fault::FalseReads,
    Fault::LostReplies,
    Fault::Congestion,
    Fault::LostTransactions,
    Fault::Reorganisations,
    Fault::MarketDown,
    Fault::SitesDown,
    Fault::MarketCut,
    Fault::SlowWatches,
    Fault::SlowWrites,
    Fault::LostWrites,
    Fault::FaultyGpus,
    Fault::SilentAgents,
    Fault::Clocks,
];

/// The currently active faults.
pub(crate) struct Faults {
    selected: BTreeSet<Fault>,
    scenarios: BTreeSet<Scenario>,
    stopped: bool,
    clock_spread_ms: u64,
    pub(crate) block_ms: u64,
    pub(crate) market_up: bool,
    pub(crate) sites_down: BTreeSet<usize>,
    pub(crate) cut_from_market: BTreeSet<usize>,
    pub(crate) cut_from_chain: BTreeSet<ProcessId>,
    pub(crate) agents_silent: BTreeSet<usize>,
    /// Whether a call without connection takes its whole deadline.
    pub(crate) hangs: bool,
    pub(crate) flaky_per_mille: u64,
    pub(crate) stale_per_mille: u64,
    /// By how many blocks a stale answer is behind at most.
    pub(crate) stale_blocks: u64,
    pub(crate) false_reads_per_mille: u64,
    pub(crate) lost_replies_per_mille: u64,
    pub(crate) lost_writes_per_mille: u64,
    pub(crate) watch_lag_ms: (u64, u64),
    pub(crate) write_ms: u64,
    /// Block at which a backend of the endpoint, or the whole endpoint, is frozen.
    pub(crate) frozen_at: Option<u64>,
    /// How far the clock of the chain is off. A block is never older than the one before.
    pub(crate) chain_offset_ms: i64,
    /// When a reorganisation last dropped transactions, in Unix milliseconds.
    pub(crate) dropped_ms: u64,
    /// Which of two endpoints fails, and how.
    pub(crate) bad_endpoint: Option<(Endpoint, Way)>,
    hung_until: u64,
}

impl Faults {
    pub(crate) fn of(random: &mut Random, scenarios: BTreeSet<Scenario>) -> Self {
        let rate = random.between(0, 600);
        let selected: BTreeSet<Fault> = ALL_FAULTS
            .into_iter()
            .filter(|_| random.per_mille(rate))
            .collect();
        let clock_spread_ms = if selected.contains(&Fault::Clocks) {
            [2_000, 30_000, 60_000][usize::try_from(random.below(3)).unwrap_or(0)]
        } else {
            0
        };
        Self {
            selected,
            scenarios,
            stopped: false,
            clock_spread_ms,
            block_ms: random.between(2, 6) * 500,
            market_up: true,
            sites_down: BTreeSet::new(),
            cut_from_market: BTreeSet::new(),
            cut_from_chain: BTreeSet::new(),
            agents_silent: BTreeSet::new(),
            hangs: random.per_mille(500),
            flaky_per_mille: 0,
            stale_per_mille: 0,
            stale_blocks: 3,
            false_reads_per_mille: 0,
            lost_replies_per_mille: 0,
            lost_writes_per_mille: 0,
            watch_lag_ms: (20, 300),
            write_ms: 20,
            frozen_at: None,
            chain_offset_ms: 0,
            dropped_ms: 0,
            bad_endpoint: None,
            hung_until: 0,
        }
    }

    pub(crate) fn clock_offset(&self, random: &mut Random) -> i64 {
        let spread = self.clock_spread_ms;
        let offset = random.between(0, 2 * spread);
        i64::try_from(offset).unwrap_or(0) - i64::try_from(spread).unwrap_or(0)
    }

    /// Whether the scenario is part of this run and faults have not been stopped yet.
    pub(crate) fn forces(&self, scenario: Scenario) -> bool {
        !self.stopped && self.contains(scenario)
    }

    /// Whether the scenario is part of this run.
    pub(crate) fn contains(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario)
    }

    /// The endpoints of the PaymentNetworks of this run.
    pub(crate) fn endpoints(&self) -> Endpoints {
        let of_two = [
            Scenario::LyingEndpoint,
            Scenario::StuckEndpoint,
            Scenario::DeadEndpoint,
        ];
        if of_two.into_iter().any(|s| self.contains(s)) {
            Endpoints::two()
        } else {
            Endpoints::default()
        }
    }

    /// The kinds of faults that the seed selected and the scenarios, to print with a failure.
    pub(crate) fn text(&self) -> String {
        format!("{:?}, scenarios: {:?}", self.selected, self.scenarios)
    }

    pub(crate) fn reorganises(&self) -> bool {
        !self.stopped && self.selected.contains(&Fault::Reorganisations)
    }

    const fn steady(&mut self) {
        self.flaky_per_mille = 0;
        self.stale_per_mille = 0;
        self.false_reads_per_mille = 0;
        self.lost_replies_per_mille = 0;
        self.lost_writes_per_mille = 0;
        self.watch_lag_ms = (20, 300);
        self.write_ms = 20;
    }
}

impl Sim {
    pub(crate) fn change_faults(&mut self) {
        let after = self.random.between(1_000, 15_000);
        self.at(after, Event::Faults);
        if self.faults.stopped {
            return;
        }
        if self.now >= self.faults.hung_until {
            self.chain.hung = false;
        }
        let selected: Vec<Fault> = self.faults.selected.iter().copied().collect();
        let Some(fault) = self.random.pick(&selected).copied() else {
            return;
        };
        let sites = u64::try_from(self.sites.len()).unwrap_or(1);
        let site = usize::try_from(self.random.below(sites)).unwrap_or(0);
        let all_processes: Vec<ProcessId> = self.all_processes().into_iter().collect();
        let process = self
            .random
            .pick(&all_processes)
            .copied()
            .unwrap_or(ProcessId::Market(0));
        let begins = self.random.per_mille(500);
        let toggle = |set: &mut BTreeSet<usize>| {
            if begins {
                set.insert(site);
            } else {
                set.clear();
            }
        };
        let rate = |random: &mut Random, most: u64| if begins { random.between(most / 5, most) } else { 0 };
        match fault {
            Fault::Crashes | Fault::TwoLeaders => self.change_processes(fault, process, begins),
            Fault::ChainHangs => {
                let long = self.random.per_mille(250);
                let span = self.random.between(5, if long { 500 } else { 90 }) * 1000;
                self.hang_chain(span);
            }
            Fault::ChainCut => {
                if begins {
                    self.faults.cut_from_chain.insert(process);
                } else {
                    self.faults.cut_from_chain.clear();
                }
                self.note(|| format!("disconnected from the chain: {begins}, {process:?}"));
            }
            Fault::FlakyReads => self.faults.flaky_per_mille = rate(&mut self.random, 300),
            Fault::StaleReads => {
                self.faults.stale_per_mille = rate(&mut self.random, 400);
                self.faults.stale_blocks = self.random.pick(&[3, 15, 120]).copied().unwrap_or(3);
            }
            Fault::FalseReads => self.faults.false_reads_per_mille = rate(&mut self.random, 200),
            Fault::LostReplies => self.faults.lost_replies_per_mille = rate(&mut self.random, 500),
            Fault::Congestion => {
                self.chain.inclusion_per_mille = 1000 - rate(&mut self.random, 900);
            }
            Fault::LostTransactions => self.chain.lose_one(&mut self.random),
            Fault::MarketDown => {
                self.faults.market_up = !begins;
                self.note(|| format!("the market's API is down: {begins}"));
            }
            Fault::SitesDown => {
                toggle(&mut self.faults.sites_down);
                self.note(|| format!("the API of provider {site} is down: {begins}"));
            }
            Fault::MarketCut => {
                toggle(&mut self.faults.cut_from_market);
                self.note(|| format!("provider {site} is disconnected from the market: {begins}"));
            }
            Fault::SilentAgents => toggle(&mut self.faults.agents_silent),
            Fault::SlowWatches => {
                self.faults.watch_lag_ms = if begins { (100, 8_000) } else { (20, 300) };
            }
            Fault::SlowWrites => self.faults.write_ms = if begins { 3_000 } else { 20 },
            Fault::LostWrites => self.faults.lost_writes_per_mille = rate(&mut self.random, 200),
            Fault::FaultyGpus => self.change_gpu_faults(site, begins),
            Fault::Reorganisations | Fault::Clocks => {}
        }
    }

    /// Lets the chain mine nothing and answer nothing for that time.
    pub(crate) fn hang_chain(&mut self, span_ms: u64) {
        self.chain.hung = true;
        self.faults.hung_until = self.now + span_ms;
        self.note(|| format!("the chain hangs for {} s", span_ms / 1000));
    }

    /// Crashes a leading process, or starts or ends a second one beside it.
    fn change_processes(&mut self, fault: Fault, process: ProcessId, begins: bool) {
        if fault == Fault::Crashes {
            let who = match process {
                ProcessId::Market(_) => ProcessId::Market(0),
                ProcessId::Provider(s, _) => ProcessId::Provider(s, 0),
            };
            self.kill(who);
            if let (ProcessId::Provider(s, _), true) = (who, self.steps.is_multiple_of(3)) {
                self.remove_reservation_forcibly(s);
            }
            let down = self.random.between(100, 20_000);
            self.at(down, Event::Start(who));
        } else {
            let second = match process {
                ProcessId::Market(_) => ProcessId::Market(1),
                ProcessId::Provider(s, _) => ProcessId::Provider(s, 1),
            };
            if begins {
                self.at(0, Event::Start(second));
            } else {
                self.kill(second);
            }
        }
    }

    /// Removes a reservation together with its finalizer, as an administrator could. Its workload becomes an orphan. One that
    /// has stopped is left: it only waits for its payout, which nobody else withdraws.
    fn remove_reservation_forcibly(&mut self, site: usize) {
        let all = self.reservations(site);
        let waits = |r: &GpuReservation| r.status.as_ref().is_some_and(|s| s.phase.is_over());
        let Some((key, reservation)) = all.iter().find(|(_, r)| !waits(r)) else {
            return;
        };
        let now = self.clock(0);
        let api = &mut self.sites[site].reservations;
        let removed = api.set_finalizers(key, None, Vec::new()).is_ok() && api.delete(key, now).is_ok();
        if removed {
            self.invariants.count("reservation removed forcibly".into());
            let account = reservation.spec.allocation.escrow.id.clone();
            self.invariants.removed_forcibly.insert(account);
            self.note(|| format!("reservation {} is removed forcibly", key.1));
        }
    }

    pub(crate) fn change_gpu_faults(&mut self, site: usize, begins: bool) {
        let now = self.now / 1000;
        let gpus = || self.sites[site].cluster.nodes.iter().flat_map(|n| &n.gpus);
        let count = u64::try_from(gpus().count()).unwrap_or(1);
        let which = usize::try_from(self.random.below(count)).unwrap_or(0);
        self.sites[site].cluster.changes += 1;
        let now_ms = self.now;
        let stopped = self.faults.stopped;
        let cluster = &mut self.sites[site].cluster;
        // A machine fails together with its GPUs, its kubelet and its agent.
        if begins && which.is_multiple_of(4) {
            let count = cluster.nodes.len();
            let node = &mut cluster.nodes[which / 4 % count];
            node.dead_since.get_or_insert(now_ms);
            let name = node.name.clone();
            self.note(|| format!("node {name} is dead"));
            return;
        }
        // A machine is switched on again only after minutes, so that its failure is noticed.
        let back = |n: &&mut Node| n.dead_since.is_some_and(|at| stopped || now_ms - at > 150_000);
        for node in cluster.nodes.iter_mut().filter(back).filter(|_| !begins) {
            node.dead_since = None;
            node.revived_ms = now_ms;
        }
        self.note(|| format!("GPU {which} of provider {site} is faulty: {begins}"));
        let mut gpus = self.sites[site]
            .cluster
            .nodes
            .iter_mut()
            .flat_map(|n| &mut n.gpus);
        if begins {
            if let Some(gpu) = gpus.nth(which) {
                gpu.faulty_since.get_or_insert(now);
            }
        } else {
            gpus.for_each(|gpu| gpu.faulty_since = None);
        }
    }

    /// Stops all faults and starts everything. Tenants delete their leases some minutes later.
    pub(crate) fn stop_faults(&mut self) {
        self.note(|| "all faults are stopped".into());
        self.faults.stopped = true;
        self.faults.steady();
        self.faults.market_up = true;
        self.faults.sites_down.clear();
        self.faults.cut_from_market.clear();
        self.faults.cut_from_chain.clear();
        self.faults.agents_silent.clear();
        self.faults.frozen_at = None;
        self.faults.bad_endpoint = None;
        self.set_clocks_right();
        self.chain.hung = false;
        self.chain.inclusion_per_mille = 1000;
        for site in 0..self.sites.len() {
            self.change_gpu_faults(site, false);
            self.kill(ProcessId::Provider(site, 1));
            self.at(0, Event::Start(ProcessId::Provider(site, 0)));
        }
        self.kill(ProcessId::Market(1));
        self.at(0, Event::Start(ProcessId::Market(0)));
        let long = self.random.per_mille(150);
        let wait = self.random.between(0, if long { 1_500_000 } else { 300_000 });
        self.tenants.leave_at = Some(self.now + wait);
    }
}
