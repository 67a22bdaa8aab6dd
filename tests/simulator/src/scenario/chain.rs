//! Scenarios of the chain.

use leasehold_planner::endpoints::Endpoint;

use crate::{Sim, reconcile::ProcessId, rpc::FALSE_ANSWERS, scenario::Scenario, sim::Event};

/// How one of two endpoints fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Every answer about an account is this false one.
    Lies(u64),
    /// Every answer is from this block.
    Stuck(u64),
    /// There is no answer.
    Dead,
}

/// An answer that is so many blocks old counts as one from an old block.
const FROZEN_BLOCKS: u64 = 10;

impl Sim {
    /// Freezes what answers reads at the newest block, or lets it follow the chain again. Returns the time until the
    /// next change; a frozen state lasts from `shortest_ms` to `longest_ms`.
    pub(crate) fn toggle_freeze(&mut self, shortest_ms: u64, longest_ms: u64) -> u64 {
        if self.faults.frozen_at.take().is_some() {
            self.note(|| "answers follow the chain again".into());
            return self.random.between(20_000, 90_000);
        }
        let number = self.chain.newest().head.number;
        if number < 30 {
            // Leases are to be served first.
            return 10_000;
        }
        self.faults.frozen_at = Some(number);
        self.note(|| format!("answers are frozen at block {number}"));
        self.random.between(shortest_ms, longest_ms)
    }

    /// Whether every answer is that of an old block, so that nothing of the chain can be known, or one of two endpoints is
    /// no witness, so that no end can be known.
    pub(crate) fn is_frozen(&self) -> bool {
        let frozen = self.faults.forces(Scenario::FrozenEndpoint) && self.faults.frozen_at.is_some();
        frozen || self.faults.bad_endpoint.is_some()
    }

    /// Lets one of two endpoints fail in the way of the scenario, or ends this. Returns the time until the next change.
    pub(crate) fn toggle_endpoint(&mut self, scenario: Scenario) -> u64 {
        if self.faults.bad_endpoint.take().is_some() {
            self.note(|| "both endpoints answer truly again".into());
            return self.random.between(20_000, 90_000);
        }
        let number = self.chain.newest().head.number;
        if number < 30 {
            return 10_000;
        }
        let endpoint = if self.random.per_mille(500) {
            Endpoint::First
        } else {
            Endpoint::Second
        };
        let way = match scenario {
            Scenario::StuckEndpoint => Way::Stuck(number),
            Scenario::DeadEndpoint => Way::Dead,
            _ => Way::Lies(self.random.below(FALSE_ANSWERS)),
        };
        let what = match way {
            Way::Lies(_) => "an endpoint lies",
            Way::Stuck(_) => "an endpoint is stuck",
            Way::Dead => "an endpoint is dead",
        };
        self.invariants.count(what.into());
        self.note(|| format!("{}: {way:?}", endpoint.name()));
        self.faults.bad_endpoint = Some((endpoint, way));
        self.random.between(60_000, 400_000)
    }

    /// What is wrong with that endpoint.
    pub(crate) fn way(&self, endpoint: Endpoint) -> Option<Way> {
        let (bad, way) = self.faults.bad_endpoint?;
        (bad == endpoint).then_some(way)
    }

    /// By how many blocks a read that reaches a frozen backend is behind. `None` if it reaches another one.
    pub(crate) fn frozen_lag(&mut self) -> Option<usize> {
        let frozen_at = self.faults.frozen_at?;
        let reaches = self.faults.forces(Scenario::FrozenEndpoint)
            || (self.faults.forces(Scenario::StuckBackend) && self.random.below(3) == 0);
        let behind = self.chain.newest().head.number.saturating_sub(frozen_at);
        if reaches && behind > FROZEN_BLOCKS {
            self.invariants.count("answer from an old block".into());
        }
        reaches.then(|| usize::try_from(behind).unwrap_or(usize::MAX))
    }

    /// Replaces the newest blocks. Half of their transactions are in no later block.
    pub(crate) fn drop_transactions(&mut self) {
        let Self { chain, random, .. } = self;
        let depth = usize::try_from(random.between(1, 6)).unwrap_or(1);
        let dropped = chain.reorganise(depth, || random.per_mille(500));
        if !dropped.is_empty() {
            self.faults.dropped_ms = self.now;
        }
        for call in dropped {
            self.invariants.count(format!("{call} dropped"));
        }
        self.note(|| format!("the newest {depth} blocks are reorganised, and transactions are dropped"));
    }

    /// Kills a process of a provider that has just sent a transaction, and starts it again at once.
    pub(crate) fn crash_after_send(&mut self, who: ProcessId, call: &'static str) {
        let crashes = matches!(who, ProcessId::Provider(..))
            && self.faults.forces(Scenario::CrashesAfterSending)
            && self.random.per_mille(400);
        if crashes {
            self.invariants.count(format!("crash after {call}"));
            self.kill(who);
            let down = self.random.between(50, 500);
            self.at(down, Event::Start(who));
        }
    }

    /// Lets a GPU of each provider fail or recover, and changes how full blocks are. Returns the time until the next
    /// change.
    pub(crate) fn toggle_gpu_faults(&mut self) -> u64 {
        self.chain.inclusion_per_mille = self.random.between(150, 1000);
        for site in 0..self.sites.len() {
            let begins = self.random.per_mille(500);
            self.change_gpu_faults(site, begins);
        }
        self.random.between(5_000, 30_000)
    }
}
