//! Decisions of the gateway of a market.

pub mod routes;
