//! A market that asks providers to host what it does not pay for.

use leasehold_chain::machine::Action;
use leasehold_crds::{
    GpuAllocation,
    lease::workload::{NodeShape, Workload},
    market::allocation::{GpuAllocationSpec, LeaseReference},
    payment::money::{Price, TokenAmount},
};
use leasehold_planner::escrow::{Address, Leg, RoundKey, Terms, allocation_name};

use crate::{Sim, api::Key, cluster::Program, sim::address_of, tenant::third_party};

/// Namespace of the leases of the market. No API server that is simulated has them.
const NAMESPACE: &str = "hostile";

/// How it cheats.
#[derive(Clone, Copy, Debug)]
enum Cheat {
    /// It deposits one base unit.
    OneUnit,
    /// The leg may start in 30,000 years.
    StartsLate,
    /// Both.
    Both,
    /// A leg of its own starts the clock of the account, and the container of the other never runs.
    OwnLeg,
}

impl Sim {
    /// Opens the accounts of accepted allocations, and asks for another node. Returns the time until it acts again.
    pub(crate) fn hostile_market_acts(&mut self) -> u64 {
        for (_, allocation) in self.hostile_allocations() {
            let Ok(terms) = Terms::from_wire(&allocation.spec.escrow) else {
                continue;
            };
            let accepted = allocation.status.as_ref().is_some_and(|s| s.acceptance.is_some());
            match self.chain.account(&terms).present() {
                None if accepted => self.open_hostile_account(&allocation, terms),
                Some(account) if terms.legs.len() > 1 && account.running == 0 => {
                    self.chain
                        .force(third_party(), Action::Start { terms, legs: 0b10 });
                }
                _ => {}
            }
        }
        if self.faults.market_up && self.hostile_allocations().len() < 3 {
            self.ask_for_hostile_node();
        }
        self.random.between(3_000, 12_000)
    }

    /// Closes the accounts and deletes the allocations. Returns whether anything was left.
    pub(crate) fn hostile_market_leaves(&mut self) -> bool {
        let now = self.clock(0);
        let allocations = self.hostile_allocations();
        for (key, _) in &allocations {
            let deleted = self.allocations.set_finalizers(key, None, Vec::new());
            deleted.and_then(|_| self.allocations.delete(key, now)).ok();
        }
        let open = self.open_accounts_of(third_party());
        for terms in &open {
            let (terms, payouts) = (terms.clone(), (1 << terms.legs.len()) - 1);
            self.chain.force(third_party(), Action::Close { terms, payouts });
        }
        !allocations.is_empty() || !open.is_empty()
    }

    fn hostile_allocations(&self) -> Vec<(Key, GpuAllocation)> {
        let hostile = |a: &GpuAllocation| a.spec.lease.namespace == NAMESPACE;
        let all = self.allocations.all().filter(|(_, a)| hostile(a));
        all.map(|(key, a)| (key.clone(), (**a).clone())).collect()
    }

    fn open_hostile_account(&mut self, allocation: &GpuAllocation, terms: Terms) {
        let deposit = TokenAmount::parse(&allocation.spec.deposit).unwrap_or_default();
        self.note(|| format!("a hostile market opens an account with {deposit}"));
        self.invariants.third_party_deposits(terms.id(), deposit);
        self.invariants.count("hostile account".into());
        let valid_until = u64::MAX >> 24;
        self.chain.force(
            third_party(),
            Action::Open {
                terms,
                deposit,
                valid_until,
            },
        );
    }

    fn ask_for_hostile_node(&mut self) {
        let sites = u64::try_from(self.sites.len()).unwrap_or(1);
        let site = usize::try_from(self.random.below(sites)).unwrap_or(0);
        let cheats = [Cheat::OneUnit, Cheat::StartsLate, Cheat::Both, Cheat::OwnLeg];
        let Some(cheat) = self.random.pick(&cheats).copied() else {
            return;
        };
        let uid = format!("hostile-{}", self.steps);
        let now = self.clock(0).as_second();
        let not_after = now + i64::try_from(self.random.between(20, 400)).unwrap_or(100);
        let open_by = now + 60;
        let (identity, pool) = (&self.sites[site].identity, &self.sites[site].pool);
        let rate = Price::parse(&pool.spec.price_per_gpu_hour)
            .ok()
            .and_then(|p| p.rate_floor(1, 6));
        let Some(rate) = rate else { return };
        let leg = Leg {
            payee: identity.payee,
            controller: identity.controller,
            rate,
        };
        let terms = hostile_terms(cheat, leg, self.currency.token, &uid, open_by);
        let whole = terms.rate().cost_ceil(600).unwrap_or_default();
        let deposit = match cheat {
            Cheat::OneUnit | Cheat::Both => TokenAmount(1),
            Cheat::StartsLate | Cheat::OwnLeg => whole,
        };
        self.tenants.set_program(
            &uid,
            Program {
                starts_after_ms: (!matches!(cheat, Cheat::OwnLeg)).then_some(500),
                ready_after_ms: Some(500),
                crashes_in: None,
                stays_evicted: false,
                ends: None,
            },
        );
        let spec = GpuAllocationSpec {
            lease: LeaseReference {
                namespace: NAMESPACE.into(),
                name: uid.clone(),
                uid: uid.clone(),
            },
            round: 1,
            escrow: terms.to_wire(self.currency.chain_id, self.currency.escrow),
            deposit: deposit.to_string(),
            open_by,
            pool: pool.metadata.name.clone().unwrap_or_default(),
            nodes: 1,
            per_node: NodeShape {
                cpu: "1".into(),
                memory: "1Gi".into(),
                ephemeral_storage: "1Gi".into(),
                gpus: 1,
            },
            workload: Workload {
                service: Some(Box::default()),
                ..Workload::default()
            },
            not_after,
            ..GpuAllocationSpec::default()
        };
        let key = (self.sites[site].namespace.clone(), allocation_name(terms.id(), 0));
        self.note(|| format!("a hostile market asks for {}: {cheat:?}", key.1));
        let asked = self.allocations.apply(&key, &GpuAllocation::new(&key.1, spec));
        if asked.is_ok() {
            self.invariants.count("hostile allocation".into());
        }
    }
}

/// Terms of an account that pays one leg of an honest provider, or seems to.
fn hostile_terms(cheat: Cheat, leg: Leg, token: Address, uid: &str, open_by: i64) -> Terms {
    let mut terms = Terms {
        payer: third_party(),
        market: address_of(NAMESPACE),
        token,
        closer: third_party(),
        salt: RoundKey::new(address_of(NAMESPACE), uid, 1).unkeyed_salt(),
        start_by: u64::try_from(open_by + 900).unwrap_or_default(),
        notice_seconds: 0,
        pause_for: 0,
        legs: vec![leg],
    };
    if matches!(cheat, Cheat::StartsLate | Cheat::Both) {
        terms.start_by = (1 << 40) - 1;
    }
    if matches!(cheat, Cheat::OwnLeg) {
        terms.legs.push(Leg {
            payee: third_party(),
            controller: third_party(),
            rate: leg.rate,
        });
    }
    terms
}
