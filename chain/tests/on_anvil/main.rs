//! The client against a real EVM. Each test starts its own anvil; where anvil is not installed, it reports that it
//! was skipped.
#![expect(clippy::unwrap_used, reason = "a failed step of a test panics")]

mod actions;
mod anvil;
mod events;
mod property;
mod refusals;
mod same_key;
mod stuck;
