//! The escrow contract: its ABI, its calls and views behind the payment port, its events, and signed acceptances.

mod abi;
pub(crate) mod acceptance;
mod events;
mod facts;
mod port;
mod reads;

#[cfg(test)]
pub(crate) use abi::to_u40;
pub(crate) use abi::{Escrow, TestToken, Token, eip2612, from_b256, from_evm, narrow, to_evm};
