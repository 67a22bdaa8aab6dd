//! Payment: the network that is paid on, the terms of an escrow account, and amounts of money.

pub mod escrow;
pub mod money;
pub mod network;
