//! Shutdown of a process on signals.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. A second signal ends the process immediately.
///
/// # Errors
///
/// If the signal handlers cannot be installed.
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
                    "second signal: exiting immediately without releasing leadership"
                );
                std::process::exit(1);
            }
            tracing::info!(
                signal = name,
                "shutting down: finishing running work, then releasing leadership"
            );
            cancelled.cancel();
        }
    });
    Ok(token)
}
