//! The health of GPUs as reported by agents, for the leases that hold them and for the provider that sells them:
//! whether a reservation's GPUs are at fault and since when, and which nodes claim the same GPU. `node_lost` decides
//! on nodes without reports.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use leasehold_crds::{
    provider::{
        node::{DeviceHealth, GpuDevice, GpuNodeStatus, NodeCondition},
        reservation::ReservationReason,
    },
    shared::conditions::{find, is_true},
};

use self::node_lost::Lost;
use crate::{observed::Observed, provider::offer::supply::NodeSeen};

mod node_lost;

pub use self::node_lost::{Answers, KubeletReport, LIVENESS_TIMEOUT_SECONDS, is_live};

/// A node of a reservation, as reported by its agent and by the cluster.
#[derive(Clone, Debug)]
pub struct NodeReport<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// When its agent was heard of last (`renewTime` of its Lease).
    pub heard_at: Option<Timestamp>,
    /// What the agent said last; `None` when it never said anything.
    pub status: Option<&'a GpuNodeStatus>,
    /// What the cluster says of its kubelet.
    pub kubelet: KubeletReport,
}

/// A fault of a reservation's GPUs or nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of thing it is.
    pub kind: FaultKind,
    /// For a person.
    pub message: String,
    /// Since when, Unix time in seconds.
    pub since: u64,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// One of its GPUs.
    Gpu,
    /// One of its nodes, whole.
    Node,
}

impl FaultKind {
    /// Reason of the condition `GpusHealthy`.
    #[must_use]
    pub const fn reason(self) -> ReservationReason {
        match self {
            Self::Gpu => ReservationReason::GpuFault,
            Self::Node => ReservationReason::NodeLost,
        }
    }
}

/// The health of a reservation's GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is wrong; `Known(None)` when all is well.
    pub fault: Observed<Option<Fault>>,
    /// When missing reports become a fault unless a node reports again.
    pub due: Option<Timestamp>,
}

/// A slice of a GPU is named by its own UUID, which starts so; the GPU it is a part of is not told.
const SLICE: &str = "MIG-";

