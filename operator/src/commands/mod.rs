//! Subcommands beside the two roles.

pub mod apply;
pub mod checks;
pub mod results;
pub mod user_namespace;
