//! What the kubelet reports of a pod.

use k8s_openapi::api::core::v1::Pod;

/// When the last container of the pod started for the first time, Unix seconds; `None` while one has not.
#[must_use]
pub fn containers_run_since(pod: &Pod) -> Option<i64> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let started = statuses.iter().map(|container| {
        let running = container.state.as_ref()?.running.as_ref()?;
        Some(running.started_at.as_ref()?.0.as_second())
    });
    started.collect::<Option<Vec<_>>>()?.into_iter().max()
}
