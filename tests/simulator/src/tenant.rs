//! Actions of tenants: they create, extend and delete leases, delete namespaces and Secrets, wipe a status, top up
//! from another account, and close accounts on the chain.

use std::collections::{BTreeMap, BTreeSet};

use leasehold_chain::machine::Action;
use leasehold_crds::{
    GpuLease,
    lease::{
        GpuLeaseSpec, OnFundsEnd, Payment, Phase, Placement, Spread, Term, TopUp, Wallet as WalletReference,
        workload::{Job, NodeShape, Service, Session, Workload},
    },
    payment::money::TokenAmount,
};
use leasehold_planner::{
    escrow::{Address, Terms},
    market::lease::Wallet,
};

use crate::{
    Sim,
    api::Key,
    cluster::Program,
    provider::BROKEN,
    random::Random,
    scenario::Scenario,
    sim::{Event, address_of},
};

/// Maximum number of leases at a time.
const LEASES_MAX: usize = 7;
const TEAMS: [&str; 2] = ["team-a", "team-b"];

/// All tenants.
pub(crate) struct Tenants {
    balances: BTreeMap<String, TokenAmount>,
    secrets: BTreeSet<String>,
    programs: BTreeMap<String, Program>,
    made: u64,
    /// Leases of the tenant who is never ready.
    unready: BTreeSet<Key>,
    /// Leases of the tenant who evicts its own pods.
    evicting: BTreeSet<Key>,
    /// When all remaining leases are deleted. Once it is set, no lease is created.
    pub(crate) leave_at: Option<u64>,
}

/// An address that tops up accounts of others.
pub(crate) fn third_party() -> Address {
    address_of("third party")
}

/// An address that opens accounts that look like those of others.
pub(crate) fn stranger() -> Address {
    address_of("stranger")
}

/// Whether a stranger opened the account.
pub(crate) fn is_strangers(terms: &Terms) -> bool {
    terms.payer == stranger()
}

fn payer(namespace: &str) -> Address {
    address_of(&format!("payer {namespace}"))
}

impl Tenants {
    pub(crate) fn new(random: &mut Random) -> Self {
        let balances = TEAMS.iter().map(|team| {
            let amount = if random.per_mille(150) { 30_000 } else { 20_000_000 };
            ((*team).to_owned(), TokenAmount(amount))
        });
        Self {
            balances: balances.collect(),
            secrets: TEAMS.iter().map(|t| (*t).to_owned()).collect(),
            programs: BTreeMap::new(),
            made: 0,
            unready: BTreeSet::new(),
            evicting: BTreeSet::new(),
            leave_at: None,
        }
    }

    /// Initial token balances.
    pub(crate) fn balances(&self) -> Vec<(Address, TokenAmount)> {
        let teams = self.balances.iter().map(|(team, amount)| (payer(team), *amount));
        let others = [third_party(), stranger()].map(|who| (who, TokenAmount(50_000_000)));
        teams.chain(others).collect()
    }

    /// The result of reading the namespace's Secret.
    pub(crate) fn wallet(&self, namespace: &str) -> Wallet {
        if self.secrets.contains(namespace) {
            Wallet::Ready(payer(namespace))
        } else {
            Wallet::NotReadable("there is no such Secret".into())
        }
    }

    /// Sets the program of a lease that is none of these tenants'.
    pub(crate) fn set_program(&mut self, uid: &str, program: Program) {
        self.programs.insert(uid.to_owned(), program);
    }

    /// The program that a lease's container runs.
    pub(crate) fn program(&self, uid: &str, is_job: bool) -> Program {
        let program = self.programs.get(uid).copied().unwrap_or(BROKEN);
        if is_job {
            // Nobody checks whether a job is ready: it is when it runs.
            Program {
                starts_after_ms: program
                    .starts_after_ms
                    .filter(|_| program.ready_after_ms.is_some()),
                ready_after_ms: Some(0),
                ..program
            }
        } else {
            Program {
                ends: program.ends.filter(|(after, _)| *after > 20_000),
                ..program
            }
        }
    }
}

