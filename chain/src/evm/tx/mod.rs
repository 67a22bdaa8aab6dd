//! Transactions of a signer: permits, nonces, sending, and waiting until a transaction is mined.

mod pending_tx;
pub(crate) mod permit;
mod queue;
mod send;

pub(crate) use send::{Pull, Sender, WithPermit, Write};
