//! A whole Leasehold on one machine: a real Kubernetes, a real chain, the chart, simulated GPUs behind the real NVML
//! symbols. The demo tells a story on it, the end-to-end tests check one.

mod eventually;
mod install;
mod stack;
mod tenant;

pub use eventually::{eventually, within};
pub use stack::{GpuNodes, Money, ProviderSpec, Stack, StackSpec};
pub use tenant::Tenant;
