//! Running a program to its end on a thread that may block.

use std::process::Command;

use anyhow::Result;
use leasehold_testtools::command;

/// As [`command::run`].
pub(crate) async fn run(mut program: Command) -> Result<String> {
    tokio::task::spawn_blocking(move || command::run(&mut program)).await?
}
