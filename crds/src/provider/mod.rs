//! Kinds in the provider cluster: pools, GPU nodes and reservations.

pub mod node;
pub mod pool;
pub mod reservation;
