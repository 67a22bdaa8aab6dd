//! A provider's decisions about what it offers.

pub mod cluster;
pub mod pool_status;
mod room;
mod row;
pub mod supply;
