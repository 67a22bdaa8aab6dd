//! The free room of a node, or the reason why the node is not sold.

use leasehold_crds::{
    GpuPool,
    provider::pool::{NotSold, NotSoldReason, PoolToleration},
};

use super::supply::{GpusSeen, NodeSeen, PoolRuntime, Taint};
use crate::request::Shape;

/// Bounds of the schema.
const REASON_MAX: usize = 64;
const MESSAGE_MAX: usize = 512;
/// Bound of the schema for a class, which must be an RFC 1123 label.
const CLASS_MAX: usize = 63;

/// Why a node is not sold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    reason: String,
    /// For a person; empty where the reason is sufficient.
    message: String,
}

impl Refusal {
    pub(super) fn plain(reason: NotSoldReason) -> Self {
        Self::new(reason, "")
    }

    fn new(reason: NotSoldReason, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_string(),
            message: message.into(),
        }
    }

    /// Whether all GPUs of the node are in use, which is no fault.
    fn is_full(&self) -> bool {
        self.reason == NotSoldReason::NoGpuFree.as_str()
    }

    /// The entry of a node in the status of its pool.
    pub(super) fn of(self, node: &str) -> NotSold {
        NotSold {
            node: node.to_owned(),
            reason: self.reason.chars().take(REASON_MAX).collect(),
            message: self.message.chars().take(MESSAGE_MAX).collect(),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_full() {
            f.write_str("no GPU was free")
        } else {
            write!(f, "the node is not sold: {}", self.reason)
        }
    }
}

/// The free room of a node in a pool, and how many more pods it admits. `held` are the shapes of reservations whose pods do
/// not exist yet; `claimed` says which other node claims one of its GPUs.
pub(super) fn room(
    node: &NodeSeen,
    (pool, runtime): (&GpuPool, &PoolRuntime),
    held: Option<&Vec<&Shape>>,
    claimed: Option<&String>,
) -> Result<(Shape, u64), Refusal> {
    let plainly = |reason| Err(Refusal::plain(reason));
    let Some(gpus) = &node.gpus else {
        return plainly(NotSoldReason::NoAgent);
    };
    if !gpus.sell {
        return plainly(NotSoldReason::NotForSale);
    }
    if !gpus.alive {
        return plainly(NotSoldReason::AgentSilent);
    }
    if !gpus.healthy {
        return Err(unhealthy(gpus));
    }
    if let Some(by) = claimed {
        return Err(Refusal::new(NotSoldReason::DuplicateUuid, by));
    }
    if let Some(refusal) = cannot_run(node, pool, runtime) {
        return Err(refusal);
    }
    if let Some(refusal) = not_whole(node, gpus) {
        return Err(refusal);
    }
    if !is_label(&gpus.class) || pool.spec.class.as_ref().is_some_and(|class| *class != gpus.class) {
        return plainly(NotSoldReason::OtherClass);
    }
    if gpus.memory == 0 {
        let message = "NVML reports no memory for a GPU, as on GPUs that use the memory of the machine: set \
             spec.classOverride of the GpuNode to a class with its memory, such as gb10-128g, or the label \
             nvidia.com/gpu.memory of the Node to its memory in MiB";
        return Err(Refusal::new(NotSoldReason::GpuMemoryUnknown, message));
    }
    let mut free = node.allocatable.without(&node.requested);
    let held = held.map_or(&[][..], Vec::as_slice);
    for shape in held {
        free = free.without(shape);
    }
    let pods_free = node.pods_free.saturating_sub(held.len() as u64);
    if free.gpus == 0 {
        plainly(NotSoldReason::NoGpuFree)
    } else if pods_free == 0 {
        plainly(NotSoldReason::NoPodFree)
    } else {
        let room = free.without(&runtime.overhead);
        let starts = runtime.overhead.fits(&free) && room.millicores > 0 && room.memory > 0;
        let room = starts.then_some((room, pods_free));
        room.ok_or_else(|| Refusal::plain(NotSoldReason::NoRoomFree))
    }
}

