//! How an end-to-end test is run: on a stack of its own that is always ended, and whose logs are kept when it fails.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use leasehold_testcluster::{Stderr, Unavailable, cache_root};

use crate::stack::{Stack, StackSpec};

/// Runs a story on a stack of its own. Where there can be no cluster it is skipped, and says so.
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

/// How long an outage lasts: short enough for every day, or in full with `LEASEHOLD_OUTAGES=full`.
#[must_use]
pub fn outage(short: Duration, full: Duration) -> Duration {
    if std::env::var("LEASEHOLD_OUTAGES").is_ok_and(|v| v == "full") {
        full
    } else {
        short
    }
}

/// Runs one of several stories, and says how long it took.
pub async fn timed<T>(story: &str, told: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let begun = Instant::now();
    let result = told.await.with_context(|| story.to_owned());
    eprintln!(
        "{:>6.1}s  {story}: {}",
        begun.elapsed().as_secs_f64(),
        if result.is_ok() { "ok" } else { "FAILED" }
    );
    result
}
