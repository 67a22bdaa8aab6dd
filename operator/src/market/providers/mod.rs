//! Providers as the market sees them: their offers, and which of them answer.

pub(crate) mod provider_queue;
pub(crate) mod supply;
