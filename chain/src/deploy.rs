//! Puts the contracts on a chain.
