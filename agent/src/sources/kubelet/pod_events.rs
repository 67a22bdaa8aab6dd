//! Detects pods that start or end on this node without polling, as the start of a lease waits until its pod is listed
//! as a holder. Each pod has a directory below the kubelet's pod logs. It is created after the pod's devices were
//! allocated and before its first container starts, and inotify reports it.

use std::{io::ErrorKind, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;

/// Size of the event buffer, enough for some dozens of pods.
const CHUNK: usize = 4096;

/// Reports that a pod started or ended.
pub(crate) struct PodEvents(Option<pipe::Receiver>);

impl PodEvents {
    /// Watches the kubelet's directory of pod logs. If it cannot be watched, no events are reported and polling
    /// remains.
    pub(crate) fn watch(logs: &Path) -> Self {
        let watched = || -> anyhow::Result<pipe::Receiver> {
            let queue = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let came_or_went =
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
            queue.add_watch(logs, came_or_went | AddWatchFlags::IN_ONLYDIR)?;
            // The inotify queue is read like a pipe.
            Ok(pipe::Receiver::from_owned_fd_unchecked(queue.into())?)
        };
        match watched() {
            Ok(queue) => Self(Some(queue)),
            Err(error) => {
                tracing::info!(
                    logs = %logs.display(),
                    %error,
                    "cannot watch --pod-logs; new pods are seen with the next poll of the kubelet"
                );
                Self(None)
            }
        }
    }

    /// Returns when pods started or ended since the last call.
    pub(crate) async fn next(&self) {
        let Some(queue) = &self.0 else {
            return std::future::pending().await;
        };
        let mut events = [0; CHUNK];
        // All queued events count as one; their contents are not used.
        let mut changed = false;
        while !changed && queue.readable().await.is_ok() {
            loop {
                match queue.try_read(&mut events) {
                    Ok(bytes) if bytes > 0 => changed = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // A queue that failed once does not recover.
                    Ok(_) | Err(_) => return std::future::pending().await,
                }
            }
        }
        if !changed {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn pods_that_start_or_end_are_reported_once() {
        let logs = tempfile::tempdir().unwrap();
        let pod_events = PodEvents::watch(logs.path());
        let soon = async |what: &str| {
            let reported = tokio::time::timeout(Duration::from_secs(5), pod_events.next()).await;
            reported.unwrap_or_else(|_| panic!("not reported: {what}"));
        };
        let pods = ["a", "b"].map(|name| logs.path().join(format!("lease-1_{name}_uid")));
        for pod in &pods {
            std::fs::create_dir(pod).unwrap();
        }
        soon("two came").await;
        let more = tokio::time::timeout(Duration::from_millis(50), pod_events.next()).await;
        assert!(more.is_err(), "reported twice");
        std::fs::write(pods[0].join("0.log"), "a line").unwrap();
        std::fs::remove_dir(&pods[1]).unwrap();
        soon("one went").await;
    }

    #[tokio::test]
    async fn without_the_directory_nothing_is_reported() {
        let logs = tempfile::tempdir().unwrap();
        let pod_events = PodEvents::watch(&logs.path().join("none"));
        let reported = tokio::time::timeout(Duration::from_millis(50), pod_events.next()).await;
        assert!(reported.is_err());
    }
}
