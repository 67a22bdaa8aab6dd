//! What a provider can sell now: pools × nodes → rows of an offer.
//!
//! Free is allocatable, less the requests of every pod that has not ended, less reservations whose pods are not
//! there yet. Capacity belongs to a GPU, never to an advertisement: the same function decides what is offered and
//! what is accepted. [`room`](super::room) decides whether a node is sold at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{Timestamp, civil::Weekday, tz::TimeZone};
use leasehold_crds::{
    GpuPool,
    market::offer::{OfferRow, PaymentIdentity},
    provider::pool::{Day, NotSold, NotSoldReason, SaleHours, UserNamespaces},
    shared::architecture::Architecture,
};

use super::{
    room::{Refusal, room},
    row::{Group, row},
};
use crate::{
    provider::{
        health::claimed_twice,
        user_namespaces::{Candidate, fits, identity, proofs},
    },
    request::{PerGpu, Shape, Version},
};

/// A node with GPUs, as shown by its Node, its GpuNode and its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSeen {
    /// Name of the Node.
    pub name: String,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Whether it is Ready and not cordoned.
    pub schedulable: bool,
    /// Taints that keep pods away, but that of GPUs.
    pub taints: Vec<Taint>,
    /// Architecture, if it is known.
    pub architecture: Option<Architecture>,
    /// A resource of MIG slices that the Node allocates beside `nvidia.com/gpu`.
    pub slice_resource: Option<String>,
    /// What the Node says of time-slicing or MPS, if several containers can get one of its GPUs.
    pub sharing: Option<String>,
    /// What the Node allocates.
    pub allocatable: Shape,
    /// What pods that have not ended request of it.
    pub requested: Shape,
    /// How many more pods its kubelet admits.
    pub pods_free: u64,
    /// What the agent says; `None` without a GpuNode.
    pub gpus: Option<GpusSeen>,
    /// Handlers of its runtime, and whether each has user namespaces (KEP-127:
    /// `status.runtimeHandlers[].features.userNamespaces`). The default handler has an empty name. Empty if the runtime
    /// does not report its handlers.
    pub handlers: BTreeMap<String, bool>,
    /// Its boot and the versions of its software, for a person; `None` if they are not reported.
    pub software: Option<String>,
}

/// A taint that keeps pods away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value; empty without one.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: String,
}

impl std::fmt::Display for Taint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}:{}", self.key, self.value, self.effect)
    }
}

/// How the pods of a pool run, by its RuntimeClass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolRuntime {
    /// Handler; empty for the default of the node.
    pub handler: String,
    /// What each pod takes beside its containers.
    pub overhead: Shape,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
}

/// What the agent says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpusSeen {
    /// Whether the admin sells the node.
    pub sell: bool,
    /// Class to sell it as.
    pub class: String,
    /// Nominal memory of its smallest GPU, or memory of its smallest slice, bytes.
    pub memory: u64,
    /// Lowest compute capability of its GPUs.
    pub compute_capability: Version,
    /// CUDA version of the driver.
    pub cuda: Version,
    /// Version of the driver; empty if it is not known.
    pub driver: String,
    /// Whether every GPU is healthy, every witness agrees, and neither a foreign process nor memory in use without a holder
    /// was seen.
    pub healthy: bool,
    /// Reason why it is not sold.
    pub reason: String,
    /// Why not, for a person.
    pub message: String,
    /// UUIDs by which it claims GPUs.
    pub claims: Vec<String>,
    /// UUIDs of GPUs that the device plugin advertises to several containers at once.
    pub shared: Vec<String>,
    /// UUIDs of what is sold: whole GPUs, or MIG slices if every GPU is in MIG mode and all slices are of one class.
    pub units: Vec<String>,
    /// UUIDs of GPUs in MIG mode that are not sold by the slice.
    pub mig: Vec<String>,
    /// Whether the agent was heard of lately.
    pub alive: bool,
}

impl GpusSeen {
    /// Number of distinct GPUs or slices that are sold.
    #[must_use]
    pub fn distinct(&self) -> u64 {
        self.units.iter().collect::<BTreeSet<_>>().len() as u64
    }
}