/// Why the pods of a pool would not start on a node.
fn cannot_run(node: &NodeSeen, pool: &GpuPool, runtime: &PoolRuntime) -> Option<Refusal> {
    let has = |(key, value): (&String, &String)| node.labels.get(key) == Some(value);
    if !node.schedulable || !runtime.node_selector.iter().all(has) {
        return Some(Refusal::plain(NotSoldReason::NotSchedulable));
    }
    let tolerations = &pool.spec.tolerations;
    let is_tolerated = |taint: &Taint| tolerations.iter().any(|t| tolerates(t, taint));
    if let Some(taint) = node.taints.iter().find(|taint| !is_tolerated(taint)) {
        let message =
            format!("the node has the taint {taint}: add it to tolerations of the pool to sell the node");
        return Some(Refusal::new(NotSoldReason::Tainted, message));
    }
    let handler = &runtime.handler;
    let is_missing = !handler.is_empty() && !node.handlers.is_empty() && !node.handlers.contains_key(handler);
    is_missing.then(|| {
        let message = format!(
            "the container runtime of the node has no handler {handler:?}, which the RuntimeClass of the pool names"
        );
        Refusal::new(NotSoldReason::NoRuntimeHandler, message)
    })
}

fn tolerates(toleration: &PoolToleration, taint: &Taint) -> bool {
    toleration.key == taint.key
        && toleration
            .value
            .as_ref()
            .is_none_or(|value| *value == taint.value)
        && toleration
            .effect
            .as_ref()
            .is_none_or(|effect| *effect == taint.effect)
}

fn unhealthy(gpus: &GpusSeen) -> Refusal {
    if gpus.reason.is_empty() {
        Refusal::plain(NotSoldReason::Unhealthy)
    } else {
        Refusal {
            reason: gpus.reason.clone(),
            message: gpus.message.clone(),
        }
    }
}

/// A GPU is sold to one lease at a time, with the memory and the compute of the whole GPU. So each GPU that the node
/// allocates must be a GPU of its own.
fn not_whole(node: &NodeSeen, gpus: &GpusSeen) -> Option<Refusal> {
    let shared = |why: String| {
        Refusal::new(
            NotSoldReason::SharedGpus,
            format!(
                "{why}, so that several containers can get one GPU: turn time-slicing and MPS off for this node in the \
                 configuration of the device plugin, or exclude the node with nodeSelector of the pool"
            ),
        )
    };
    if let Some(why) = &node.sharing {
        return Some(shared(why.clone()));
    }
    if let Some(uuid) = gpus.shared.first() {
        return Some(shared(format!("the device plugin advertises replicas of {uuid}")));
    }
    let mig = |what: String| {
        let message = format!(
            "{what}: slices are sold where every GPU of the node has slices of one profile and the device plugin uses the \
             strategy `single`; change the MIG layout, disable MIG (nvidia-smi -mig 0), or exclude the node with \
             nodeSelector of the pool"
        );
        Some(Refusal::new(NotSoldReason::MigEnabled, message))
    };
    if let Some(uuid) = gpus.mig.first() {
        return mig(format!(
            "{uuid} is in MIG mode, and not every GPU has equal slices"
        ));
    }
    if let Some(resource) = &node.slice_resource {
        return mig(format!("the node allocates {resource}"));
    }
    let (advertised, present) = (node.allocatable.gpus, gpus.distinct());
    if advertised > present {
        return Some(shared(format!(
            "the node allocates {advertised} GPUs and has {present}"
        )));
    }
    (advertised < present).then(|| {
        let message = format!(
            "the node allocates {advertised} of its {present} GPUs: check the log of the device plugin on this node"
        );
        Refusal::new(NotSoldReason::GpusNotAdvertised, message)
    })
}

/// Whether a class fits the schema of an offer row. One row that does not would make the API refuse the whole offer.
fn is_label(class: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    class.len() <= CLASS_MAX
        && class.starts_with(alphanumeric)
        && class.ends_with(alphanumeric)
        && class.chars().all(|c| alphanumeric(c) || c == '-')
}