fn spec(random: &mut Random) -> GpuLeaseSpec {
    let term = random.between(2, 30) * 10;
    let pauses = random.per_mille(300);
    let kind = random.below(3);
    GpuLeaseSpec {
        nodes: i64::try_from(random.between(1, 3)).unwrap_or(1),
        per_node: NodeShape {
            cpu: "1".into(),
            memory: "1Gi".into(),
            ephemeral_storage: "1Gi".into(),
            gpus: i64::try_from(random.between(1, 2)).unwrap_or(1),
        },
        placement: Some(Placement {
            spread: match random.below(3) {
                0 => Spread::SameProvider,
                1 => Spread::DistinctProviders,
                _ => Spread::Any,
            },
            ..Placement::default()
        }),
        term: Term {
            duration: format!("{term}s"),
        },
        workload: Workload {
            session: (kind == 0).then(Box::<Session>::default),
            service: (kind == 1).then(Box::<Service>::default),
            job: (kind == 2).then(Box::<Job>::default),
        },
        payment: Payment {
            network: "net".into(),
            max_price_per_gpu_hour: "5".into(),
            wallet: WalletReference {
                secret_name: "wallet".into(),
            },
            top_up: random.per_mille(300).then(|| TopUp {
                when_runway_below: "30s".into(),
                extend_by: format!("{}s", random.between(3, 12) * 10),
                total_at_most: "0.2".into(),
            }),
            on_funds_end: if pauses {
                OnFundsEnd::Pause
            } else {
                OnFundsEnd::Close
            },
            pause_for: pauses.then(|| format!("{}s", random.between(3, 20) * 10)),
        },
        ..GpuLeaseSpec::default()
    }
}

/// Half of the programs that are not served are never ready, and those of the others never run.
fn program(random: &mut Random, made: u64) -> Program {
    let ready = (!random.per_mille(50)).then(|| random.between(200, 20_000));
    let starts = ready.map(|ms| ms / 2);
    Program {
        starts_after_ms: starts.or_else(|| made.is_multiple_of(2).then_some(1_000)),
        ready_after_ms: starts,
        crashes_in: None,
        stays_evicted: false,
        ends: random
            .per_mille(700)
            .then(|| (random.between(2, 200) * 1000, i64::from(random.per_mille(250)))),
    }
}

/// A service on two nodes of one provider, one GPU each, which is not topped up.
fn two_nodes_of_one_provider(random: &mut Random) -> GpuLeaseSpec {
    let mut spec = spec(random);
    spec.nodes = 2;
    spec.per_node.gpus = 1;
    spec.placement = Some(Placement {
        spread: Spread::SameProvider,
        ..Placement::default()
    });
    spec.workload = Workload {
        service: Some(Box::default()),
        ..Workload::default()
    };
    spec.payment.top_up = None;
    spec
}

impl Sim {
    pub(crate) fn tenants_act(&mut self) {
        let after = self.random.between(500, 12_000);
        self.at(after, Event::Tenants);
        if !self.faults.market_up {
            return;
        }
        if let Some(leave_at) = self.tenants.leave_at {
            if self.now >= leave_at {
                self.leave();
            }
            return;
        }
        let keys: Vec<Key> = self.leases.all().map(|(key, _)| key.clone()).collect();
        let one = self.random.pick(&keys).cloned();
        match (self.random.below(100), one) {
            (0..40, _) if keys.len() < LEASES_MAX => self.create(),
            (_, None) => self.create(),
            (40..54, Some(key)) => self.extend(&key),
            (54..62, Some(key)) => self.delete(&key),
            (62..63, Some(key)) => self.delete_namespace(&key.0),
            (63..73, Some(key)) => self.wipe(&key),
            (73..77, Some(key)) => {
                self.note(|| format!("the Secret of {} is deleted", key.0));
                self.tenants.secrets.remove(&key.0);
            }
            (77..90, _) => {
                let team = TEAMS[usize::try_from(self.random.below(2)).unwrap_or(0)];
                self.tenants.secrets.insert(team.to_owned());
            }
            (90..96, Some(key)) => self.top_up_from_elsewhere(&key),
            (96..98, Some(key)) => self.close_on_chain(&key),
            (_, Some(_)) => {}
        }
    }

