//! Decisions of a market's operator.

pub mod accounts;
pub mod allocation;
pub mod lease;
pub mod providers;
pub mod unfunded;
