//! A seeded simulation of a market, its providers and a chain. It uses the operator's decisions, and edges that
//! gather and write in the operator's order, one write at a time. Everything around them is delayed, fails, restarts
//! or returns false data. After every step the design's invariants are checked.
//!
//! A run depends on its seed only. See [`Sim::new`], [`Sim::step`] and [`Sim::settle`].

pub mod api;
pub mod chain;
pub mod cluster;
mod faults;
mod invariants;
mod market;
mod provider;
pub mod random;
mod reconcile;
mod rpc;
pub mod scenario;
mod sim;
mod tenant;

pub use sim::Sim;
