//! A seeded simulation of a market, its providers and a chain: the same decisions as the operator's, edges that
//! gather and write in the operator's order, one write at a time, and everything around them lagging, failing,
//! restarting and lying. After every step the rules of the design are checked.
//!
//! One seed is one run: what it does depends on nothing else. [`Sim::new`], [`Sim::step`], [`Sim::settle`].

pub mod api;
pub mod chain;
pub mod cluster;
mod judge;
mod letting_go;
mod market;
mod pass;
mod provider;
mod provider_intake;
mod provider_view;
pub mod random;
mod rpc;
mod sim;
mod tenant;
mod weather;

pub use sim::Sim;
