//! What is observed of the objects of a workload.

pub(crate) mod admission;
mod log;
pub(crate) mod namespaces;
pub(crate) mod observe;
pub(crate) mod pods;
pub(crate) mod results;
