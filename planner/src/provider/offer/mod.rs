//! A provider's decisions about what it offers.

pub mod cluster;
pub mod node_seen;
pub mod pod_requests;
pub mod pool_status;
pub mod refusals;
pub mod resumption;
mod room;
pub(crate) mod row;
pub mod rows;
pub mod summary;
pub mod supply;
