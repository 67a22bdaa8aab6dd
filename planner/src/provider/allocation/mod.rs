//! A provider's decisions about the allocations that are addressed to it.

pub mod accept;
mod plan;
