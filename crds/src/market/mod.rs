//! The kinds through which a market and its providers deal with each other: who a provider is, what it offers, and
//! what it is asked to host.

pub mod allocation;
pub mod offer;
pub mod provider;
