//! Tasks of the program `tasks`, which links the product's crates and so takes longer to compile.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};
use leasehold_testtools::{Stderr, cargo};

/// Builds the program and becomes it.
pub(crate) fn run(task: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let folder = cargo::build(&["tasks"], &Stderr::default())?;
    let mut tasks = Command::new(folder.join("tasks"));
    tasks.arg(task).args(arguments);
    bail!("start the program for {task}: {}", tasks.exec())
}
