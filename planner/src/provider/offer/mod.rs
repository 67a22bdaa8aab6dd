//! A provider's decisions about what it offers.

pub mod cluster;
pub mod pool_status;
pub mod refusals;
mod room;
mod row;
pub mod summary;
pub mod supply;
