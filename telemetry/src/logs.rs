//! Log lines on standard error, and the span whose fields identify a lease in every component.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing::Span;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::metrics::Controller;
use crate::{LogFormat, Settings};

/// Keeps telemetry running. Drop it last in `main`; it then sends what is buffered.
#[must_use = "telemetry ends when the guard is dropped"]
pub struct Guard {
    #[cfg(feature = "otlp")]
    traces: Option<crate::traces::Exporter>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        #[cfg(feature = "otlp")]
        if let Some(traces) = self.traces.take() {
            traces.finish();
        }
    }
}

/// Starts logs for the whole process, and traces if an endpoint is set.
///
/// # Errors
///
/// If telemetry was started before, the filter is invalid, or the exporter cannot be created.
pub fn start(settings: &Settings) -> Result<Guard> {
    let filter = EnvFilter::try_new(&settings.log_filter).context("parse the log filter")?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match settings.log_format {
        LogFormat::Text => lines
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter)
            .boxed(),
        // All spans, not only the innermost one: a log line of a chain call must contain its lease.
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(true)
            .with_filter(filter)
            .boxed(),
    };
    #[cfg(feature = "otlp")]
    let traces = settings
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| crate::traces::Exporter::new(settings.service, endpoint))
        .transpose()?;
    #[cfg(feature = "otlp")]
    let subscriber = Registry::default()
        .with(lines)
        .with(traces.as_ref().map(crate::traces::Exporter::layer));
    #[cfg(not(feature = "otlp"))]
    let subscriber = Registry::default().with(lines);
    tracing::subscriber::set_global_default(subscriber).context("telemetry is already started")?;
    Ok(Guard {
        #[cfg(feature = "otlp")]
        traces,
    })
}

/// The span of one reconcile of an object. Its fields have the same names in every component, so that one search
/// finds a lease in the lines of market, provider and chain: record `lease`, `escrow`, `provider` and `transaction`
/// as soon as they are known.
#[must_use]
pub fn span(controller: Controller, object: &str) -> Span {
    tracing::info_span!(
        "reconcile",
        controller = controller.as_str(),
        object,
        lease = tracing::field::Empty,
        escrow = tracing::field::Empty,
        provider = tracing::field::Empty,
        transaction = tracing::field::Empty,
    )
}
