//! Decisions, pure and synchronous: a world goes in, a plan comes out, time is an argument.
//!
//! The plan is so exact that the edge that carries it out has no choice left. There is a module for each role, and in it
//! one for each kind that the role reconciles; the operator has the same tree.

pub mod endpoints;
pub mod escrow;
pub mod gateway;
pub mod market;
pub mod observed;
pub mod orphans;
pub mod payment_network;
pub mod placement;
pub mod ports;
pub mod provider;
pub mod recency;
pub mod request;
pub mod urls;
