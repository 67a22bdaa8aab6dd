//! The objects of a workload: how they are built, and what is observed of them.

pub(crate) mod egress_denylist;
pub(crate) mod namespaces;
pub(crate) mod objects;
pub(crate) mod observe;
pub(crate) mod pods;
pub(crate) mod results;
