//! A provider's decisions about the allocations it is asked to host.

pub mod accept;
