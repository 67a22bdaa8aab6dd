//! Leasehold on one machine: a real Kubernetes, a real chain, the chart, and simulated GPUs behind the real NVML
//! symbols. The demo and the end-to-end tests run on it.

mod console;
mod eventually;
mod gateway;
mod install;
mod kwok;
mod pods;
mod process;
mod run;
mod split;
mod stack;
pub mod story;
mod tenant;

pub use console::{Align, Console, Table};
pub use eventually::{eventually, within};
pub use gateway::{DOMAIN, GatewayFixture, PORT, client_hello};
pub use install::{NAMESPACE, device};
pub use pods::containers_run_since;
pub use process::Watched;
pub use run::{on_stack, outage, timed};
pub use split::{Split, SplitSpec};
pub use stack::{
    DECIMALS, GpuNodes, PaymentFixture, ProviderSpec, Role, Stack, StackSpec, address, key, kwok_node, payee,
};
pub use tenant::{Tenant, opted_in};
