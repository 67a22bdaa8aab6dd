//! Which pods are created, removed and kept, and how a job ended. Each node of a reservation has one pod, which is named after
//! its index: while an object of that name exists, the containers of the node may run, so that no second pod is created
//! before the first is proven to be gone. Our finalizer keeps a pod that has ended until what it tells is stored.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use leasehold_crds::{
    GpuReservation,
    market::allocation::AllocationPhase,
    provider::reservation::{GpuReservationStatus, PodCreations},
};

use super::{Running, later};
use crate::provider::workload::{End, FINALIZER_POD, pod_of};

/// Wait after the first creation; it doubles with each further one.
const WAIT_SECONDS: u64 = 3;
/// Longest wait between two creations.
const WAIT_SECONDS_MAX: u64 = 60;
/// Creations that are further apart than this are not in a row.
const IN_A_ROW_SECONDS: i64 = 600;
/// More are not counted.
const TIMES_MAX: i64 = 1000;

/// The pod of one node, as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePod {
    /// Index of the node in the reservation, from 0.
    pub index: i64,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whether it is being deleted.
    pub is_leaving: bool,
    /// Whether its containers are ready, and it is not being deleted.
    pub is_ready: bool,
    /// Whether every container runs, or has run since the pod was created.
    pub has_run: bool,
    /// Since when it is being removed by somebody else than its program, in Unix seconds.
    pub removed_at: Option<i64>,
    /// How it ended.
    pub end: Option<End>,
    /// Its finalizers.
    pub finalizers: Vec<String>,
}

impl NodePod {
    /// Whether our finalizer keeps it.
    pub(super) fn is_held(&self) -> bool {
        self.finalizers.iter().any(|f| f == FINALIZER_POD)
    }

    /// Whether the containers run, or the program ended by itself after they had run.
    fn is_served(&self) -> bool {
        match &self.end {
            None => self.has_run && self.removed_at.is_none(),
            Some(End::Program { .. }) => true,
            Some(End::Lost(_) | End::Refused(_)) => false,
        }
    }

    /// Its removal, or the rest of it; `None` if nothing is left to be done.
    fn removal(&self) -> Option<PodChange> {
        let held = self.is_held();
        let others = || self.finalizers.iter().filter(|f| *f != FINALIZER_POD);
        (held || !self.is_leaving).then(|| PodChange::Remove {
            name: self.name.clone(),
            uid: self.uid.clone(),
            finalizers: held.then(|| others().cloned().collect()),
            delete: !self.is_leaving,
        })
    }
}

/// A change of one pod.
#[derive(Clone, Debug, PartialEq)]
pub enum PodChange {
    /// It is created, unless a pod of its name exists.
    Create(Box<Pod>),
    /// What it tells is stored, or not needed: it is released and deleted, if it still is this one.
    Remove {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// The finalizers that remain, if ours is removed.
        finalizers: Option<Vec<String>>,
        /// Whether it is deleted; otherwise it already is.
        delete: bool,
    },
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobEnd<'a> {
    /// Name of the pod that decides: the first that failed, else that of the first node.
    pub pod: &'a str,
    /// Its exit code, -1 to 255.
    pub exit_code: i64,
    /// When it ended, RFC 3339.
    pub finished_at: Option<&'a str>,
}

impl Running {
    /// Counts the pods of a reservation.
    #[must_use]
    pub fn of(pods: Vec<NodePod>) -> Self {
        let count = |is: &dyn Fn(&NodePod) -> bool| pods.iter().filter(|p| is(p)).count();
        let by_program = |p: &NodePod| matches!(p.end, Some(End::Program { .. }));
        let lost = pods.iter().filter(|p| !p.is_served());
        Self {
            pods_alive: count(&|p| p.end.is_none()),
            pods_ready: count(&|p| p.is_ready),
            pods_run: count(&|p| p.end.is_none() && p.is_served()),
            pods_ended: count(&|p| p.has_run && by_program(p)),
            pods_succeeded: count(&|p| p.end.as_ref().is_some_and(End::is_success)),
            lost_at: lost.filter_map(|p| p.removed_at).min(),
            pods,
            ..Self::default()
        }
    }
}

