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

/// How a reservation's Jobs ended by their own status, which outlives their pods: an error with the reason of the first
/// that failed; `None` while one of them has not ended.
#[must_use]
pub fn job_end(jobs: &[Job]) -> Option<Result<(), String>> {
    let is_true = |job: &&Job, type_: &str| {
        let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
        let found = conditions.and_then(|c| c.iter().find(|c| c.type_ == type_ && c.status == "True"));
        found.map(|c| c.message.clone().or_else(|| c.reason.clone()).unwrap_or_default())
    };
    if let Some(message) = jobs.iter().find_map(|job| is_true(&job, "Failed")) {
        return Some(Err(message));
    }
    let complete = !jobs.is_empty() && jobs.iter().all(|job| is_true(&job, "Complete").is_some());
    complete.then_some(Ok(()))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(condition: &str) -> Job {
        serde_json::from_value(json!({
            "metadata": {},
            "status": {"conditions": [
                {"type": "Suspended", "status": "False"},
                {"type": condition, "status": "True", "message": format!("{condition}!")},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn a_job_has_ended_when_it_says_so() {
        let (done, failed, runs) = (|| job("Complete"), || job("Failed"), || job("Suspended"));
        assert_eq!(job_end(&[]), None);
        assert_eq!(job_end(&[Job::default()]), None);
        assert_eq!(job_end(&[runs()]), None);
        assert_eq!(job_end(&[done(), runs()]), None);
        assert_eq!(job_end(&[done(), done()]), Some(Ok(())));
        assert_eq!(job_end(&[runs(), failed()]), Some(Err("Failed!".to_owned())));
    }
}
