//! Scenarios of the market.

use leasehold_chain::machine::Action;
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::escrow::{Address, Hash, Leg, RoundKey, Terms};

use crate::{Sim, api::Key, reconcile::ProcessId, scenario::Scenario, sim::Event, tenant::stranger};

impl Sim {
    /// Whether the market's process dies before the next write of this reconcile. The chain then hangs for minutes, and
    /// the tenant deletes the lease.
    pub(crate) fn dies_between_writes(&mut self, who: ProcessId, key: &Key) -> bool {
        // Once in an outage: reads of a chain that hangs take so long that a process that dies often finishes nothing.
        let may_die = self.faults.forces(Scenario::DeathBetweenWrites) && !self.chain.hung;
        if !may_die || !self.random.per_mille(20) {
            return false;
        }
        self.invariants.count("death between writes".into());
        self.kill(who);
        self.at(1_000, Event::Start(who));
        let span = self.random.between(200, 400) * 1000;
        self.hang_chain(span);
        self.delete(key);
        true
    }

    /// A stranger opens an account that copies the market, the token, the closer, and the salt of a lease or what is
    /// publicly known of one. Then the status of the lease is wiped. Returns the time until the next account.
    pub(crate) fn open_strangers_account(&mut self) -> u64 {
        let keys: Vec<Key> = self.leases.all().map(|(key, _)| key.clone()).collect();
        if let Some(key) = self.random.pick(&keys).cloned()
            && let Some(lease) = self.leases.get(&key).cloned()
        {
            let uid = lease.metadata.uid.clone().unwrap_or_default();
            let round = RoundKey::new(self.market_id, &uid, self.random.between(1, 64));
            let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
            let copied: Option<Hash> = escrow.and_then(|e| e.terms.salt.parse().ok());
            let terms = Terms {
                payer: stranger(),
                market: self.market_id,
                token: self.currency.token,
                closer: self.closer,
                salt: copied.unwrap_or_else(|| round.unkeyed_salt()),
                start_by: self.now / 1000 + 120,
                notice_seconds: 0,
                pause_for: 0,
                legs: vec![Leg {
                    payee: stranger(),
                    controller: stranger(),
                    rate: Rate(1_000_000_000_000),
                }],
            };
            let deposit = TokenAmount(u128::from(self.random.below(2)));
            self.note(|| format!("a stranger opens an account for {}", key.1));
            let salt = if copied.is_some() {
                "the salt of a lease"
            } else {
                "a public salt"
            };
            self.invariants.count(format!("stranger's account with {salt}"));
            self.invariants.third_party_deposits(terms.id(), deposit);
            let valid_until = self.now / 1000 + 60;
            let open = Action::Open {
                terms,
                deposit,
                valid_until,
            };
            self.chain.force(stranger(), open);
            if self.random.per_mille(500) {
                self.wipe(&key);
            }
        }
        self.random.between(5_000, 30_000)
    }

    /// The open accounts of that payer.
    pub(super) fn open_accounts_of(&self, payer: Address) -> Vec<Terms> {
        let until = self.chain.newest().head.number;
        let opened = self.chain.opened(until).map(|o| &o.terms);
        let is_open = |terms: &&Terms| {
            terms.payer == payer && self.chain.account(terms).present().is_some_and(|a| !a.closed)
        };
        opened.filter(is_open).cloned().collect()
    }

    /// The stranger takes the money back.
    pub(crate) fn close_strangers_accounts(&mut self) {
        for terms in self.open_accounts_of(stranger()) {
            self.chain.force(stranger(), Action::Close { terms, payouts: 0 });
        }
    }
}
