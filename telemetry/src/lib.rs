//! How the binaries say what they do: logs and traces whose fields follow a lease, metrics with closed labels,
//! and health that tells the truth.
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
