//! Metrics whose labels are closed enums, never names or addresses: their number is known before the first
//! lease, and every series is there from the start, so that a rate over it is never missing its zero.

mod labels;
mod operator;
pub mod reference;

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;

pub use labels::{ChainAction, ChainOutcome, Class, Controller, LeasePhase, SharePhase};
pub use operator::{Chain, Leader, Operator, Phases, Reconcile, Role};

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

    /// Where Leasehold's own metrics are registered: `leasehold_…`.
    pub fn own(&mut self) -> &mut Registry {
        self.registry.sub_registry_with_prefix("leasehold")
    }

    /// Where metrics with names that others gave are registered: `DCGM_…`.
    pub fn foreign(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// The metrics now, in the OpenMetrics text format.
    ///
    /// # Errors
    /// When a metric can't be encoded.
    pub fn render(&self) -> Result<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).context("render the metrics")?;
        Ok(text)
    }
}
