//! The client against a real EVM. Each test starts its own anvil, and fails where anvil can neither be found nor
//! installed.
#![expect(clippy::unwrap_used, reason = "a failed step of a test panics")]

mod actions;
mod anvil;
mod events;
mod property;
mod refusals;
mod same_key;
mod stuck;
