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

/// Prefix of the UUID of a slice of a GPU.
const SLICE: &str = "MIG-";

/// The health of the GPUs that a reservation holds. `reachable_since` is the time since which the API server that
/// serves the reports has answered.
#[must_use]
pub fn assess(
    held: &[String],
    nodes: &[NodeReport<'_>],
    reachable_since: Option<Timestamp>,
    now: Timestamp,
) -> Health {
    let (mut lost, mut due) = (None::<Fault>, None);
    for report in nodes {
        match report.lost(reachable_since, now) {
            Lost::No => {}
            Lost::At(at) => due = Some(due.map_or(at, |d: Timestamp| d.min(at))),
            Lost::Since(since) => {
                let fault = Fault {
                    kind: FaultKind::Node,
                    message: format!(
                        "neither the kubelet nor the agent of node {} has been heard of since {since:.0}",
                        report.node
                    ),
                    since: unix(since),
                };
                // The node that was lost first is reported; seconds are credited from that time on.
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
        for report in nodes {
            let devices = report.status.iter().flat_map(|s| &s.devices);
            for device in devices.filter(|d| is_of(uuid, d)) {
                named = true;
                match device.health {
                    DeviceHealth::Healthy if report.alive(now) => {}
                    DeviceHealth::Healthy => {
                        unknown.get_or_insert(format!("the agent of node {} is silent", report.node));
                    }
                    DeviceHealth::Unknown => {
                        let why = format!("{}: GPU {} {}", report.node, device.index, device.message);
                        unknown.get_or_insert(why);
                    }
                    DeviceHealth::Lost
                    | DeviceHealth::FatalXid
                    | DeviceHealth::EccUncorrectable
                    | DeviceHealth::Duplicate
                    | DeviceHealth::WitnessesDisagree
                    | DeviceHealth::Recovering => {
                        let what = format!("{}: GPU {}: {}", report.node, device.index, device.message);
                        return broken(what, since(device, now));
                    }
                }
            }
        }
        if !named {
            match nodes.iter().find(|report| !knows_its_gpus(report, now)) {
                None => return broken(format!("GPU {uuid} is gone"), unix(now)),
                Some(report) => {
                    unknown.get_or_insert(format!("node {} does not say which GPUs it has", report.node));
                }
            }
        }
    }
    unknown.map_or(Observed::Known(None), Observed::Unknown)
}

/// Whether the device is the one held, or a slice of it. If the slices of a GPU are unknown, any slice may be of it.
fn is_of(held: &str, device: &GpuDevice) -> bool {
    let is_slice = || match device.slices.as_slice() {
        [] => device.mig_enabled == Some(true),
        slices => slices.iter().any(|slice| slice.uuid == held),
    };
    device.uuid == held || (held.starts_with(SLICE) && is_slice())
}

/// Only a complete list from an agent that reports proves that a GPU is missing.
fn knows_its_gpus(report: &NodeReport<'_>, now: Timestamp) -> bool {
    let is_complete = |s: &&GpuNodeStatus| {
        !s.devices.is_empty() && s.devices.iter().all(|d| d.health != DeviceHealth::Unknown)
    };
    report.alive(now) && report.status.as_ref().is_some_and(is_complete)
}

fn since(device: &GpuDevice, now: Timestamp) -> u64 {
    unix(device.since.parse().unwrap_or(now))
}

fn unix(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or_default()
}

/// Why a node cannot be sold according to its agent: a reason and a message. Its health and the agreement of the
/// witnesses must be reported. The owners of the processes and the holders of the GPUs are not known on every node, so that
/// only a foreign process, or memory in use without a holder, that was seen counts.
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
    [NodeCondition::NoForeignProcesses, NodeCondition::UnheldMemoryFree]
        .into_iter()
        .filter_map(|type_| find(conditions, type_))
        .find(|c| c.status == "False")
        .map(|c| (c.reason.clone(), c.message.clone()))
}

/// UUIDs of the GPUs that a node reports. A lost GPU does not count: the card may be in another node now.
#[must_use]
pub fn claims(status: &GpuNodeStatus) -> Vec<String> {
    let there = status.devices.iter().filter(|d| d.health != DeviceHealth::Lost);
    there
        .map(|d| d.uuid.clone())
        .filter(|uuid| !uuid.is_empty())
        .collect()
}

/// Nodes that report a GPU that another node reports too, each with a message.
///
/// Which of the reports is false cannot be known here, so that neither node is sold. A report counts while its agent is
/// live and its node is for sale: `spec.sell: false` on the node of the false report restores the other one at once,
/// and a node that is switched off does not prevent the sale of its cards in another node.
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
    let mut reasons = BTreeMap::new();
    for (uuid, by) in twice {
        for node in &by {
            let others: Vec<&str> = by.iter().filter(|other| *other != node).copied().collect();
            reasons.entry(*node).or_insert_with(|| {
                format!(
                    "{uuid} is claimed by {} too: find out which of them has it, and set spec.sell: false on the GpuNode \
                     of the other",
                    others.join(", ")
                )
            });
        }
    }
    reasons
}

#[cfg(test)]
mod tests;
