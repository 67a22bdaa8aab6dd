//! What a provider can sell now: pools × nodes → rows of an offer.
//!
//! Free is allocatable, less the requests of every pod that has not ended, less reservations whose pods are not
//! there yet. Capacity belongs to a GPU, never to an advertisement: the same function decides what is offered and
//! what is accepted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{Timestamp, civil::Weekday, tz::TimeZone};
use leasehold_crds::{
    GpuPool,
    market::offer::{OfferRow, PaymentIdentity},
    provider::pool::{Day, NotSold, SaleHours},
    shared::{duration, quantity},
};

use crate::{
    provider::{health::claimed_twice, workload::results},
    request::{Shape, Version},
};

/// A node with GPUs, as shown by its Node, its GpuNode and its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// Name of the Node.
    pub name: String,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Whether pods may be scheduled to it: Ready, not cordoned, no taint that our pods don't tolerate.
    pub schedulable: bool,
    /// What the Node allocates.
    pub allocatable: Shape,
    /// What pods that have not ended request of it.
    pub requested: Shape,
    /// What the agent says; `None` without a GpuNode.
    pub gpus: Option<GpusSeen>,
    /// Whether its runtime has user namespaces (KEP-127: `status.runtimeHandlers[].features.userNamespaces`).
    pub user_namespaces: bool,
}

/// What the agent says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpusSeen {
    /// Whether the admin sells the node.
    pub sell: bool,
    /// Class to sell it as.
    pub class: String,
    /// Nominal memory of its smallest GPU, bytes.
    pub memory: u64,
    /// Lowest compute capability of its GPUs.
    pub compute_capability: Version,
    /// CUDA version of the driver.
    pub cuda: Version,
    /// Whether every GPU is healthy, every witness agrees, and nobody computes on a GPU that is not his.
    pub healthy: bool,
    /// Reason why it is not sold.
    pub reason: String,
    /// Why not, for a person.
    pub message: String,
    /// UUIDs by which it claims GPUs.
    pub claims: Vec<String>,
    /// Whether the agent was heard of lately.
    pub alive: bool,
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
    /// Whether its runtime has user namespaces.
    pub user_namespaces: bool,
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
    /// Whether it is an hour of sale.
    pub selling: bool,
}

