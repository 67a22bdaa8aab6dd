//! A whole Leasehold on one machine: a real Kubernetes, a real chain, the chart, simulated GPUs behind the real NVML
//! symbols. The demo tells a story on it, the end-to-end tests check one.

mod eventually;
mod install;
mod kwok;
mod split;
mod stack;
pub mod story;
mod tell;
mod tenant;
mod trial;

pub use eventually::{eventually, within};
pub use install::NAMESPACE;
pub use split::Split;
pub use stack::{
    DECIMALS, GpuNodes, PaymentFixture, ProviderSpec, Role, Stack, StackSpec, address, key, kwok_node, payee,
};
pub use tell::{Lean, Table, Teller};
pub use tenant::{Tenant, opted_in};
pub use trial::{on_stack, outage, told};
