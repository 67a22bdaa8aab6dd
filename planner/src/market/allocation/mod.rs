//! A market's decisions about the allocations it has made.

pub mod acceptance;
pub mod release;
