//! Reads everything that a decision about a reservation needs. Each source is known or unknown; none is required.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use kube::{Api, ResourceExt as _};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{
    GpuAllocation, GpuReservation, PaymentNetwork, market::allocation::AllocationPhase,
    payment::escrow::EscrowTerms, shared::duration,
};
use leasehold_planner::{
    escrow::{AccountAt, Terms},
    observed::Observed,
    ports::BlockLevel,
    provider::{
        offer::resumption::{Room, wants_room},
        reservation::{self as planner, Withdrawals, World},
        workload::EgressDenylist,
    },
};
use leasehold_runtime::cache;

use crate::{
    payments,
    provider::{Provider, workload::observe::API_DEADLINE},
};

/// The denylist is computed again at most this often: reading all nodes on each reconcile would take longer than the
/// reconcile. A node that joins is denied to pods at most this much later.
const DENYLIST_VALID_FOR: Duration = Duration::from_secs(5);

/// What was read of an account.
struct AccountReads {
    account: Observed<AccountAt>,
    second: Observed<AccountAt>,
    settled: Option<Observed<AccountAt>>,
    final_reads: Vec<Observed<AccountAt>>,
}

impl AccountReads {
    fn unknown(why: &str) -> Self {
        Self {
            account: Observed::Unknown(why.to_owned()),
            second: Observed::Unknown("not read".into()),
            settled: None,
            final_reads: Vec::new(),
        }
    }
}

impl Provider {
    /// This provider's PaymentNetwork for the chain, contract and token of an account.
    pub(crate) fn network_of(&self, terms: &EscrowTerms) -> Option<Arc<PaymentNetwork>> {
        let token = terms.token.to_ascii_lowercase();
        let contract = terms.contract.to_ascii_lowercase();
        self.caches.networks.find(|n| {
            n.spec.chain_id == terms.chain_id
                && n.spec.escrow.to_ascii_lowercase() == contract
                && n.spec.token.address.to_ascii_lowercase() == token
        })
    }

