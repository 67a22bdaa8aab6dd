//! Waits for conditions, with a deadline.

use std::{
    fmt::Debug,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::bail;

/// Polls until the answer is `Ok`, or fails with a description of the condition and the last value seen.
pub async fn within<T, F, D>(limit: Duration, what: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Result<T, D>>>,
    D: Debug,
{
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) if begun.elapsed() > limit => {
                bail!("waited {limit:?} for {what}; last seen: {seen:?}")
            }
            Err(error) if begun.elapsed() > limit => {
                return Err(error.context(format!("waited {limit:?} for {what}")));
            }
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// [`within`] one minute.
pub async fn eventually<T, F, D>(what: &str, ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Result<T, D>>>,
    D: Debug,
{
    within(Duration::from_secs(60), what, ask).await
}
