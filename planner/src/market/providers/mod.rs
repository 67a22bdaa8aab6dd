//! A market's decisions about its providers.

pub mod responsiveness;
