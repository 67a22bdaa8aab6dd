//! Metrics. All labels are closed enums, never names or addresses, so that the number of series is known in advance.
//! Every series exists from the start, so that a rate never lacks its zero.

mod labels;
mod operator;
mod reach;
pub mod reference;

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;

pub use labels::{
    Answer, ChainAction, ChainOutcome, Class, Controller, Direction, LeasePhase, ProbeOutcome,
    ReservationPhase, StreamOutcome,
};
pub use operator::{Chain, Leader, Operator, Phases, Probes, Reconcile, Role};
pub use reach::{Connector, Gateway, Open};

/// The metrics of one process, under the prefix `leasehold`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        Self {
            registry: Registry::default(),
        }
    }

    /// The registry for Leasehold's own metrics: `leasehold_…`.
    pub fn own(&mut self) -> &mut Registry {
        self.registry.sub_registry_with_prefix("leasehold")
    }

    /// The registry for metrics with names defined elsewhere: `DCGM_…`.
    pub fn foreign(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Renders the metrics in the OpenMetrics text format.
    ///
    /// # Errors
    ///
    /// If a metric cannot be encoded.
    pub fn render(&self) -> Result<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).context("render the metrics")?;
        Ok(text)
    }
}
