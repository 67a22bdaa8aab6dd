//! Scenarios: kinds of faults and of hostile actors that a run can be forced to contain, beside the faults that its seed
//! selects. Each was added to show a finding of a review, see [`findings`].

use std::collections::BTreeSet;

use crate::{Sim, random::Random, sim::Event};

pub(crate) mod chain;
mod clocks;
mod findings;
mod hostile_market;
mod market;
mod nodes;
mod restore;

pub(crate) use restore::Backup;

pub use findings::{FINDINGS, Finding, State};

/// How many of a thousand ordinary runs contain a given scenario whose findings are closed.
const DRAWN_PER_MILLE: u64 = 50;

/// A kind of fault or actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Reorganisations that drop transactions for good.
    DroppedTransactions,
    /// One of three backends behind a load balancer answers from an old block for minutes.
    StuckBackend,
    /// The endpoint answers every read from an old block for minutes.
    FrozenEndpoint,
    /// Providers crash directly after they sent a transaction, blocks are full, and GPUs fail often.
    CrashesAfterSending,
    /// The token rejects transfers to a payee.
    BlockedPayee,
    /// A market asks for nodes that it does not pay for.
    HostileMarket,
    /// A tenant whose program is never ready, or crashes on one of its nodes, and who pays for a second at a time.
    UnreadyTenant,
    /// Nodes are drained: pods are evicted, and can't be scheduled for minutes.
    Drains,
    /// The market's process dies between two writes of a lease, the chain hangs, and the tenant deletes the lease.
    DeathBetweenWrites,
    /// A stranger opens accounts that look like those of leases.
    StrangersAccounts,
    /// The provider with the lowest price accepts everything and starts nothing.
    StallingProvider,
    /// The market's etcd is restored from a backup that is some minutes old.
    RestoredEtcd,
    /// One of two endpoints tells the same lie of every account for minutes.
    LyingEndpoint,
    /// One of two endpoints answers from an old block for minutes.
    StuckEndpoint,
    /// One of two endpoints does not answer for minutes.
    DeadEndpoint,
    /// Clocks of markets, providers and the chain are minutes off, either way.
    WrongClocks,
    /// Device plugins restart: for a while no pod that needs a GPU can start on the node, and those that run continue.
    PluginRestarts,
    /// A tenant has one of two pods evicted, which never runs again.
    SelfEvictingTenant,
}

impl Scenario {
    /// All scenarios.
    pub const ALL: [Self; 18] = [
        Self::DroppedTransactions,
        Self::StuckBackend,
        Self::FrozenEndpoint,
        Self::CrashesAfterSending,
        Self::BlockedPayee,
        Self::HostileMarket,
        Self::UnreadyTenant,
        Self::Drains,
        Self::DeathBetweenWrites,
        Self::StrangersAccounts,
        Self::StallingProvider,
        Self::RestoredEtcd,
        Self::LyingEndpoint,
        Self::StuckEndpoint,
        Self::DeadEndpoint,
        Self::WrongClocks,
        Self::PluginRestarts,
        Self::SelfEvictingTenant,
    ];

    /// Whether every finding that it shows is closed, so that ordinary runs may contain it.
    #[must_use]
    pub fn is_closed(self) -> bool {
        let mut findings = FINDINGS.iter().filter(|f| f.scenario == self);
        findings.all(|f| f.state == State::Closed)
    }

    /// The scenarios of the ordinary run of that seed. They are drawn separately from everything else, so that a run
    /// without any stays the same when a scenario is added.
    pub(crate) fn drawn(seed: u64) -> BTreeSet<Self> {
        let drawn = |scenario: &Self| {
            let mut random = Random::new(seed ^ (0x5ce0_a510 + *scenario as u64) << 24);
            scenario.is_closed() && random.per_mille(DRAWN_PER_MILLE)
        };
        Self::ALL.into_iter().filter(drawn).collect()
    }
}

/// The provider that stalls in the scenario [`Scenario::StallingProvider`].
const STALLS: usize = 0;

impl Sim {
    /// Whether that provider starts nothing of what it accepts.
    pub(crate) fn stalls(&self, site: usize) -> bool {
        site == STALLS && self.faults.contains(Scenario::StallingProvider)
    }

    /// Lets the actor of a scenario act, until faults are stopped. A scenario that only changes how others behave does
    /// nothing here.
    pub(crate) fn scenario_acts(&mut self, scenario: Scenario) {
        if !self.faults.forces(scenario) {
            if scenario == Scenario::HostileMarket && self.hostile_market_leaves() {
                self.at(1_000, Event::Scenario(scenario));
            }
            return;
        }
        let after_ms = match scenario {
            Scenario::BlockedPayee => {
                let (token, payee) = (self.currency.token, self.sites[0].identity.payee);
                self.chain.block(token, payee);
                None
            }
            Scenario::DroppedTransactions | Scenario::DeathBetweenWrites => None,
            Scenario::StallingProvider => {
                let pool = &mut self.sites[STALLS].pool;
                pool.spec.price_per_gpu_hour = "0.50".into();
                None
            }
            Scenario::StuckBackend => Some(self.toggle_freeze(90_000, 300_000)),
            Scenario::RestoredEtcd => Some(self.restore_etcd()),
            Scenario::StrangersAccounts => Some(self.open_strangers_account()),
            Scenario::FrozenEndpoint => Some(self.toggle_freeze(300_000, 600_000)),
            Scenario::CrashesAfterSending => Some(self.toggle_gpu_faults()),
            Scenario::HostileMarket => Some(self.hostile_market_acts()),
            Scenario::UnreadyTenant => Some(self.unready_tenant_acts()),
            Scenario::Drains => Some(self.drain_a_node()),
            Scenario::LyingEndpoint | Scenario::StuckEndpoint | Scenario::DeadEndpoint => {
                Some(self.toggle_endpoint(scenario))
            }
            Scenario::WrongClocks => {
                self.set_clocks_wrong();
                None
            }
            Scenario::PluginRestarts => Some(self.restart_a_plugin()),
            Scenario::SelfEvictingTenant => Some(self.self_evicting_tenant_acts()),
        };
        if let Some(after_ms) = after_ms {
            self.at(after_ms, Event::Scenario(scenario));
        }
    }
}
