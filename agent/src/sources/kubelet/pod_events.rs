//! Pods that come and go on this node, noticed when they do: a lease's first second waits for the word of who holds its
//! GPUs. Each pod has a directory among the kubelet's logs, made after its devices were given to it and before its first
//! container starts; the kernel tells of that directory, and nothing need be asked meanwhile.

use std::{io::ErrorKind, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe;

/// Bytes of events taken at once: some dozens of pods.
const CHUNK: usize = 4096;

/// Tells that a pod came or went.
pub(crate) struct PodEvents(Option<pipe::Receiver>);

impl PodEvents {
    /// In the kubelet's directory of pod logs. Where there is none, nobody tells: the kubelet is asked in turn, later.
    pub(crate) fn watch(logs: &Path) -> Self {
        let watched = || -> anyhow::Result<pipe::Receiver> {
            let queue = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let came_or_went =
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
            queue.add_watch(logs, came_or_went | AddWatchFlags::IN_ONLYDIR)?;
            // The kernel's queue is read as a pipe is.
            Ok(pipe::Receiver::from_owned_fd_unchecked(queue.into())?)
        };
        match watched() {
            Ok(queue) => Self(Some(queue)),
            Err(error) => {
                tracing::info!(
                    logs = %logs.display(),
                    %error,
                    "pods that come are seen only when the kubelet is asked next: --pod-logs can't be watched"
                );
                Self(None)
            }
        }
    }

    /// Returns when some came or went since the last call.
    pub(crate) async fn next(&self) {
        let Some(queue) = &self.0 else {
            return std::future::pending().await;
        };
        let mut events = [0; CHUNK];
        // However many there are, they are one piece of news: none of them is looked at.
        let mut news = false;
        while !news && queue.readable().await.is_ok() {
            loop {
                match queue.try_read(&mut events) {
                    Ok(bytes) if bytes > 0 => news = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // A queue that fails once fails for ever.
                    Ok(_) | Err(_) => return std::future::pending().await,
                }
            }
        }
        if !news {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_pod_that_comes_or_goes_is_news_once() {
        let logs = tempfile::tempdir().unwrap();
        let pod_events = PodEvents::watch(logs.path());
        let soon = async |what: &str| {
            let told = tokio::time::timeout(Duration::from_secs(5), pod_events.next()).await;
            told.unwrap_or_else(|_| panic!("nobody told that {what}"));
        };
        let pods = ["a", "b"].map(|name| logs.path().join(format!("lease-1_{name}_uid")));
        for pod in &pods {
            std::fs::create_dir(pod).unwrap();
        }
        soon("two came").await;
        let more = tokio::time::timeout(Duration::from_millis(50), pod_events.next()).await;
        assert!(more.is_err(), "told twice");
        std::fs::write(pods[0].join("0.log"), "a line").unwrap();
        std::fs::remove_dir(&pods[1]).unwrap();
        soon("one went").await;
    }

    #[tokio::test]
    async fn without_the_directory_nobody_tells() {
        let logs = tempfile::tempdir().unwrap();
        let pod_events = PodEvents::watch(&logs.path().join("none"));
        let told = tokio::time::timeout(Duration::from_millis(50), pod_events.next()).await;
        assert!(told.is_err());
    }
}
