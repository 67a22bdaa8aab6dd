//! The payment port on an EVM chain, and an implementation in memory for tests and simulations.

pub mod deploy;
pub mod evm;
pub mod machine;
pub mod memory;

pub use evm::{EvmEscrow, Limits, Network, Queues, address_of};
pub use memory::MemoryEscrow;
