//! Whether the pods of a charged leg were interrupted: they are not the pods that ran when the leg was started, or their
//! sandboxes are not the same. That shows also what happened while the operator was away.

use leasehold_crds::provider::reservation::ProvenPod;

use super::super::{NodePod, Running};
use crate::provider::workload::{End, Uptime};

/// The pods that run now, to be compared later.
pub(super) fn proven(running: &Running) -> Vec<ProvenPod> {
    let proven = |pod: &Uptime| {
        Some(ProvenPod {
            uid: pod.uid.clone(),
            up_since: pod.up_since?,
        })
    };
    running.uptimes.iter().filter_map(proven).collect()
}

/// Until when all pods are known to have run, Unix time in seconds, if one of them was interrupted since its leg was started.
/// A pod that was created again shows that its predecessor had ended.
pub(super) fn interrupted_since(running: &Running, proven: &[ProvenPod]) -> Option<i64> {
    if proven.is_empty() {
        return None;
    }
    let since = |pod: &Uptime| {
        let Some(before) = proven.iter().find(|p| p.uid == pod.uid) else {
            return Some(nodes_ran_until(running, pod.created_at));
        };
        if pod.up_since == Some(before.up_since) {
            return None;
        }
        let agent = pod.node.as_ref().and_then(|node| running.agents.get(node));
        pod.ran_until(agent.unwrap_or(&Default::default()))
    };
    running.uptimes.iter().filter_map(since).min()
}

/// Until when the nodes are known to have run whose pods were lost without a time, if there are such pods: a kubelet that starts
/// rejects a pod, and nobody has removed it. The operator may have been away for long.
pub(super) fn rejected_since(running: &Running, nodes: &[String], proven: &[ProvenPod]) -> Option<i64> {
    let up_since = proven.iter().map(|pod| pod.up_since).max()?;
    let untold = |pod: &&NodePod| {
        let lost = matches!(pod.end, Some(End::Lost(_) | End::Refused(_)));
        lost && pod.removed_at.is_none()
    };
    let last_report = |pod: &NodePod| {
        let node = nodes.get(usize::try_from(pod.index).ok()?)?;
        let (last, _) = running.agents.get(node)?.restart?;
        (last >= up_since).then_some(last)
    };
    running.pods.iter().filter(untold).filter_map(last_report).min()
}

/// Until when all nodes are known to have run before a time at which a pod was found missing. A kubelet that starts may reject
/// the pods that ran before, as the device plugin has not started yet.
pub(super) fn nodes_ran_until(running: &Running, found_at: i64) -> i64 {
    let ran_until = running.agents.values().map(|agent| agent.ran_until(found_at));
    ran_until.min().unwrap_or(found_at)
}