    /// Reads everything that a decision needs.
    pub(super) async fn gather<'a>(
        &'a self,
        reservation: &'a GpuReservation,
        now: jiff::Timestamp,
    ) -> (World<'a>, Option<EvmEscrow>) {
        let network = self.network_of(&reservation.spec.allocation.escrow);
        let connected = match &network {
            Some(network) => {
                let chain = self.payments.client(network).await;
                chain.map(|chain| (network, chain)).map_err(|e| e.message())
            }
            None => Err("there is no PaymentNetwork for this account's money in this cluster".to_owned()),
        };
        let terms = Terms::from_wire(&reservation.spec.allocation.escrow).map_err(|e| e.to_string());
        let reads = match (&connected, &terms) {
            (Ok((network, chain)), Ok(terms)) => {
                self.read_account(reservation, (chain, terms), network).await
            }
            (Err(why), _) | (_, Err(why)) => AccountReads::unknown(why),
        };
        let world = World {
            reservation,
            account: reads.account,
            second: reads.second,
            settled: reads.settled,
            final_reads: reads.final_reads,
            running: self.running(reservation).await,
            allocation_exists: self.allocation_exists(reservation).await,
            grace_seconds: network
                .as_ref()
                .and_then(|n| duration::seconds(&n.spec.outage_grace).ok())
                .unwrap_or(0),
            health: self.health(reservation, now).await,
            room: self.room(reservation).await,
            withdraw: self.withdrawals(reservation, network.as_deref()),
            denylist: self.denylist(),
            connector: &self.connector,
            results_image: &self.args.image,
        };
        (world, connected.ok().map(|(_, chain)| chain))
    }

    /// The account at the newest block, once more where a decision needs two reads, and at the block level that the
    /// network's policy asks for while nothing is provisioned.
    async fn read_account(
        &self,
        reservation: &GpuReservation,
        (chain, terms): (&EvmEscrow, &Terms),
        network: &PaymentNetwork,
    ) -> AccountReads {
        // An absent account is one that ends: it is not known whether it was open before.
        let open_by = 0;
        let wants_second = |account: &_| planner::wants_second(reservation, account);
        let read = self
            .payments
            .account_twice(network, chain, (terms, open_by), wants_second);
        let (account, second) = read.await;
        let mut reads = AccountReads {
            second: second.unwrap_or_else(|| Observed::Unknown("not read".into())),
            settled: None,
            final_reads: Vec::new(),
            account,
        };
        let phase = reservation
            .status
            .as_ref()
            .map_or(AllocationPhase::Requested, |s| s.phase);
        // One failed read is enough: waiting for another would delay a stop that is due.
        if reads.account.known().is_some() && phase.is_unpaid() {
            reads.settled = Some(match payments::level(network.spec.provision_at) {
                BlockLevel::Latest => reads.account.clone(),
                level => self.payments.account_at(chain, terms, level).await,
            });
        }
        if planner::wants_final(reservation, &reads.account) {
            reads.final_reads = self.payments.final_reads(network, chain, terms).await;
        }
        reads
    }

    /// An allocation that is not in the cache is read from the API server: a watch may be behind, and an unpaid
    /// reservation is given up when its allocation is gone.
    async fn allocation_exists(&self, reservation: &GpuReservation) -> Observed<bool> {
        if let Some(why) = self.market_reach.error() {
            return Observed::Unknown(why);
        }
        let spec = &reservation.spec;
        let allocations = &self.caches.allocations;
        let cached = cache::get(
            allocations,
            &spec.allocation_name,
            Some(&spec.allocation_namespace),
        );
        if cached.is_some_and(|a| a.has(reservation)) {
            return Observed::Known(true);
        }
        let api = Api::<GpuAllocation>::namespaced(self.market.clone(), &spec.allocation_namespace);
        // A market that does not answer must not delay a stop.
        match tokio::time::timeout(API_DEADLINE, api.get_metadata_opt(&spec.allocation_name)).await {
            Ok(Ok(found)) => {
                let uid = found.and_then(|found| found.metadata.uid);
                Observed::Known(uid.as_ref() == Some(&spec.allocation_uid))
            }
            Ok(Err(error)) => Observed::Unknown(format!("the allocation can't be read: {error}")),
            Err(_) => Observed::Unknown("the market's API server does not answer".to_owned()),
        }
    }

    /// Room after a pause. What can't be read is left to the scheduler.
    async fn room(&self, reservation: &GpuReservation) -> Room {
        if !wants_room(reservation) {
            return Room::Free;
        }
        let room = self.room_to_resume(reservation).await;
        room.unwrap_or_else(|error| {
            error.log("GpuReservation", &reservation.name_any());
            Room::Free
        })
    }

    /// By the pool as it is now: withdrawals are the provider's own money, and change nothing that the tenant pays for.
    fn withdrawals(
        &self,
        reservation: &GpuReservation,
        network: Option<&PaymentNetwork>,
    ) -> Option<Withdrawals> {
        let pool = cache::get(&self.caches.pools, &reservation.spec.allocation.pool, None)?;
        let decimals = u32::try_from(network?.spec.token.decimals).ok()?;
        Withdrawals::of(pool.spec.withdraw.as_ref()?, decimals)
    }

    /// Addresses that a lease's pods may not reach, by the cluster's nodes as they were a moment ago.
    fn denylist(&self) -> Arc<EgressDenylist> {
        let mut known = self.denylist.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((at, denylist)) if at.elapsed() < DENYLIST_VALID_FOR => denylist.clone(),
            _ => {
                let nodes = self.caches.nodes.state();
                let now = EgressDenylist::of(nodes.iter().map(|n| &**n), &self.args.own_ranges);
                known.insert((Instant::now(), Arc::new(now))).1.clone()
            }
        }
    }
}
