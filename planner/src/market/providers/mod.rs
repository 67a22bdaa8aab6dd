//! A market's decisions about its providers.

pub mod ready;
pub mod responsiveness;
