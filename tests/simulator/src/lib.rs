//! A seeded simulation of a market, its providers and a chain: the same decisions as the operator's, edges that
//! gather and write in the operator's order, one write at a time, and everything around them lagging, failing,
//! restarting and lying. After every step the rules of the design are checked.
//!
//! One seed is one run: what it does depends on nothing else. [`Sim::new`], [`Sim::step`], [`Sim::settle`].

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
mod sim;
mod tenant;

pub use sim::Sim;
