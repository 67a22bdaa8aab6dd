//! Transactions of a signer: permits, nonces, sending, and waiting until a transaction is mined.

pub(crate) mod limits;
mod pending_tx;
pub(crate) mod permit;
pub(crate) mod queue;
mod send;

pub(crate) use send::{Pull, Sender, WithPermit, Write};
