//! Decisions, pure and synchronous: a world goes in, a plan comes out, time is an argument.
//!
//! The plan is so exact that the edge that carries it out has no choice left.

pub mod escrow;
pub mod ports;
