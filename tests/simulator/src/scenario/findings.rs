//! The findings that the simulation shows, each with the scenario, the invariant and whether it is closed.

use super::Scenario;

/// Whether the defect is still in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is: a run with the scenario violates the invariant.
    Open,
    /// It is not: no run with the scenario does.
    Closed,
}

/// A defect, and how a run shows it.
#[derive(Clone, Copy, Debug)]
pub struct Finding {
    /// Its number in the review.
    pub id: &'static str,
    /// What the run contains beside the faults of its seed.
    pub scenario: Scenario,
    /// First seed, and number of seeds.
    pub seeds: (u64, u64),
    /// Number of events of each run.
    pub steps: u64,
    /// The message of the violated invariant, from its beginning. `*` stands for any text.
    pub violates: &'static str,
    /// What happens in at least one of these runs, or they prove nothing. Names of [`Sim::counts`](crate::Sim::counts).
    pub reaches: &'static [&'static str],
    /// Whether it is closed.
    pub state: State,
}

impl Finding {
    /// Whether a message of a violated invariant is the one of this finding.
    #[must_use]
    pub fn is_shown_by(&self, violation: &str) -> bool {
        let mut rest = violation;
        self.violates.split('*').enumerate().all(|(n, part)| {
            let at = if n == 0 {
                rest.starts_with(part).then_some(0)
            } else {
                rest.find(part)
            };
            at.inspect(|at| rest = &rest[at + part.len()..]).is_some()
        })
    }
}

/// All findings. When one is closed, its row says so.
pub const FINDINGS: [Finding; 20] = [
    Finding {
        id: "M1",
        scenario: Scenario::HostileMarket,
        seeds: (1, 12),
        steps: 6_000,
        violates: "U3: * still runs after notAfter",
        reaches: &["hostile account"],
        state: State::Closed,
    },
    Finding {
        id: "M2",
        scenario: Scenario::UnreadyTenant,
        seeds: (1, 12),
        steps: 6_000,
        violates: "U2: the containers of * run, and its leg does not",
        reaches: &["top-up by a second"],
        state: State::Closed,
    },
    Finding {
        id: "C6",
        scenario: Scenario::Drains,
        seeds: (1, 12),
        steps: 6_000,
        violates: "M4: * is charged although its containers do not run",
        reaches: &["pod drained"],
        state: State::Closed,
    },
    Finding {
        id: "M4",
        scenario: Scenario::StrangersAccounts,
        seeds: (25, 12),
        steps: 6_000,
        violates: "M2: gas is spent on closing *, which a stranger opened",
        reaches: &["stranger's account with a public salt"],
        state: State::Closed,
    },
    Finding {
        id: "M3",
        scenario: Scenario::StrangersAccounts,
        seeds: (1, 24),
        steps: 6_000,
        violates: "M2: * which * opened",
        reaches: &["stranger's account with the salt of a lease"],
        state: State::Closed,
    },
    Finding {
        id: "M11",
        scenario: Scenario::DeathBetweenWrites,
        seeds: (1, 24),
        steps: 6_000,
        violates: "U8: * is not released",
        reaches: &["death between writes"],
        state: State::Closed,
    },
    Finding {
        id: "M8",
        scenario: Scenario::DroppedTransactions,
        seeds: (1, 24),
        steps: 6_000,
        violates: "M1: * was stored as closed, but its account is open",
        reaches: &["close dropped", "open dropped"],
        state: State::Closed,
    },
    Finding {
        id: "M5",
        scenario: Scenario::StuckBackend,
        seeds: (1, 24),
        steps: 6_000,
        violates: "U1: * is closed with reason ClosedOnChain",
        reaches: &["answer from an old block"],
        state: State::Closed,
    },
    Finding {
        id: "M9",
        scenario: Scenario::FrozenEndpoint,
        seeds: (34, 50),
        steps: 15_000,
        violates: "U2: * still runs beyond its grace",
        reaches: &["answer from an old block"],
        state: State::Closed,
    },
    Finding {
        id: "M7",
        scenario: Scenario::CrashesAfterSending,
        seeds: (1, 60),
        steps: 6_000,
        violates: "M4: * credited * seconds",
        reaches: &["crash after creditTo"],
        state: State::Closed,
    },
    Finding {
        id: "blocked payee",
        scenario: Scenario::BlockedPayee,
        seeds: (1, 6),
        steps: 6_000,
        violates: "U8: * there still is",
        reaches: &["payee blocked by the token"],
        state: State::Closed,
    },
    Finding {
        id: "M13",
        scenario: Scenario::RestoredEtcd,
        seeds: (1, 20),
        steps: 9_000,
        violates: "* was deleted while its account * is open",
        reaches: &["etcd restored"],
        state: State::Closed,
    },
    Finding {
        id: "C10",
        scenario: Scenario::StallingProvider,
        seeds: (1, 12),
        steps: 6_000,
        violates: "C10: * is closed because * did not start it",
        reaches: &["lease begins a round elsewhere"],
        state: State::Closed,
    },
    Finding {
        id: "C10 of several",
        scenario: Scenario::StallingProvider,
        seeds: (1, 12),
        steps: 6_000,
        violates: "U1: * is closed with reason ProviderStopped",
        reaches: &["lease begins a round elsewhere after a part was served"],
        state: State::Closed,
    },
    Finding {
        id: "lying endpoint",
        scenario: Scenario::LyingEndpoint,
        seeds: (1, 24),
        steps: 6_000,
        violates: "* was deleted while its account * is open",
        reaches: &["an endpoint lies"],
        state: State::Closed,
    },
    Finding {
        id: "stuck endpoint",
        scenario: Scenario::StuckEndpoint,
        seeds: (1, 12),
        steps: 6_000,
        violates: "U1: * is closed with reason *",
        reaches: &["an endpoint is stuck"],
        state: State::Closed,
    },
    Finding {
        id: "dead endpoint",
        scenario: Scenario::DeadEndpoint,
        seeds: (1, 12),
        steps: 6_000,
        violates: "U1: * is closed with reason *",
        reaches: &["an endpoint is dead"],
        state: State::Closed,
    },
    Finding {
        id: "clocks",
        scenario: Scenario::WrongClocks,
        seeds: (1, 24),
        steps: 6_000,
        violates: "U1/U2: reservation * is stopped with reason",
        reaches: &[
            "wrong clock of the market",
            "wrong clock of a provider",
            "wrong clock of the chain",
        ],
        state: State::Closed,
    },
    Finding {
        id: "C13",
        scenario: Scenario::PluginRestarts,
        seeds: (1, 12),
        steps: 6_000,
        violates: "U2: the containers of * run, and its leg does not",
        reaches: &["device plugin restarted under a lease"],
        state: State::Closed,
    },
    Finding {
        id: "own eviction",
        scenario: Scenario::SelfEvictingTenant,
        seeds: (1, 12),
        steps: 6_000,
        violates: "U2: a container of * runs, and its leg does not run again",
        reaches: &["pod evicted by its tenant"],
        state: State::Closed,
    },
];