/// How the job of a reservation ended; `None` while it runs. A failure beside a pod that was lost may be due to the loss, and
/// decides nothing.
#[must_use]
pub fn job_end<'a>(reservation: &GpuReservation, pods: &'a [NodePod]) -> Option<JobEnd<'a>> {
    reservation.spec.allocation.workload.job.as_ref()?;
    if is_any_lost(reservation, pods) {
        return None;
    }
    let mut ended: Vec<(&NodePod, i64, Option<&str>)> = Vec::new();
    for pod in pods {
        if let Some(End::Program {
            exit_code,
            finished_at,
        }) = &pod.end
        {
            ended.push((pod, *exit_code, finished_at.as_deref()));
        }
    }
    ended.sort_by_key(|(pod, ..)| pod.index);
    let failed = ended.iter().find(|(_, exit_code, _)| *exit_code != 0);
    let all = (ended.len() >= nodes(reservation))
        .then(|| ended.first())
        .flatten();
    failed.or(all).map(|(pod, exit_code, finished_at)| JobEnd {
        pod: &pod.name,
        exit_code: *exit_code,
        finished_at: *finished_at,
    })
}

fn nodes(reservation: &GpuReservation) -> usize {
    usize::try_from(reservation.spec.allocation.nodes).unwrap_or_default()
}

fn of_index(pods: &[NodePod], index: i64) -> Option<&NodePod> {
    pods.iter().find(|p| p.index == index)
}

/// Whether a pod is missing, was lost or refused, or the successor of such a pod has not run yet.
fn is_any_lost(reservation: &GpuReservation, pods: &[NodePod]) -> bool {
    let status = reservation.status.as_ref();
    let has_run = status.is_some_and(|s| s.phase == AllocationPhase::Active);
    (0..reservation.spec.allocation.nodes).any(|index| match of_index(pods, index) {
        None => true,
        Some(pod) if pod.end.is_none() => pod.removed_at.is_some() || has_run && !pod.has_run,
        Some(pod) => !pod.is_served(),
    })
}

/// The changes of the pods of a reservation that is served, and when the next are due. Records creations in the status.
pub(super) fn changes(
    reservation: &GpuReservation,
    pods: &[NodePod],
    status: &mut GpuReservationStatus,
    now: Timestamp,
) -> (Vec<PodChange>, Option<Timestamp>) {
    // What a job has done is not done again.
    if status.job.is_some() {
        return (Vec::new(), None);
    }
    let is_job = reservation.spec.allocation.workload.job.is_some();
    let lost = is_any_lost(reservation, pods);
    let is_replaced = |end: &End| match end {
        End::Lost(_) | End::Refused(_) => true,
        End::Program { exit_code, .. } => !is_job || *exit_code != 0 && lost,
    };
    // The clock of the operator that stored it may have been ahead.
    let latest = later(now, WAIT_SECONDS_MAX);
    let due = status
        .pod_creations
        .as_ref()
        .map_or(Timestamp::MIN, |last| due(last).min(latest));
    let (mut changes, mut waits) = (Vec::new(), false);
    for index in 0..reservation.spec.allocation.nodes {
        match of_index(pods, index) {
            // Somebody waits for the end of its deletion.
            Some(pod) if pod.is_leaving && pod.end.as_ref().is_some_and(is_replaced) => {
                changes.extend(pod.removal());
            }
            Some(pod) if !pod.end.as_ref().is_some_and(is_replaced) => {}
            // It stays until then, so that its status tells what happened.
            _ if now < due => waits = true,
            Some(pod) => changes.extend(pod.removal()),
            None => changes.push(PodChange::Create(Box::new(pod_of(reservation, index)))),
        }
    }
    if changes.iter().any(|c| matches!(c, PodChange::Create(_))) {
        status.pod_creations = Some(next(status.pod_creations.as_ref(), now));
    }
    (changes, waits.then_some(due))
}

/// Removes all pods.
pub(super) fn removals(pods: &[NodePod]) -> Vec<PodChange> {
    pods.iter().filter_map(NodePod::removal).collect()
}

/// When pods may be created again.
fn due(last: &PodCreations) -> Timestamp {
    let doubled = u32::try_from(last.times.clamp(1, 6) - 1).unwrap_or_default();
    let wait = (WAIT_SECONDS << doubled).min(WAIT_SECONDS_MAX);
    later(Timestamp::from_second(last.last_at).unwrap_or_default(), wait)
}

fn next(last: Option<&PodCreations>, now: Timestamp) -> PodCreations {
    let now = now.as_second();
    let in_a_row = last.filter(|l| now - l.last_at <= IN_A_ROW_SECONDS);
    PodCreations {
        times: in_a_row.map_or(0, |l| l.times).saturating_add(1).min(TIMES_MAX),
        last_at: now,
    }
}

#[cfg(test)]
pub(super) mod tests;