/// A reservation that holds room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Name of the reservation.
    pub name: String,
    /// What it takes of each node.
    pub shape: Shape,
    /// Nodes it holds room on; those where its pod already requests it are left out.
    pub nodes: Vec<String>,
}

/// A node with room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeNode {
    /// Name of the Node.
    pub name: String,
    /// What is free of it.
    pub room: Shape,
    /// How many more pods it admits, at least one.
    pub pods_free: u64,
    /// Whether pods of the pool were proven to run in user namespaces on it.
    pub user_namespaces: bool,
    /// What a lease can have with each of its GPUs.
    pub max_per_gpu: PerGpu,
}

/// What a pool can sell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolSupply {
    /// Rows for the offer.
    pub rows: Vec<OfferRow>,
    /// Nodes behind the rows.
    pub free: Vec<FreeNode>,
    /// Nodes of the pool.
    pub nodes: usize,
    /// Nodes that are not sold, with the reason.
    pub not_sold: Vec<NotSold>,
    /// Nodes whose runtime reports user namespaces for pods of the pool, if it permits them, by name.
    pub candidates: Vec<Candidate>,
    /// Whether it is an hour of sale, and the pool is not paused.
    pub selling: bool,
    /// Why it is paused, in the words in which the cluster refused pods.
    pub paused: Option<String>,
    /// What each pod takes beside its containers. `None` if the RuntimeClass of the pool does not exist.
    pub overhead: Option<Shape>,
}

impl PoolSupply {
    /// Sells nothing, because the cluster refuses pods in these words.
    pub fn pause(&mut self, words: &str) {
        self.selling = false;
        self.paused = Some(words.to_owned());
        self.rows.clear();
    }

    /// Takes room of nodes as a reservation does, so that the next one is decided without counting everything again.
    /// The rows stay as they were counted.
    pub fn take(&mut self, nodes: &[String], shape: &Shape) {
        let shape = &shape.plus(&self.overhead.unwrap_or_default());
        for node in self.free.iter_mut().filter(|n| nodes.contains(&n.name)) {
            node.room = node.room.without(shape);
            node.pods_free = node.pods_free.saturating_sub(1);
        }
        self.free.retain(|node| node.room.gpus > 0 && node.pods_free > 0);
    }
}

/// Whether `now` is in the hours of sale.
#[must_use]
pub fn is_open(hours: &[SaleHours], now: Timestamp) -> bool {
    if hours.is_empty() {
        return true;
    }
    let zoned = now.to_zoned(TimeZone::UTC);
    let minute = i32::from(zoned.hour()) * 60 + i32::from(zoned.minute());
    let today = match zoned.weekday() {
        Weekday::Monday => Day::Mon,
        Weekday::Tuesday => Day::Tue,
        Weekday::Wednesday => Day::Wed,
        Weekday::Thursday => Day::Thu,
        Weekday::Friday => Day::Fri,
        Weekday::Saturday => Day::Sat,
        Weekday::Sunday => Day::Sun,
    };
    let minutes = |text: &str| {
        let (h, m) = text.split_once(':')?;
        Some(h.parse::<i32>().ok()? * 60 + m.parse::<i32>().ok()?)
    };
    hours.iter().any(|span| {
        let day = span.days.is_empty() || span.days.contains(&today);
        let within = minutes(&span.from)
            .zip(minutes(&span.to))
            .is_some_and(|(from, to)| (from..to).contains(&minute));
        day && within
    })
}