/// The health of the GPUs that a reservation holds. `answering_since` is the time since which the API server that
/// serves the reports has answered.
#[must_use]
pub fn judge(
    held: &[String],
    nodes: &[NodeReport<'_>],
    answering_since: Option<Timestamp>,
    now: Timestamp,
) -> Health {
    let (mut lost, mut due) = (None::<Fault>, None);
    for word in nodes {
        match word.lost(answering_since, now) {
            Lost::No => {}
            Lost::At(at) => due = Some(due.map_or(at, |d: Timestamp| d.min(at))),
            Lost::Since(since) => {
                let fault = Fault {
                    kind: FaultKind::Node,
                    message: format!(
                        "neither the kubelet nor the agent of node {} has been heard of since {since:.0}",
                        word.node
                    ),
                    since: unix(since),
                };
                // The first to fall is told, and from then on seconds go back.
                lost = Some(lost.filter(|f| f.since <= fault.since).unwrap_or(fault));
            }
        }
    }
    let fault = match (gpu_fault(held, nodes, now), lost) {
        (Observed::Known(Some(gpu)), Some(lost)) if lost.since < gpu.since => Observed::Known(Some(lost)),
        (Observed::Known(Some(gpu)), _) => Observed::Known(Some(gpu)),
        (_, Some(lost)) => Observed::Known(Some(lost)),
        (other, None) => other,
    };
    Health { fault, due }
}

/// The fault of the GPUs that a reservation holds. A reported fault remains when the agent stops reporting; reported
/// health does not.
fn gpu_fault(held: &[String], nodes: &[NodeReport<'_>], now: Timestamp) -> Observed<Option<Fault>> {
    let broken = |message: String, since: u64| {
        Observed::Known(Some(Fault {
            kind: FaultKind::Gpu,
            message,
            since,
        }))
    };
    let mut unknown = None;
    for uuid in held {
        let mut named = false;
        for word in nodes {
            let devices = word.status.iter().flat_map(|s| &s.devices);
            for device in devices.filter(|d| is_of(uuid, d)) {
                named = true;
                match device.health {
                    DeviceHealth::Healthy if word.alive(now) => {}
                    DeviceHealth::Healthy => {
                        unknown.get_or_insert(format!("the agent of node {} is silent", word.node));
                    }
                    DeviceHealth::Unknown => {
                        let why = format!("{}: GPU {} {}", word.node, device.index, device.message);
                        unknown.get_or_insert(why);
                    }
                    DeviceHealth::Lost
                    | DeviceHealth::FatalXid
                    | DeviceHealth::EccUncorrectable
                    | DeviceHealth::Duplicate
                    | DeviceHealth::WitnessesDisagree
                    | DeviceHealth::Recovering => {
                        let what = format!("{}: GPU {}: {}", word.node, device.index, device.message);
                        return broken(what, since(device, now));
                    }
                }
            }
        }
        if !named {
            match nodes.iter().find(|word| !knows_its_gpus(word, now)) {
                None => return broken(format!("GPU {uuid} is gone"), unix(now)),
                Some(word) => {
                    unknown.get_or_insert(format!("node {} does not say which GPUs it has", word.node));
                }
            }
        }
    }
    unknown.map_or(Observed::Known(None), Observed::Unknown)
}

/// Whether the device is the one held. A slice counts for any GPU that has slices: which one it is of is not told.
fn is_of(held: &str, device: &GpuDevice) -> bool {
    device.uuid == held || (held.starts_with(SLICE) && device.mig_enabled == Some(true))
}

/// Only the whole list of a living agent proves that a GPU is not there.
fn knows_its_gpus(word: &NodeReport<'_>, now: Timestamp) -> bool {
    let told = |s: &&GpuNodeStatus| {
        !s.devices.is_empty() && s.devices.iter().all(|d| d.health != DeviceHealth::Unknown)
    };
    word.alive(now) && word.status.as_ref().is_some_and(told)
}

fn since(device: &GpuDevice, now: Timestamp) -> u64 {
    unix(device.since.parse().unwrap_or(now))
}

fn unix(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or_default()
}

/// Why a node is not fit to be sold by what its agent says: in one word, and for a person. Health and the witnesses'
/// word must be there; whose processes compute on the GPUs can't be known everywhere, so that only a stranger who was
/// seen there counts.
#[must_use]
pub fn unfit(status: &GpuNodeStatus) -> Option<(String, String)> {
    let conditions = &status.conditions;
    if let Some(type_) = [NodeCondition::Healthy, NodeCondition::WitnessesAgree]
        .into_iter()
        .find(|type_| !is_true(conditions, type_))
    {
        let said = find(conditions, type_).map(|c| (c.reason.clone(), c.message.clone()));
        return Some(said.unwrap_or_default());
    }
    if status.devices.is_empty() {
        return Some(Default::default());
    }
    find(conditions, NodeCondition::NoForeignProcesses)
        .filter(|c| c.status == "False")
        .map(|c| (c.reason.clone(), c.message.clone()))
}

/// UUIDs by which a node claims GPUs. One that is lost is no claim: the card may sit elsewhere by now.
#[must_use]
pub fn claims(status: &GpuNodeStatus) -> Vec<String> {
    let there = status.devices.iter().filter(|d| d.health != DeviceHealth::Lost);
    there
        .map(|d| d.uuid.clone())
        .filter(|uuid| !uuid.is_empty())
        .collect()
}

/// Nodes that claim a GPU which another claims too, each with the reason for a person.
///
/// Nobody can tell from here which of them lies, so none is sold. A claim counts while its agent lives and its node is
/// for sale: who takes the liar out of sale (`spec.sell: false`) has the honest one back at once, and a machine that is
/// switched off does not keep its cards from being sold where they sit now.
#[must_use]
pub fn claimed_twice(nodes: &[NodeSeen]) -> BTreeMap<&str, String> {
    let mut claimed: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    for node in nodes {
        let claims = node
            .gpus
            .iter()
            .filter(|g| g.sell && g.alive)
            .flat_map(|g| &g.claims);
        for uuid in claims {
            claimed.entry(uuid).or_default().insert(&node.name);
        }
    }
    let mut twice: Vec<_> = claimed.into_iter().filter(|(_, by)| by.len() > 1).collect();
    twice.sort();
    let mut told = BTreeMap::new();
    for (uuid, by) in twice {
        for node in &by {
            let others: Vec<&str> = by.iter().filter(|other| *other != node).copied().collect();
            told.entry(*node).or_insert_with(|| {
                format!(
                    "{uuid} is claimed by {} too: find out which of them has it, and set spec.sell: false on the GpuNode \
                     of the other",
                    others.join(", ")
                )
            });
        }
    }
    told
}

#[cfg(test)]
mod tests;
