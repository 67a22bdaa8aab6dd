//! One provider: its cluster, and the processes of its operator.

use std::{collections::BTreeMap, sync::Arc};

use kube::ResourceExt as _;
use leasehold_crds::{
    FINALIZER_PROVIDER, GpuAllocation, GpuPool, GpuReservation,
    provider::pool::{GpuPoolSpec, Withdraw},
};
use leasehold_planner::{
    endpoints::Endpoints,
    escrow::{Address, Hash, Terms, keccak},
    market::allocation::acceptance::is_accepted,
    orphans::Suspects,
    ports::AcceptanceMessage,
    provider::{allocation::accept::Identity, health::Answers},
};

use crate::{
    Sim,
    api::{Api, ApiError, Cache},
    cluster::{Cluster, Gpu, Node, Pod, Program},
    faults::Faults,
    random::Random,
    reconcile::{ProcessId, WorkQueue},
    sim::{Event, address_of},
};

mod accept;
mod health;
mod observe;
mod offer;
mod orphans;
mod reservation;

use accept::AllocationReconcile;
use reservation::ReservationReconcile;

/// One provider: its cluster and its processes.
pub(crate) struct Site {
    pub(crate) name: String,
    /// Its namespace on the market.
    pub(crate) namespace: String,
    pub(crate) cluster: Cluster,
    pub(crate) reservations: Api<GpuReservation>,
    pub(crate) processes: Vec<ProviderProcess>,
    pub(crate) identity: Identity,
    pub(crate) pool: GpuPool,
    pub(crate) grace_seconds: u64,
    /// Number of blocks by which the finality that its network requires is behind the newest block.
    pub(crate) finality: usize,
}

/// One process of a provider's operator.
pub(crate) struct ProviderProcess {
    pub(crate) up: bool,
    pub(crate) restarts: u64,
    pub(crate) offset_ms: i64,
    /// The reservation controller's own cache.
    reservations: Cache<GpuReservation>,
    /// The shared store.
    pub(crate) reservation_store: Cache<GpuReservation>,
    /// The allocation controller's own cache.
    pub(crate) allocations: Cache<GpuAllocation>,
    pub(crate) allocation_store: Cache<GpuAllocation>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) namespaces: BTreeMap<String, bool>,
    /// The nodes with their GPUs, as the agents report them.
    pub(crate) nodes: Vec<Node>,
    pub(crate) holders: BTreeMap<String, Vec<String>>,
    pub(crate) heard_ms: BTreeMap<String, u64>,
    pub(crate) agents_seen: u64,
    /// Since when its own API server has answered reads about a silent node.
    pub(crate) answers: Answers,
    pub(crate) endpoints: Endpoints,
    /// Orphans found by the last search.
    pub(crate) suspects: Suspects<String>,
    /// Why the market cannot be read.
    pub(crate) market_error: Option<String>,
    /// When each workload was applied, by this process's clock.
    applied: BTreeMap<String, i64>,
    /// Whether a reservation is being made: only one at a time, as each uses up capacity.
    pub(crate) reserving: bool,
    /// Bitmap of caches to which watch events are on their way.
    pub(crate) syncing: u8,
    pub(crate) queue: WorkQueue<ProviderReconcile>,
}

/// A reconcile that has gathered and decided, and is now writing.
pub(crate) enum ProviderReconcile {
    Reservation(Box<ReservationReconcile>),
    Allocation(Box<AllocationReconcile>),
}

impl Site {
    pub(crate) fn new(n: usize, faults: &Faults, random: &mut Random) -> Self {
        let name = format!("p{n}");
        let nodes = (0..random.between(2, 4))
            .map(|i| Node {
                name: format!("{name}-node{i}"),
                gpus: (0..random.between(1, 3) * 2)
                    .map(|g| Gpu {
                        uuid: format!("GPU-{name}-{i}-{g}"),
                        faulty_since: None,
                    })
                    .collect(),
                dead_since: None,
                not_ready_since: None,
                cordoned_until: 0,
                plugin_down_until: 0,
                revived_ms: 0,
            })
            .collect();
        let price = format!("{}.{}", random.between(1, 2), random.between(10, 99));
        let spec = GpuPoolSpec {
            price_per_gpu_hour: price,
            network: "net".into(),
            max_duration: "2h".into(),
            max_pause: "1h".into(),
            // Every other provider withdraws its earnings before the end.
            withdraw: n.is_multiple_of(2).then(|| Withdraw {
                every: "40s".into(),
                above: "0.01".into(),
            }),
            ..GpuPoolSpec::default()
        };
        Self {
            namespace: format!("provider-{name}"),
            cluster: Cluster::of(nodes),
            reservations: Api::default(),
            processes: (0..2).map(|_| ProviderProcess::new(faults, random)).collect(),
            identity: Identity {
                market: "market".into(),
                payee: address_of(&format!("payee {name}")),
                controller: address_of(&format!("controller {name}")),
            },
            pool: GpuPool::new(&format!("pool-{name}"), spec),
            grace_seconds: random.between(3, 9) * 10,
            finality: usize::try_from(random.below(2) * 2).unwrap_or(0),
            name,
        }
    }
}

