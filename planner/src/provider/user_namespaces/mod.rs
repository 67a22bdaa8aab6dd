//! Whether pods with a GPU run in user namespaces on a node.
//!
//! A runtime reports that it has user namespaces, but what adds the GPUs to a container may not work in one. So a pod with one
//! GPU proves it on each node, before a container can be root there. The proof is of one boot and one set of versions, and is
//! kept in the status of the GpuPool.

mod decide;
mod pod;
mod starts;

use std::collections::BTreeMap;

use jiff::Timestamp;
use leasehold_crds::{
    GpuPool,
    provider::pool::{PoolReason, ProbeResult, UserNamespaceProof, UserNamespaces},
    shared::conditions::ConditionStatus,
};

pub use self::{
    decide::{Change, Decision, Finished, Outcome, World, decide, not_created},
    pod::{ProbeEnd, ProbePod, probe_pod},
    starts::{FailedStart, ReportedStarts, StartTrouble, start_trouble},
};
use super::offer::supply::{Hold, NodeSeen, PoolRuntime, PoolSupply};
use crate::request::Shape;

/// Bound of the schema: nodes of a pool on which containers can be root.
const NODES_MAX: usize = 512;
/// Bound of the schema for a message, in characters.
const MESSAGE_MAX: usize = 256;
/// Bound of the schema for an identity, in characters.
const IDENTITY_MAX: usize = 384;
/// What a probe pod requests.
const SHAPE: Shape = Shape {
    gpus: 1,
    millicores: 10,
    memory: 32 << 20,
    scratch: 0,
};

/// A node whose runtime reports user namespaces for the pods of a pool that permits them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Name of the Node.
    pub node: String,
    /// What a proof is of; see [`identity`].
    pub identity: Option<String>,
    /// Whether it has room for a probe pod; if not, why, for a person.
    pub room: Result<(), String>,
}

impl Candidate {
    /// Whether a proof says that pods run in user namespaces on the node as it is now.
    pub(super) fn is_proven(&self, proof: Option<&&UserNamespaceProof>) -> bool {
        proof.is_some_and(|p| p.result == ProbeResult::Proven && Some(&p.identity) == self.identity.as_ref())
    }
}

/// What a proof is of, for a person: the boot and the versions of a node, and the handler of its runtime. `None` while the node
/// or its agent does not report them.
#[must_use]
pub fn identity(node: &NodeSeen, runtime: &PoolRuntime) -> Option<String> {
    let handler = if runtime.handler.is_empty() {
        "the default"
    } else {
        &runtime.handler
    };
    let text = format!("{}, handler {handler}", node.software.as_ref()?);
    Some(text.chars().take(IDENTITY_MAX).collect())
}

/// The proofs in the status of a pool, by node.
pub(super) fn proofs(pool: &GpuPool) -> BTreeMap<&str, &UserNamespaceProof> {
    let all = pool.status.iter().flat_map(|s| &s.user_namespaces);
    all.map(|proof| (proof.node.as_str(), proof)).collect()
}

/// Whether a probe pod fits beside what runs on a node with that room.
pub(super) fn fits(room: &Shape) -> Result<(), String> {
    if SHAPE.fits(room) {
        Ok(())
    } else {
        Err("a GPU was free, but no CPU or memory beside it".to_owned())
    }
}

/// Of two lists of proofs, the newer one of each node; of two that are equally new, that of `own`.
#[must_use]
pub fn newest(own: &[UserNamespaceProof], stored: &[UserNamespaceProof]) -> Vec<UserNamespaceProof> {
    let mut by_node: BTreeMap<&str, &UserNamespaceProof> = BTreeMap::new();
    for proof in own.iter().chain(stored) {
        let known = by_node.entry(&proof.node).or_insert(proof);
        if at(proof) > at(known) {
            *known = proof;
        }
    }
    by_node.into_values().cloned().collect()
}

/// Room that probe pods of a pool will take: they were created, and `bound` does not name their node yet. A GPU that a probe
/// gets is not promised to a lease.
pub fn holds<'a>(
    pool: &GpuPool,
    runtime: &PoolRuntime,
    bound: impl IntoIterator<Item = &'a ProbePod>,
) -> Vec<Hold> {
    let name = pool.metadata.name.clone().unwrap_or_default();
    let bound: Vec<&ProbePod> = bound.into_iter().filter(|pod| pod.pool == name).collect();
    let all = pool.status.iter().flat_map(|s| &s.user_namespaces);
    let coming = all.filter(|proof| {
        proof.result == ProbeResult::Probing && bound.iter().all(|pod| pod.node != proof.node)
    });
    let hold = |proof: &UserNamespaceProof| Hold {
        name: pod::name(&name),
        shape: SHAPE.plus(&runtime.overhead),
        nodes: vec![proof.node.clone()],
    };
    coming.map(hold).collect()
}

/// Time of a proof; the beginning of time for a node that was never probed.
fn at(proof: &UserNamespaceProof) -> Timestamp {
    proof.at.parse().unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The condition `RootAllowed` of a pool, by the proofs in its status.
#[must_use]
pub fn root_allowed(pool: &GpuPool, supply: &PoolSupply) -> (ConditionStatus, PoolReason, String) {
    if pool.spec.user_namespaces == UserNamespaces::Never {
        let message = "userNamespaces is Never: no container is root";
        return (
            ConditionStatus::False,
            PoolReason::NotPermitted,
            message.to_owned(),
        );
    }
    if supply.candidates.is_empty() {
        let message = "the runtime of no node reports user namespaces for the RuntimeClass of the pool: no container is root";
        return (
            ConditionStatus::False,
            PoolReason::NotReported,
            message.to_owned(),
        );
    }
    let proofs = proofs(pool);
    let result = |of: ProbeResult| {
        let listed = supply
            .candidates
            .iter()
            .filter_map(|c| proofs.get(c.node.as_str()));
        listed.filter(|p| p.result == of).copied().collect::<Vec<_>>()
    };
    let (proven, failed) = (result(ProbeResult::Proven), result(ProbeResult::Failed));
    let nodes = supply.candidates.len();
    let of_all = format!("containers can be root on {} of {nodes} nodes", proven.len());
    let told = |proof: &UserNamespaceProof| format!("{of_all}; {}: {}", proof.node, proof.message);
    if let Some(first) = failed.first() {
        return (ConditionStatus::False, PoolReason::ProbeFailed, told(first));
    }
    if proven.len() == nodes {
        return (ConditionStatus::True, PoolReason::Proven, String::new());
    }
    let first = result(ProbeResult::Unknown).first().map(|proof| told(proof));
    let more = nodes > NODES_MAX;
    let first =
        first.or_else(|| more.then(|| format!("{of_all}; only {NODES_MAX} nodes of a pool are probed")));
    let message = first.unwrap_or(of_all);
    (ConditionStatus::Unknown, PoolReason::Probing, message)
}

#[cfg(test)]
mod tests;
