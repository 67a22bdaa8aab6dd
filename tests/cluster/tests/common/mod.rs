//! What the tests of clusters share.

use std::time::{Duration, Instant};

use leasehold_testcluster::{Cluster, Unavailable};

const PATIENCE: Duration = Duration::from_secs(60);

pub fn may_run(test: &str) -> bool {
    match Unavailable::check() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("SKIPPED {test}: {error}");
            false
        }
    }
}

/// Tries until the answer is some, or fails with what was last seen.
pub async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub fn kubectl(cluster: &Cluster, words: &str) -> Result<String, String> {
    let output = cluster.kubectl().args(words.split_whitespace()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// Waits until kubectl's answer is that.
pub async fn says(cluster: &Cluster, words: &str, wanted: &str) {
    until(words, async || match kubectl(cluster, words) {
        Ok(answer) if answer == wanted => Ok(()),
        other => Err(format!("{other:?}, not {wanted:?}")),
    })
    .await;
}