impl PoolSupply {
    /// Takes room of nodes as a reservation does, so that the next one is decided without counting everything again.
    /// The rows stay as they were counted.
    pub fn take(&mut self, nodes: &[String], shape: &Shape) {
        for node in self.free.iter_mut().filter(|n| nodes.contains(&n.name)) {
            node.room = node.room.without(shape);
        }
        self.free.retain(|node| node.room.gpus > 0);
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

/// Why a node is not sold: a reason, and a message where there is something to report.
type Refusal = (String, String);

/// Bounds of the schema.
const REASON_MAX: usize = 64;
const MESSAGE_MAX: usize = 512;

/// Free room of a node, or why it is not sold. `claimed` says whether another node claims one of its GPUs.
fn room(
    node: &NodeSeen,
    pool: &GpuPool,
    held: Option<&Vec<&Shape>>,
    claimed: Option<&String>,
) -> Result<Shape, Refusal> {
    let plainly = |reason: &str| Err((reason.to_owned(), String::new()));
    let Some(gpus) = &node.gpus else {
        return plainly("NoAgent");
    };
    if !gpus.sell {
        return plainly("NotForSale");
    }
    if !gpus.alive {
        return plainly("AgentSilent");
    }
    if !gpus.healthy {
        let reason = if gpus.reason.is_empty() {
            "Unhealthy"
        } else {
            &gpus.reason
        };
        return Err((reason.to_owned(), gpus.message.clone()));
    }
    if let Some(by) = claimed {
        return Err(("DuplicateUuid".to_owned(), by.clone()));
    }
    if !node.schedulable {
        return plainly("NotSchedulable");
    }
    if pool.spec.class.as_ref().is_some_and(|class| *class != gpus.class) {
        return plainly("OtherClass");
    }
    let mut free = node.allocatable.without(&node.requested);
    for shape in held.into_iter().flatten() {
        free = free.without(shape);
    }
    if free.gpus == 0 {
        plainly("NoGpuFree")
    } else {
        Ok(free)
    }
}

fn not_sold(node: &str, (reason, message): Refusal) -> NotSold {
    NotSold {
        node: node.to_owned(),
        reason: reason.chars().take(REASON_MAX).collect(),
        message: message.chars().take(MESSAGE_MAX).collect(),
    }
}

/// Nodes with equal values of class, free capacity, GPU memory, compute capability, CUDA version and user namespaces
/// are offered together.
type Group = (String, Shape, u64, Version, Version, bool);

/// What one pool can sell now. `taken` are nodes that an earlier pool sells already.
#[must_use]
pub fn pool_supply(
    pool: &GpuPool,
    payment: Option<&PaymentIdentity>,
    nodes: &[NodeSeen],
    holds: &[Hold],
    taken: &mut BTreeSet<String>,
    now: Timestamp,
) -> PoolSupply {
    let mut supply = PoolSupply {
        selling: is_open(&pool.spec.hours, now) && payment.is_some(),
        ..PoolSupply::default()
    };
    let claimed = claimed_twice(nodes);
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
            let refusal = ("SoldByAnotherPool".to_owned(), String::new());
            supply.not_sold.push(not_sold(&node.name, refusal));
            continue;
        }
        match (
            room(
                node,
                pool,
                held.get(node.name.as_str()),
                claimed.get(node.name.as_str()),
            ),
            &node.gpus,
        ) {
            (Ok(free), Some(gpus)) => {
                supply.free.push(FreeNode {
                    name: node.name.clone(),
                    room: free,
                    user_namespaces: node.user_namespaces,
                });
                let key = (
                    gpus.class.clone(),
                    free,
                    gpus.memory,
                    gpus.compute_capability,
                    gpus.cuda,
                    node.user_namespaces,
                );
                *groups.entry(key).or_default() += 1;
            }
            (Ok(_), None) => {}
            (Err(refusal), _) => supply.not_sold.push(not_sold(&node.name, refusal)),
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

/// The row of an offer for a group of equal nodes.
fn row(pool: &GpuPool, payment: &PaymentIdentity, group: Group, nodes_free: i64) -> OfferRow {
    let (class, free, memory, compute_capability, cuda, root_allowed) = group;
    OfferRow {
        pool: pool.metadata.name.clone().unwrap_or_default(),
        class,
        nodes_free,
        gpus: i64::try_from(free.gpus).unwrap_or_default(),
        cpu: quantity::millicores_text(free.millicores),
        memory: quantity::bytes_text(free.memory),
        ephemeral_storage: quantity::bytes_text(free.scratch),
        storage: pool.spec.storage.as_ref().map(|s| s.max_size.clone()),
        gpu_memory: quantity::bytes_text(memory),
        compute_capability: compute_capability.to_string(),
        cuda: cuda.to_string(),
        price_per_gpu_hour: pool.spec.price_per_gpu_hour.clone(),
        payment: payment.clone(),
        max_duration: pool.spec.max_duration.clone(),
        max_pause: pool.spec.max_pause.clone(),
        max_keep_results_for: duration::text(results::longest(&pool.spec)),
        root_allowed,
    }
}

/// Nodes with room for `count` of `shape`, the fullest first so that large holes stay whole.
#[must_use]
pub fn pick<'a>(free: &'a [FreeNode], shape: &Shape, count: usize) -> Option<Vec<&'a FreeNode>> {
    let mut fits: Vec<_> = free.iter().filter(|node| shape.fits(&node.room)).collect();
    fits.sort_by(|a, b| (a.room.gpus, &a.name).cmp(&(b.room.gpus, &b.name)));
    fits.truncate(count);
    (fits.len() == count).then_some(fits)
}

#[cfg(test)]
mod tests {
    use leasehold_crds::provider::pool::GpuPoolSpec;
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, gpus: u64, requested: u64) -> NodeSeen {
        let shape = |gpus| Shape {
            gpus,
            millicores: gpus * 8000,
            memory: gpus << 35,
            scratch: 0,
        };
        NodeSeen {
            name: name.into(),
            labels: BTreeMap::new(),
            schedulable: true,
            allocatable: shape(gpus),
            requested: shape(requested),
            gpus: Some(GpusSeen {
                sell: true,
                class: "t4-16g".into(),
                memory: 16_000_000_000,
                compute_capability: Version(7, 5),
                cuda: Version(12, 4),
                healthy: true,
                reason: String::new(),
                message: String::new(),
                claims: (0..gpus).map(|i| format!("GPU-{name}-{i}")).collect(),
                alive: true,
            }),
            user_namespaces: true,
        }
    }

