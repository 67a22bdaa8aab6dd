//! What the lease controller reads before it decides.

use std::{collections::BTreeMap, sync::Arc};

use kube::ResourceExt as _;
use leasehold_crds::{
    GpuAllocation, GpuLease, PROVIDER_NAMESPACE_PREFIX,
    lease::{GpuLeaseStatus, Phase},
};
use leasehold_planner::{
    escrow::{Terms, allocation_name},
    market::lease::{
        self, AccessToken, AllocationSeen, Deletion, Network, Parsed, RecoveredAccount, Wallet, World,
    },
    observed::Observed,
    ports::Balances,
};

use crate::{Sim, provider::is_signed, reconcile::ProcessId, rpc::Reader};

impl Sim {
    pub(in crate::market) fn gather_lease(
        &mut self,
        m: usize,
        read: &Arc<GpuLease>,
        reader: &mut Reader,
    ) -> World {
        let who = ProcessId::Market(m);
        let status = read.status.clone().unwrap_or_default();
        let network = Network {
            currency: self.currency,
            market_id: self.market_id,
            closer: self.closer,
            secret: self.secret.clone(),
            symbol: "USDC".into(),
            decimals: 6,
            refusal: None,
        };
        let network = Observed::Known(Some(network));
        let deletion = Deletion::of(read, None);
        let market = &self.markets[m];
        let (providers, candidates) = (market.providers.clone(), market.candidates.clone());
        let mut world = World {
            lease: read.clone(),
            parsed: Parsed::of(read, &deletion, &network, None, &providers, &candidates),
            deletion,
            network,
            gateway: None,
            access_token: Observed::Known(AccessToken::NotRead),
            providers,
            candidates,
            allocations: self.allocations_of(m, read, &status),
            wallet: Observed::Known(Wallet::NotRead),
            balances: None,
            head: Observed::Unknown("there is no usable PaymentNetwork".into()),
            account: None,
            second_account: None,
            final_reads: Vec::new(),
            prior: Observed::Known(None),
            unfunded_in_namespace: self.unfunded_beside(m, read),
            // With so few leases, no provider has too many unanswered allocations.
            unanswered: BTreeMap::new(),
        };
        if lease::needs_wallet(&world) {
            world.wallet = if self.faults.market_up {
                reader.cost_ms += 3;
                Observed::Known(self.tenants.wallet(&read.namespace().unwrap_or_default()))
            } else {
                Observed::Unknown("the API server is unreachable".into())
            };
        }
        let terms = world.parsed.terms.clone().and_then(Result::ok);
        if lease::needs_chain(read) {
            if let (Observed::Known(Wallet::Ready(address)), None) = (&world.wallet, &status.escrow) {
                world.balances = Some(match self.read_balance(reader, who, *address) {
                    Observed::Known(token) => Observed::Known(Balances { token, gas_wei: 1 }),
                    Observed::Unknown(why) => Observed::Unknown(why),
                });
            }
            if let Some(terms) = &terms {
                let open_by = status.escrow.as_ref().map_or(0, |e| e.open_by);
                let account = (terms, u64::try_from(open_by).unwrap_or_default());
                let wants_second = |first: &_| lease::wants_second(read, first);
                let (first, second) = self.read_account_twice(reader, who, account, wants_second);
                world.second_account = second;
                if lease::wants_final(&first) {
                    world.final_reads = self.final_reads(reader, who, terms);
                }
                world.head = first.clone().map(|at| at.block);
                world.account = Some(first);
            } else {
                world.head = self.read_head(reader, who);
            }
        }
        world.prior = if !lease::seeks_prior(read) || self.faults.market_up {
            self.prior(m, &world, reader)
        } else {
            Observed::Unknown("cannot list the allocations".into())
        };
        world
    }

    fn unfunded_beside(&self, m: usize, read: &GpuLease) -> usize {
        if read.status.as_ref().is_some_and(|s| s.escrow.is_some()) {
            return 0;
        }
        let others = |l: &&Arc<GpuLease>| {
            l.metadata.namespace == read.metadata.namespace
                && l.status.as_ref().is_some_and(|s| s.phase == Phase::Matched)
        };
        let all = self.markets[m].lease_store.all();
        all.map(|(_, l)| l).filter(others).count()
    }

    fn allocations_of(&self, m: usize, read: &GpuLease, status: &GpuLeaseStatus) -> Vec<AllocationSeen> {
        let store = &self.markets[m].allocation_store;
        let found: Vec<Arc<GpuAllocation>> = match &status.escrow {
            Some(escrow) => {
                let Ok(terms) = Terms::from_wire(&escrow.terms) else {
                    return Vec::new();
                };
                let legs = escrow.legs.iter().enumerate();
                legs.filter_map(|(index, leg)| {
                    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{}", leg.provider);
                    store
                        .get(&(namespace, allocation_name(terms.id(), index)))
                        .cloned()
                })
                .collect()
            }
            None => {
                let uid = read.metadata.uid.as_ref();
                let now = self.clock(self.markets[m].offset_ms);
                let mine =
                    |a: &&Arc<GpuAllocation>| Some(&a.spec.lease.uid) == uid && lease::concerns(read, a, now);
                if lease::seeks_prior(read) {
                    self.allocations
                        .all()
                        .map(|(_, a)| a)
                        .filter(mine)
                        .cloned()
                        .collect()
                } else {
                    store.all().map(|(_, a)| a).filter(mine).cloned().collect()
                }
            }
        };
        found
            .into_iter()
            .map(|mut object| {
                lease::trim_allocation(Arc::make_mut(&mut object));
                AllocationSeen {
                    signed: is_signed(&object),
                    object,
                }
            })
            .collect()
    }

    fn prior(&mut self, m: usize, world: &World, reader: &mut Reader) -> Observed<Option<RecoveredAccount>> {
        if !lease::needs_prior(world) {
            return Observed::Known(None);
        }
        let head = match self.read_head(reader, ProcessId::Market(m)) {
            Observed::Known(head) => head,
            Observed::Unknown(why) => return Observed::Unknown(why),
        };
        let market = self.market_id;
        let opened = self.chain.opened(head.number).map(|o| o.terms.clone());
        let index = &mut self.markets[m].index;
        index.extend(&self.secret, opened);
        let uid = world.lease.metadata.uid.clone().unwrap_or_default();
        Observed::Known(index.latest(market, &uid, lease::prior_rounds(&world.lease)))
    }
}
