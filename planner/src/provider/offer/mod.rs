//! A provider's decisions about what it offers.

pub mod pool_status;
pub mod supply;
