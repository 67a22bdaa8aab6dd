//! Decisions of a provider's operator.

pub mod allocation;
pub mod connector;
pub mod health;
pub mod offer;
pub mod reservation;
pub mod user_namespaces;
pub mod workload;
