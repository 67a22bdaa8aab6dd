//! Payment: networks, the terms of escrow accounts, and amounts of money.

pub mod escrow;
pub mod money;
pub mod network;