    fn pool() -> GpuPool {
        GpuPool::new(
            "p",
            GpuPoolSpec {
                price_per_gpu_hour: "1".into(),
                max_duration: "1h".into(),
                max_pause: "0s".into(),
                ..Default::default()
            },
        )
    }

    fn supply(nodes: &[NodeSeen], holds: &[Hold]) -> PoolSupply {
        pool_supply(
            &pool(),
            Some(&PaymentIdentity::default()),
            nodes,
            holds,
            &mut BTreeSet::new(),
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn nodes_are_left_out_with_a_reason() {
        let mut sick = node("sick", 4, 0);
        sick.gpus.as_mut().unwrap().healthy = false;
        let mut lost = node("lost", 4, 0);
        *lost.gpus.as_mut().unwrap() = GpusSeen {
            healthy: false,
            reason: "GpuLost".into(),
            message: "GPU 0: gone".into(),
            ..lost.gpus.clone().unwrap()
        };
        let mut silent = node("silent", 4, 0);
        silent.gpus.as_mut().unwrap().alive = false;
        let supply = supply(&[node("a", 4, 0), node("b", 4, 4), sick, lost, silent], &[]);
        let reasons: Vec<_> = supply.not_sold.iter().map(|n| n.reason.as_str()).collect();
        assert_eq!(reasons, ["NoGpuFree", "Unhealthy", "GpuLost", "AgentSilent"]);
        assert_eq!(supply.not_sold[2].message, "GPU 0: gone");
        assert_eq!(supply.rows.len(), 1);
        assert_eq!(supply.rows[0].gpus, 4);
    }

    #[test]
    fn neither_of_two_nodes_that_claim_one_gpu_is_sold() {
        let mut liar = node("liar", 2, 0);
        liar.gpus.as_mut().unwrap().claims[1] = "GPU-honest-3".into();
        let supply = supply(&[node("honest", 4, 0), liar, node("other", 1, 0)], &[]);
        let unsold: Vec<_> = supply
            .not_sold
            .iter()
            .map(|n| (n.node.as_str(), n.reason.as_str()))
            .collect();
        assert_eq!(unsold, [("honest", "DuplicateUuid"), ("liar", "DuplicateUuid")]);
        assert!(
            supply.not_sold[0]
                .message
                .starts_with("GPU-honest-3 is claimed by liar too"),
            "{}",
            supply.not_sold[0].message
        );
        assert_eq!(supply.free.len(), 1);
    }

    #[test]
    fn hours_of_sale() {
        let hours = [SaleHours {
            days: vec![Day::Mon],
            from: "08:00".into(),
            to: "18:00".into(),
        }];
        assert!(is_open(&hours, "2026-11-23T08:00:00Z".parse().unwrap()));
        assert!(!is_open(&hours, "2026-11-23T18:00:00Z".parse().unwrap()));
        assert!(!is_open(&hours, "2026-11-22T09:00:00Z".parse().unwrap()));
    }

    proptest! {
        /// However reservations follow on each other, no GPU is held twice, and to take what is reserved off what was
        /// counted before comes to the same as to count anew.
        #[test]
        fn no_gpu_twice(sizes in prop::collection::vec(0u64..9, 1..6), requests in prop::collection::vec((1u64..9, 1usize..4), 0..20)) {
            let nodes: Vec<_> = sizes.iter().enumerate().map(|(i, n)| node(&format!("n{i}"), *n, 0)).collect();
            let mut holds: Vec<Hold> = vec![];
            let mut counted = supply(&nodes, &holds);
            for (i, (gpus, count)) in requests.into_iter().enumerate() {
                let shape = Shape { gpus, millicores: gpus * 8000, memory: gpus << 35, scratch: 0 };
                if let Some(picked) = pick(&supply(&nodes, &holds).free, &shape, count) {
                    let picked: BTreeSet<_> = picked.into_iter().map(|n| n.name.clone()).collect();
                    prop_assert_eq!(picked.len(), count);
                    let nodes: Vec<_> = picked.into_iter().collect();
                    counted.take(&nodes, &shape);
                    holds.push(Hold { name: i.to_string(), shape, nodes });
                }
                prop_assert_eq!(&counted.free, &supply(&nodes, &holds).free);
                for n in &nodes {
                    let held: u64 = holds.iter().filter(|h| h.nodes.contains(&n.name)).map(|h| h.shape.gpus).sum();
                    prop_assert!(held <= n.allocatable.gpus);
                }
            }
        }
    }
}
