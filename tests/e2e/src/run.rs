//! Runs end-to-end tests, each on a stack of its own that is always taken down. Logs of a failed test are kept.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use leasehold_testcluster::{Stderr, Unavailable, cache_root};

use crate::stack::{Stack, StackSpec};

/// Runs a story on a stack of its own. Without the means for a cluster, it prints that it is skipped.
pub async fn on_stack(
    spec: StackSpec,
    story: impl AsyncFnOnce(&Stack) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let kept = cache_root()?.join("failed").join(&spec.name);
    let stack = Stack::up(spec, &Stderr::default()).await?;
    let result = story(&stack).await;
    if let Err(error) = &result {
        stack.dump(&kept);
        eprintln!("{error:#}\nlogs are in {}", kept.display());
    }
    stack.down().await?;
    result
}

/// Duration of an outage: short by default, or the full one with `LEASEHOLD_OUTAGES=full`.
#[must_use]
pub fn outage(short: Duration, full: Duration) -> Duration {
    if std::env::var("LEASEHOLD_OUTAGES").is_ok_and(|v| v == "full") {
        full
    } else {
        short
    }
}

/// Runs one of several stories, and prints how long it took.
pub async fn timed<T>(story: &str, story_run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let begun = Instant::now();
    let result = story_run.await.with_context(|| story.to_owned());
    eprintln!(
        "{:>6.1}s  {story}: {}",
        begun.elapsed().as_secs_f64(),
        if result.is_ok() { "ok" } else { "FAILED" }
    );
    result
}
