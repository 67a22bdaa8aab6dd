//! A provider's decisions about what it offers.

pub mod supply;
