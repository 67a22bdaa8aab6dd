//! The Jobs of a job.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use leasehold_crds::GpuReservation;

use super::{
    NAME, meta, numbered,
    pod::{JobPod, template},
};

/// Names of the Jobs of a reservation; none for other workloads.
#[must_use]
pub fn job_names(reservation: &GpuReservation) -> Vec<String> {
    let spec = &reservation.spec.allocation;
    let jobs = match (&spec.workload.job, &spec.storage) {
        (None, _) => 0,
        (Some(_), None) => 1,
        (Some(_), Some(_)) => spec.nodes,
    };
    (0..jobs).map(|index| numbered(NAME, index)).collect()
}

/// One Job for all nodes; with storage one for each node, because a volume belongs to a node and the pods of a Job have
/// no claims of their own.
pub(super) fn jobs(reservation: &GpuReservation) -> Vec<Job> {
    let spec = &reservation.spec.allocation;
    let nodes = i32::try_from(spec.nodes).unwrap_or(1);
    let job = |name: String, completions: i32, of: JobPod| Job {
        metadata: meta(reservation, &name),
        spec: Some(JobSpec {
            completions: Some(completions),
            parallelism: Some(completions),
            completion_mode: Some("Indexed".into()),
            backoff_limit: Some(0),
            template: template(reservation, Some(of)),
            ..JobSpec::default()
        }),
        ..Job::default()
    };
    let names = job_names(reservation).into_iter();
    match &spec.storage {
        None => names.map(|name| job(name, nodes, JobPod::AnyNode)).collect(),
        Some(_) => (0..)
            .zip(names)
            .map(|(index, name)| job(name, 1, JobPod::Node(index)))
            .collect(),
    }
}
