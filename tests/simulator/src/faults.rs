//! What fails, and when. Each seed has its own selection of troubles; each trouble comes and goes.

use std::collections::BTreeSet;

use crate::{Sim, cluster::Node, random::Random, reconcile::Who, sim::Event};

/// What can be in a seed's selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Kills,
    TwoLeaders,
    ChainHangs,
    ChainCut,
    FlakyReads,
    StaleReads,
    Lies,
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
    SickGpus,
    SilentAgents,
    Clocks,
}

const TROUBLES: [Trouble; 20] = [
    Trouble::Kills,
    Trouble::TwoLeaders,
    Trouble::ChainHangs,
    Trouble::ChainCut,
    Trouble::FlakyReads,
    Trouble::StaleReads,
    Trouble::Lies,
    Trouble::LostReplies,
    Trouble::Congestion,
    Trouble::LostTransactions,
    Trouble::Reorganisations,
    Trouble::MarketDown,
    Trouble::SitesDown,
    Trouble::MarketCut,
    Trouble::SlowWatches,
    Trouble::SlowWrites,
    Trouble::LostWrites,
    Trouble::SickGpus,
    Trouble::SilentAgents,
    Trouble::Clocks,
];

/// What is wrong now.
pub(crate) struct Weather {
    troubles: BTreeSet<Trouble>,
    calm: bool,
    clock_spread_ms: u64,
    pub(crate) block_ms: u64,
    pub(crate) market_up: bool,
    pub(crate) sites_down: BTreeSet<usize>,
    pub(crate) cut_from_market: BTreeSet<usize>,
    pub(crate) cut_from_chain: BTreeSet<Who>,
    pub(crate) agents_silent: BTreeSet<usize>,
    /// Whether a call that is cut off takes its whole deadline.
    pub(crate) hangs: bool,
    pub(crate) flaky_per_mille: u64,
    pub(crate) stale_per_mille: u64,
    pub(crate) lies_per_mille: u64,
    pub(crate) lost_replies_per_mille: u64,
    pub(crate) lost_writes_per_mille: u64,
    pub(crate) watch_lag_ms: (u64, u64),
    pub(crate) write_ms: u64,
    hung_until: u64,
}

impl Weather {
    pub(crate) fn of(random: &mut Random) -> Self {
        let share = random.between(0, 600);
        let troubles: BTreeSet<Trouble> = TROUBLES.into_iter().filter(|_| random.per_mille(share)).collect();
        let clock_spread_ms = if troubles.contains(&Trouble::Clocks) {
            [2_000, 30_000, 60_000][usize::try_from(random.below(3)).unwrap_or(0)]
        } else {
            0
        };
        Self {
            troubles,
            calm: false,
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
            lies_per_mille: 0,
            lost_replies_per_mille: 0,
            lost_writes_per_mille: 0,
            watch_lag_ms: (20, 300),
            write_ms: 20,
            hung_until: 0,
        }
    }

    pub(crate) fn clock_offset(&self, random: &mut Random) -> i64 {
        let spread = self.clock_spread_ms;
        let offset = random.between(0, 2 * spread);
        i64::try_from(offset).unwrap_or(0) - i64::try_from(spread).unwrap_or(0)
    }

    pub(crate) fn reorganises(&self) -> bool {
        !self.calm && self.troubles.contains(&Trouble::Reorganisations)
    }

    const fn steady(&mut self) {
        self.flaky_per_mille = 0;
        self.stale_per_mille = 0;
        self.lies_per_mille = 0;
        self.lost_replies_per_mille = 0;
        self.lost_writes_per_mille = 0;
        self.watch_lag_ms = (20, 300);
        self.write_ms = 20;
    }
}

impl Sim {
    /// What troubles this seed has, for a failure.
    #[must_use]
    pub fn troubles(&self) -> String {
        format!("{:?}", self.weather.troubles)
    }

