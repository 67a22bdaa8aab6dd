//! Allocations that the market asks for: each is accepted or declined.

pub(crate) mod accept;
pub(crate) mod capacity;
pub(crate) mod seen;
