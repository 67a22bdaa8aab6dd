//! The kinds in a provider's own cluster: what it sells, its nodes, and what it has agreed to host.

pub mod node;
pub mod pool;
pub mod reservation;
