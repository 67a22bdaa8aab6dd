//! Decisions, pure and synchronous: a world goes in, a plan comes out, time is an argument.
//!
//! The plan is so exact that the edge that carries it out has no choice left.

pub mod escrow;
pub mod health;
pub mod intake;
pub mod lease;
pub mod letting_go;
pub mod observed;
pub mod phase;
pub mod placement;
pub mod ports;
pub mod recipient;
pub mod request;
pub mod reservation;
pub mod results;
pub mod stop;
pub mod supply;
pub mod sweep;
