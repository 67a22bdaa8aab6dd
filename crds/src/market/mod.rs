//! Kinds in the market cluster that connect the market and its providers: identity, offers and allocations of a
//! provider.

pub mod allocation;
pub mod offer;
pub mod provider;