    fn create(&mut self) {
        let team = TEAMS[usize::try_from(self.random.below(2)).unwrap_or(0)];
        if !self.tenants.secrets.contains(team) {
            return;
        }
        let mut spec = spec(&mut self.random);
        if self.faults.contains(Scenario::StallingProvider) {
            spec.start_within = Some("1m".into());
        }
        let program = program(&mut self.random, self.tenants.made);
        self.apply(team, spec, program);
    }

    /// Creates a lease, and returns its key.
    fn apply(&mut self, team: &str, spec: GpuLeaseSpec, program: Program) -> Key {
        self.tenants.made += 1;
        let name = format!("l{}", self.tenants.made);
        let object = GpuLease::new(&name, spec);
        let key = (team.to_owned(), name);
        if let Ok(made) = self.leases.apply(&key, &object) {
            let uid = made.metadata.uid.clone().unwrap_or_default();
            self.note(|| {
                let s = &object.spec;
                format!(
                    "a tenant wants {}: {} × {} GPUs, {:?}, {}, job {}, {:?}, {program:?}",
                    key.1,
                    s.nodes,
                    s.per_node.gpus,
                    s.placement.as_ref().map(|p| p.spread),
                    s.term.duration,
                    s.workload.job.is_some(),
                    s.payment.on_funds_end
                )
            });
            self.tenants.programs.insert(uid, program);
        }
        key
    }

    /// A tenant whose program is never ready, or crashes on one of two nodes, and who pays for a second at a time once the
    /// first ten seconds are spent. Returns the time until it acts again.
    pub(crate) fn unready_tenant_acts(&mut self) -> u64 {
        let team = TEAMS[0];
        let unready: Vec<Key> = self
            .tenants
            .unready
            .iter()
            .filter(|k| self.leases.get(k).is_some())
            .cloned()
            .collect();
        if unready.len() < 2 && self.faults.market_up && self.tenants.secrets.contains(team) {
            let crashes = self.random.per_mille(500);
            let program = Program {
                starts_after_ms: Some(self.random.between(200, 2_000)),
                ready_after_ms: crashes.then_some(500),
                crashes_in: crashes.then_some(0),
                stays_evicted: false,
                ends: None,
            };
            let mut spec = two_nodes_of_one_provider(&mut self.random);
            spec.term.duration = "10s".into();
            spec.payment.on_funds_end = OnFundsEnd::Pause;
            spec.payment.pause_for = Some("10m".into());
            let key = self.apply(team, spec, program);
            self.tenants.unready.insert(key);
        }
        for key in unready {
            let status = self.leases.get(&key).and_then(|l| l.status.as_ref());
            let phase = status.map(|s| s.phase);
            if phase == Some(Phase::Suspended) {
                self.invariants.count("top-up by a second".into());
                self.top_up_by(&key, 1);
            } else if phase == Some(Phase::Closed) {
                self.delete(&key);
            }
        }
        self.random.between(2_000, 6_000)
    }

