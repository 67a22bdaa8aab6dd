//! A market's decisions about its providers.

pub mod liveness;
pub mod ready;
pub mod responsiveness;