/// What one pool can sell now. `runtime` is `None` if its RuntimeClass does not exist: the API would refuse its pods.
/// `taken` are nodes that an earlier pool sells already.
#[must_use]
pub fn pool_supply(
    pool: &GpuPool,
    (runtime, payment): (Option<&PoolRuntime>, Option<&PaymentIdentity>),
    nodes: &[NodeSeen],
    holds: &[Hold],
    taken: &mut BTreeSet<String>,
    now: Timestamp,
) -> PoolSupply {
    let mut supply = PoolSupply {
        selling: is_open(&pool.spec.hours, now) && payment.is_some() && runtime.is_some(),
        overhead: runtime.map(|r| r.overhead),
        ..PoolSupply::default()
    };
    let default = PoolRuntime::default();
    let runtime = runtime.unwrap_or(&default);
    let (claimed, proofs) = (claimed_twice(nodes), proofs(pool));
    let mut held: HashMap<&str, Vec<&Shape>> = HashMap::new();
    for hold in holds {
        for node in &hold.nodes {
            held.entry(node).or_default().push(&hold.shape);
        }
    }
    let mut groups: BTreeMap<Group, i64> = BTreeMap::new();
    for node in nodes.iter().filter(|n| {
        pool.spec
            .node_selector
            .iter()
            .all(|(k, v)| n.labels.get(k) == Some(v))
    }) {
        if node.allocatable.gpus == 0 && node.gpus.is_none() {
            continue;
        }
        supply.nodes += 1;
        if !taken.insert(node.name.clone()) {
            let refusal = Refusal::plain(NotSoldReason::SoldByAnotherPool);
            supply.not_sold.push(refusal.of(&node.name));
            continue;
        }
        let sold = room(
            node,
            (pool, runtime),
            held.get(node.name.as_str()),
            claimed.get(node.name.as_str()),
        );
        let exists = supply.overhead.is_some();
        let candidate = candidate(pool, runtime, node, &sold).filter(|_| exists);
        let proof = proofs.get(node.name.as_str());
        let user_namespaces = candidate.as_ref().is_some_and(|c| c.is_proven(proof));
        supply.candidates.extend(candidate);
        match (sold, &node.gpus) {
            (Ok((room, pods_free)), Some(gpus)) => {
                let free = FreeNode {
                    name: node.name.clone(),
                    room,
                    pods_free,
                    user_namespaces,
                    max_per_gpu: max_per_gpu(pool, &node.allocatable),
                };
                *groups.entry(Group::of(node, gpus, &free)).or_default() += 1;
                supply.free.push(free);
            }
            (Ok(_), None) => {}
            (Err(refusal), _) => supply.not_sold.push(refusal.of(&node.name)),
        }
    }
    supply.not_sold.truncate(64);
    if let (true, Some(payment)) = (supply.selling, payment) {
        supply.rows = groups
            .into_iter()
            .map(|(group, nodes_free)| row(pool, payment, group, nodes_free))
            .collect();
    }
    supply
}

/// A node that says that pods of a pool can be in user namespaces on it: the pool permits it, and the handler that they use has
/// them. What a node says is not proven: what adds the GPUs may not work there.
fn candidate(
    pool: &GpuPool,
    runtime: &PoolRuntime,
    node: &NodeSeen,
    sold: &Result<(Shape, u64), Refusal>,
) -> Option<Candidate> {
    let reports = match pool.spec.user_namespaces {
        UserNamespaces::Never => false,
        UserNamespaces::Auto => node.handlers.get(&runtime.handler) == Some(&true),
    };
    let room = sold.as_ref().map_err(ToString::to_string);
    reports.then(|| Candidate {
        node: node.name.clone(),
        identity: identity(node, runtime),
        room: room.and_then(|(room, _)| fits(room)),
    })
}

/// What a lease can have with each GPU: as the pool states, or else the proportion of the node. The proportion is rounded
/// up, so that a lease of all GPUs can have all of the node.
fn max_per_gpu(pool: &GpuPool, allocatable: &Shape) -> PerGpu {
    let gpus = allocatable.gpus.max(1);
    let proportion = PerGpu {
        millicores: allocatable.millicores.div_ceil(gpus),
        memory: allocatable.memory.div_ceil(gpus),
        scratch: allocatable.scratch.div_ceil(gpus),
        storage: u64::MAX,
    };
    let stated = pool.spec.max_per_gpu.as_ref();
    stated
        .and_then(|stated| PerGpu::from_wire(stated, &proportion).ok())
        .unwrap_or(proportion)
}

/// Nodes with room for `count` of `shape`, the fullest first so that large holes stay whole.
#[must_use]
pub fn pick<'a>(free: &'a [FreeNode], shape: &Shape, count: usize) -> Option<Vec<&'a FreeNode>> {
    let fits = |node: &&FreeNode| shape.fits(&node.room);
    let mut fits: Vec<_> = free.iter().filter(fits).collect();
    fits.sort_by(|a, b| (a.room.gpus, &a.name).cmp(&(b.room.gpus, &b.name)));
    fits.truncate(count);
    (fits.len() == count).then_some(fits)
}

#[cfg(test)]
mod tests;