impl ProviderProcess {
    fn new(faults: &Faults, random: &mut Random) -> Self {
        Self {
            up: false,
            restarts: 0,
            offset_ms: faults.clock_offset(random),
            reservations: Cache::default(),
            reservation_store: Cache::default(),
            allocations: Cache::default(),
            allocation_store: Cache::default(),
            pods: Vec::new(),
            namespaces: BTreeMap::new(),
            nodes: Vec::new(),
            holders: BTreeMap::new(),
            heard_ms: BTreeMap::new(),
            agents_seen: u64::MAX,
            answers: Answers::default(),
            endpoints: faults.endpoints(),
            suspects: Suspects::default(),
            market_error: None,
            applied: BTreeMap::new(),
            reserving: false,
            syncing: 0,
            queue: WorkQueue::default(),
        }
    }
}

/// Stands in for the controller's signature: it depends on the controller's address.
pub(crate) fn sign(by: Address, message: &AcceptanceMessage) -> String {
    let hash = |n: u8| {
        keccak(&[
            &[n],
            &by.0,
            &message.escrow_id.0,
            &message.leg.to_be_bytes(),
            &message.rate.to_be_bytes(),
            &message.not_after.to_be_bytes(),
            &message.deadline.to_be_bytes(),
        ])
    };
    let hex = |h: Hash| data_encoding::HEXLOWER.encode(&h.0);
    format!("0x{}{}00", hex(hash(1)), hex(hash(2)))
}

/// Whether the acceptance in an allocation's status is signed by the leg's controller and matches the request.
pub(crate) fn is_signed(allocation: &GpuAllocation) -> bool {
    is_accepted(allocation, |message, signature| {
        let terms = Terms::from_wire(&allocation.spec.escrow).ok()?;
        let leg = terms.legs.get(usize::from(message.leg))?;
        let given = format!("0x{}", data_encoding::HEXLOWER.encode(signature));
        (sign(leg.controller, message) == given).then_some(leg.controller)
    })
}

impl Sim {
    /// Writes to the provider's own API server.
    pub(crate) fn own_write<T>(
        &mut self,
        s: usize,
        write: impl FnOnce(&mut Self) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if self.faults.sites_down.contains(&s) {
            return Err(ApiError::Unreachable);
        }
        let written = write(self);
        let lost = self.faults.lost_writes_per_mille;
        if self.random.per_mille(lost) {
            return Err(ApiError::Unreachable);
        }
        written
    }

    pub(crate) fn start_provider(&mut self, s: usize, p: usize) {
        let who = ProcessId::Provider(s, p);
        if self.sites[s].processes[p].up {
            return;
        }
        if self.faults.sites_down.contains(&s) {
            self.at(2_000, Event::Start(who));
            return;
        }
        self.note(|| format!("{who:?} starts"));
        let (offset_ms, restarts) = {
            let old = &self.sites[s].processes[p];
            (old.offset_ms, old.restarts + 1)
        };
        let mut process = ProviderProcess::new(&self.faults, &mut self.random);
        (process.up, process.restarts, process.offset_ms) = (true, restarts, offset_ms);
        self.sites[s].processes[p] = process;
        for cache in 0..7 {
            // Start-up waits for every cache except the one of the market's allocations.
            if cache != 3 {
                self.follow_provider(s, p, cache, usize::MAX);
            }
        }
        self.at(0, Event::Supply(who, restarts));
        self.at(0, Event::Networks(who, restarts));
        let first_orphans = self.random.between(1_000, 30_000);
        self.at(first_orphans, Event::Orphans(who, restarts));
    }

    /// Bitmap of caches that are not up to date.
    pub(crate) fn stale_at_provider(&self, s: usize, p: usize) -> u8 {
        let site = &self.sites[s];
        let process = &site.processes[p];
        let market_up = self.faults.market_up && !self.faults.cut_from_market.contains(&s);
        [
            process.reservations.is_fresh(&site.reservations),
            process.reservation_store.is_fresh(&site.reservations),
            process.allocations.is_fresh(&self.allocations),
            process.allocation_store.is_fresh(&self.allocations)
                && process.market_error.is_none() == market_up,
            process.pods == site.cluster.pods,
            process.namespaces == site.cluster.namespaces,
            process.agents_seen == site.cluster.changes,
        ]
        .iter()
        .enumerate()
        .fold(0, |map, (cache, fresh)| map | u8::from(!fresh) << cache)
    }

    /// Executes the next write of a reconcile.
    pub(crate) fn resume_provider(&mut self, s: usize, p: usize, id: u64) {
        match self.sites[s].processes[p].queue.next(id) {
            Some((task, ProviderReconcile::Reservation(run))) => self.resume_reservation(s, p, id, task, run),
            Some((task, ProviderReconcile::Allocation(run))) => self.resume_allocation(s, p, id, task, run),
            None => {}
        }
    }
}

/// The finalizer of a new reservation.
pub(crate) fn held() -> Vec<String> {
    vec![FINALIZER_PROVIDER.into()]
}

/// Resource version of an object.
pub(crate) fn version(of: Option<&Arc<GpuReservation>>) -> Option<String> {
    of.and_then(|r| r.resource_version())
}

/// A program whose container never runs.
pub(crate) const BROKEN: Program = Program {
    starts_after_ms: None,
    ready_after_ms: None,
    crashes_in: None,
    stays_evicted: false,
    ends: None,
};
