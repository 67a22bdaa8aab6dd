//! The market's lease controller: it gathers, decides, and writes one object at a time, in the operator's order.

mod gather;
mod reconcile;

pub(crate) use reconcile::LeaseReconcile;