    /// A tenant who has one of two pods evicted as soon as its leg may run, for example by filling its disk, and whose
    /// registry then refuses the image: the other pod would compute without payment. Returns the time until it acts again.
    pub(crate) fn self_evicting_tenant_acts(&mut self) -> u64 {
        let team = TEAMS[0];
        let (leases, evicting) = (&self.leases, &mut self.tenants.evicting);
        evicting.retain(|key| leases.get(key).is_some());
        if evicting.len() < 2 && self.faults.market_up && self.tenants.secrets.contains(team) {
            let program = Program {
                starts_after_ms: Some(500),
                ready_after_ms: Some(500),
                crashes_in: None,
                stays_evicted: true,
                ends: None,
            };
            let mut spec = two_nodes_of_one_provider(&mut self.random);
            spec.term.duration = "10m".into();
            spec.start_within = Some("1m".into());
            let key = self.apply(team, spec, program);
            self.tenants.evicting.insert(key);
        }
        for site in 0..self.sites.len() {
            if !self.faults.sites_down.contains(&site) {
                let Self {
                    sites, random, now, ..
                } = self;
                for name in sites[site].cluster.evict_by_tenants(*now, random) {
                    self.invariants.count("pod evicted by its tenant".into());
                    self.note(|| format!("the tenant of {name} has a pod evicted"));
                }
            }
        }
        self.random.between(8_000, 20_000)
    }

    fn extend(&mut self, key: &Key) {
        let more = self.random.between(3, 20) * 10;
        let changed = self.leases.patch(key, |lease| {
            let now = leasehold_crds::shared::duration::seconds(&lease.spec.term.duration).unwrap_or(0);
            lease.spec.term.duration = format!("{}s", now + more);
        });
        if changed.is_ok() {
            self.note(|| format!("{} is extended by {more} s", key.1));
        }
    }

    pub(crate) fn delete(&mut self, key: &Key) {
        let now = self.clock(0);
        self.note(|| format!("{} is deleted", key.1));
        self.leases.delete(key, now).ok();
    }

    fn delete_namespace(&mut self, namespace: &str) {
        self.note(|| format!("namespace {namespace} is deleted"));
        self.tenants.secrets.remove(namespace);
        let keys: Vec<Key> = self.leases.all().map(|(key, _)| key.clone()).collect();
        for key in keys.iter().filter(|k| k.0 == namespace) {
            self.delete(key);
        }
    }

    pub(crate) fn wipe(&mut self, key: &Key) {
        self.note(|| format!("the status of {} is wiped", key.1));
        self.leases.wipe_status(key);
    }

    fn terms_of(&self, key: &Key) -> Option<Terms> {
        let status = self.leases.get(key)?.status.clone()?;
        Terms::from_wire(&status.escrow?.terms).ok()
    }

    fn top_up_from_elsewhere(&mut self, key: &Key) {
        if self.terms_of(key).is_none() {
            return;
        }
        let long = self.random.per_mille(100);
        let seconds = self.random.between(1, 12) * if long { 200 } else { 10 };
        self.top_up_by(key, seconds);
    }

    fn top_up_by(&mut self, key: &Key, seconds: u64) {
        let Some(terms) = self.terms_of(key) else { return };
        let read = self.chain.account(&terms);
        let Some(account) = read.present().filter(|a| !a.closed) else {
            return;
        };
        let more = terms.rate().cost_ceil(seconds).unwrap_or_default();
        let total = TokenAmount(account.deposited.0 + more.0);
        self.note(|| format!("a third party tops {} up by {seconds} s", key.1));
        self.invariants.third_party_deposits(terms.id(), total);
        self.chain.force(third_party(), Action::FundTo { terms, total });
    }

    fn close_on_chain(&mut self, key: &Key) {
        if let Some(terms) = self.terms_of(key) {
            self.note(|| format!("the payer of {} closes on the chain", key.1));
            self.chain.force(terms.payer, Action::Close { terms, payouts: 0 });
        }
    }

    fn leave(&mut self) {
        self.close_strangers_accounts();
        let keys: Vec<Key> = self.leases.all().map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(lease) = self.leases.get(&key).cloned() else {
                continue;
            };
            let closed = lease.status.as_ref().is_some_and(|s| s.phase == Phase::Closed);
            // Some closed leases are kept.
            if lease.metadata.deletion_timestamp.is_none() && !(closed && key.1.ends_with(['1', '3', '5'])) {
                self.delete(&key);
            }
        }
    }
}
