//! How long the results of a job are retained after its end: a directory of its volume, until it was fetched or its time
//! is over. Payment does not wait for it: the reservation has stopped, its GPUs are free, the refund is sent.

use jiff::Timestamp;
use leasehold_crds::{
    GpuReservation,
    lease::workload::{ResultsAt, Storage, Workload},
    provider::pool::GpuPoolSpec,
    shared::duration,
};

use crate::{
    provider::workload::recipient::Recipient,
    request::{SpecError, field},
};

/// What a job asks to be retained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The directory, relative to the volume's root; empty for the root itself.
    pub directory: String,
    /// How long after the end of the job.
    pub seconds: u64,
}

impl Retention {
    /// Reads a workload; `None` where nothing is retained.
    ///
    /// # Errors
    /// When the workload passes the schema but cannot be served, with the field.
    pub fn of(workload: &Workload, storage: Option<&Storage>) -> Result<Option<Self>, SpecError> {
        let Some(output) = workload.job.as_ref().and_then(|j| j.output.as_ref()) else {
            return Ok(None);
        };
        let storage =
            storage.ok_or_else(|| field("workload.job.output", "it is kept on a volume: set storage"))?;
        let directory = below(&output.path, &storage.mount_path).ok_or_else(|| {
            field(
                "workload.job.output.path",
                format!("must be {} or below it", storage.mount_path),
            )
        })?;
        if output.recipients.is_empty() {
            return Err(field("workload.job.output.recipients", "must name a key"));
        }
        for recipient in &output.recipients {
            let read = recipient.parse::<Recipient>();
            read.map_err(|why| field("workload.job.output.recipients", why))?;
        }
        let seconds = duration::seconds(&output.keep_results_for)
            .map_err(|e| field("workload.job.output.keepResultsFor", e))?;
        Ok(Some(Self { directory, seconds }))
    }

    /// What a reservation's job asks to be retained; `None` also where that cannot be served.
    #[must_use]
    pub fn of_reservation(reservation: &GpuReservation) -> Option<Self> {
        let spec = &reservation.spec.allocation;
        Self::of(&spec.workload, spec.storage.as_ref()).ok().flatten()
    }
}

/// `path` relative to `mount`, if it is the same or below.
fn below(path: &str, mount: &str) -> Option<String> {
    let rest = path.strip_prefix(mount.trim_end_matches('/'))?;
    let inside = rest.is_empty() || rest.starts_with('/');
    let plain = rest.split('/').all(|part| part != "..");
    (inside && plain).then(|| rest.trim_matches('/').to_owned())
}

/// Longest retention that a pool offers, seconds; 0 where it has no volumes.
#[must_use]
pub fn longest(pool: &GpuPoolSpec) -> u64 {
    let longest = duration::seconds(&pool.max_keep_results_for).unwrap_or(0);
    if pool.storage.is_some() { longest } else { 0 }
}

/// The end of the retention when the job ends now, Unix seconds. Every end retains results, except that of a tenant who gave
/// up a running job.
#[must_use]
pub fn until(reservation: &GpuReservation, ended_by_itself: bool, now: Timestamp) -> Option<i64> {
    let spec = &reservation.spec.allocation;
    let retention = Retention::of_reservation(reservation)?;
    let seconds = i64::try_from(retention.seconds).unwrap_or(i64::MAX / 2);
    (ended_by_itself || !spec.drop_results).then(|| now.as_second().saturating_add(seconds))
}

/// Whether results are retained now. Deleting the reservation gives them up.
#[must_use]
pub fn are_kept(reservation: &GpuReservation, until: Option<i64>, now: Timestamp) -> bool {
    reservation.metadata.deletion_timestamp.is_none() && until.is_some_and(|until| now.as_second() < until)
}

/// The addresses with the end of the retention.
#[must_use]
pub fn published(at: &[ResultsAt], until: Option<i64>) -> Vec<ResultsAt> {
    let until = until
        .and_then(|s| Timestamp::from_second(s).ok())
        .map(|t| t.to_string());
    let with = |at: &ResultsAt| ResultsAt {
        until: until.clone(),
        ..at.clone()
    };
    at.iter().map(with).collect()
}

#[cfg(test)]
mod tests {
    use leasehold_crds::lease::workload::{Job, JobOutput};

    use super::*;

    const KEY: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    fn kept(path: &str, mount: Option<&str>, recipients: &[&str]) -> Result<Option<Retention>, SpecError> {
        let output = JobOutput {
            path: path.into(),
            keep_results_for: "2h".into(),
            recipients: recipients.iter().map(|r| (*r).to_owned()).collect(),
        };
        let workload = Workload {
            job: Some(Box::new(Job {
                output: Some(output),
                ..Job::default()
            })),
            ..Workload::default()
        };
        let storage = mount.map(|m| Storage {
            size: "1Gi".into(),
            mount_path: m.into(),
        });
        Retention::of(&workload, storage.as_ref())
    }

    #[test]
    fn a_directory_of_the_volume_is_kept_and_no_other() {
        for (path, mount, directory) in [
            ("/data", "/data", ""),
            ("/data", "/data/", ""),
            ("/data/out", "/data", "out"),
            ("/data/a/b", "/data/", "a/b"),
        ] {
            let kept = kept(path, Some(mount), &[KEY]).unwrap().unwrap();
            assert_eq!(
                (kept.directory.as_str(), kept.seconds),
                (directory, 7200),
                "{path}"
            );
        }
        for (path, mount) in [
            ("/database", "/data"),
            ("/", "/data"),
            ("/data/../etc", "/data"),
            ("/out", "/data"),
        ] {
            let error = kept(path, Some(mount), &[KEY]).unwrap_err();
            assert_eq!(error.field, "workload.job.output.path", "{path}");
        }
        assert_eq!(
            kept("/data", None, &[KEY]).unwrap_err().field,
            "workload.job.output"
        );
        let nobody = kept("/data", Some("/data"), &[]).unwrap_err();
        assert_eq!(nobody.field, "workload.job.output.recipients");
        let typo = kept("/data", Some("/data"), &[KEY, &KEY.replace('z', "x")]).unwrap_err();
        assert_eq!(typo.field, "workload.job.output.recipients");
        assert_eq!(Retention::of(&Workload::default(), None), Ok(None));
    }
}
