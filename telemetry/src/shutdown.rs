//! The one way a process is asked to end.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second one ends the process at once, for a
/// person who does not want to wait.
///
/// # Errors
/// When the handlers can't be installed.
pub fn on_signals() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for attempt in 1_u8.. {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if attempt > 1 {
                tracing::warn!(
                    signal = name,
                    "asked twice: ends at once, leadership is not handed over"
                );
                std::process::exit(1);
            }
            tracing::info!(signal = name, "ends: finishes what runs, then hands over");
            cancelled.cancel();
        }
    });
    Ok(token)
}
