//! What the kubelet reports of a pod.

use k8s_openapi::api::core::v1::Pod;

/// Since when all containers of the pod run, Unix seconds; `None` while one does not.
#[must_use]
pub fn containers_run_since(pod: &Pod) -> Option<i64> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let started = statuses.iter().map(|container| {
        let running = container.state.as_ref()?.running.as_ref()?;
        Some(running.started_at.as_ref()?.0.as_second())
    });
    started.collect::<Option<Vec<_>>>()?.into_iter().max()
}