    pub(crate) fn weather_turns(&mut self) {
        let after = self.random.between(1_000, 15_000);
        self.at(after, Event::Weather);
        if self.weather.calm {
            return;
        }
        if self.now >= self.weather.hung_until {
            self.chain.hung = false;
        }
        let troubles: Vec<Trouble> = self.weather.troubles.iter().copied().collect();
        let Some(trouble) = self.random.pick(&troubles).copied() else {
            return;
        };
        let sites = u64::try_from(self.sites.len()).unwrap_or(1);
        let site = usize::try_from(self.random.below(sites)).unwrap_or(0);
        let everybody: Vec<Who> = self.everybody().into_iter().collect();
        let somebody = self.random.pick(&everybody).copied().unwrap_or(Who::Market(0));
        let begins = self.random.per_mille(500);
        let toggle = |set: &mut BTreeSet<usize>| {
            if begins {
                set.insert(site);
            } else {
                set.clear();
            }
        };
        let rate = |random: &mut Random, most: u64| if begins { random.between(most / 5, most) } else { 0 };
        match trouble {
            Trouble::Kills => {
                let who = match somebody {
                    Who::Market(_) => Who::Market(0),
                    Who::Provider(s, _) => Who::Provider(s, 0),
                };
                self.kill(who);
                if let (Who::Provider(s, _), true) = (who, self.steps.is_multiple_of(3)) {
                    self.tear_out_reservation(s);
                }
                let down = self.random.between(100, 20_000);
                self.at(down, Event::Start(who));
            }
            Trouble::TwoLeaders => {
                let second = match somebody {
                    Who::Market(_) => Who::Market(1),
                    Who::Provider(s, _) => Who::Provider(s, 1),
                };
                if begins {
                    self.at(0, Event::Start(second));
                } else {
                    self.kill(second);
                }
            }
            Trouble::ChainHangs => {
                let long = self.random.per_mille(250);
                let span = self.random.between(5, if long { 500 } else { 90 }) * 1000;
                self.chain.hung = true;
                self.weather.hung_until = self.now + span;
                self.note(|| format!("the chain hangs for {} s", span / 1000));
            }
            Trouble::ChainCut => {
                if begins {
                    self.weather.cut_from_chain.insert(somebody);
                } else {
                    self.weather.cut_from_chain.clear();
                }
                self.note(|| format!("cut from the chain: {begins}, {somebody:?}"));
            }
            Trouble::FlakyReads => self.weather.flaky_per_mille = rate(&mut self.random, 300),
            Trouble::StaleReads => self.weather.stale_per_mille = rate(&mut self.random, 400),
            Trouble::Lies => self.weather.lies_per_mille = rate(&mut self.random, 200),
            Trouble::LostReplies => self.weather.lost_replies_per_mille = rate(&mut self.random, 500),
            Trouble::Congestion => {
                self.chain.inclusion_per_mille = 1000 - rate(&mut self.random, 900);
            }
            Trouble::LostTransactions => self.chain.lose_one(&mut self.random),
            Trouble::MarketDown => {
                self.weather.market_up = !begins;
                self.note(|| format!("the market's API is down: {begins}"));
            }
            Trouble::SitesDown => {
                toggle(&mut self.weather.sites_down);
                self.note(|| format!("the API of provider {site} is down: {begins}"));
            }
            Trouble::MarketCut => {
                toggle(&mut self.weather.cut_from_market);
                self.note(|| format!("provider {site} is cut off the market: {begins}"));
            }
            Trouble::SilentAgents => toggle(&mut self.weather.agents_silent),
            Trouble::SlowWatches => {
                self.weather.watch_lag_ms = if begins { (100, 8_000) } else { (20, 300) };
            }
            Trouble::SlowWrites => self.weather.write_ms = if begins { 3_000 } else { 20 },
            Trouble::LostWrites => self.weather.lost_writes_per_mille = rate(&mut self.random, 200),
            Trouble::SickGpus => self.gpu_fails_or_heals(site, begins),
            Trouble::Reorganisations | Trouble::Clocks => {}
        }
    }

    /// A person takes a reservation away with its finalizer: what it ran is nobody's.
    fn tear_out_reservation(&mut self, site: usize) {
        let all = self.reservations(site);
        let Some((key, _)) = all.first() else { return };
        let now = self.clock(0);
        let api = &mut self.sites[site].reservations;
        let torn = api.set_finalizers(key, None, Vec::new()).is_ok() && api.delete(key, now).is_ok();
        if torn {
            self.judge.happens("reservation torn out".into());
            self.note(|| format!("reservation {} is torn out", key.1));
        }
    }

    fn gpu_fails_or_heals(&mut self, site: usize, begins: bool) {
        let now = self.now / 1000;
        let gpus = || self.sites[site].cluster.nodes.iter().flat_map(|n| &n.gpus);
        let count = u64::try_from(gpus().count()).unwrap_or(1);
        let which = usize::try_from(self.random.below(count)).unwrap_or(0);
        self.sites[site].cluster.changes += 1;
        let now_ms = self.now;
        let calm = self.weather.calm;
        let cluster = &mut self.sites[site].cluster;
        // A machine takes all of its GPUs with it, and its kubelet and agent.
        if begins && which.is_multiple_of(4) {
            let count = cluster.nodes.len();
            let node = &mut cluster.nodes[which / 4 % count];
            node.dead_since.get_or_insert(now_ms);
            let name = node.name.clone();
            self.note(|| format!("node {name} is dead"));
            return;
        }
        // One that is switched on again is so after minutes: long enough to be missed.
        let back = |n: &&mut Node| n.dead_since.is_some_and(|at| calm || now_ms - at > 150_000);
        for node in cluster.nodes.iter_mut().filter(back).filter(|_| !begins) {
            node.dead_since = None;
            cluster.revived_ms = now_ms;
        }
        self.note(|| format!("GPU {which} of provider {site} is at fault: {begins}"));
        let mut gpus = self.sites[site]
            .cluster
            .nodes
            .iter_mut()
            .flat_map(|n| &mut n.gpus);
        if begins {
            if let Some(gpu) = gpus.nth(which) {
                gpu.sick_since.get_or_insert(now);
            }
        } else {
            gpus.for_each(|gpu| gpu.sick_since = None);
        }
    }

    /// Every trouble ends, and what is down comes up. Tenants delete what is left within some minutes.
    pub(crate) fn calm(&mut self) {
        self.note(|| "the storm is over".into());
        self.weather.calm = true;
        self.weather.steady();
        self.weather.market_up = true;
        self.weather.sites_down.clear();
        self.weather.cut_from_market.clear();
        self.weather.cut_from_chain.clear();
        self.weather.agents_silent.clear();
        self.chain.hung = false;
        self.chain.inclusion_per_mille = 1000;
        for site in 0..self.sites.len() {
            self.gpu_fails_or_heals(site, false);
            self.kill(Who::Provider(site, 1));
            self.at(0, Event::Start(Who::Provider(site, 0)));
        }
        self.kill(Who::Market(1));
        self.at(0, Event::Start(Who::Market(0)));
        let long = self.random.per_mille(150);
        let wait = self.random.between(0, if long { 1_500_000 } else { 300_000 });
        self.tenants.leave_at = Some(self.now + wait);
    }
}
