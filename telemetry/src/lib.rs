//! Observability for all binaries: logs and traces with the same fields for a lease, metrics with closed sets of
//! label values, and health reports.
//!
//! In `main`, in this order: [`Settings`] from [`Args`], [`start`], the runtime, [`shutdown::on_signals`],
//! [`Metrics`] and [`Health`], [`admin::serve`].

pub mod admin;
mod health;
mod logs;
pub mod metrics;
mod settings;
pub mod shutdown;
#[cfg(feature = "otlp")]
mod traces;

pub use health::{Health, Heartbeat, Latch};
pub use logs::{Guard, span, start};
pub use metrics::Metrics;
#[cfg(feature = "otlp")]
pub use settings::TraceArgs;
pub use settings::{Args, LogFormat, Settings};
