//! `cargo xtask bench`: builds optimized and runs the bench program, which `tests/e2e` holds.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

#[derive(clap::Args)]
pub(crate) struct Bench {
    /// match or lease
    name: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Further flags of that bench
    #[arg(last = true)]
    flags: Vec<String>,
}

pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(xtask::root()).args([
        "run",
        "--locked",
        "--quiet",
        "-p",
        "leasehold-e2e",
        "--bin",
        "bench",
    ]);
    // What is measured in this process is optimized; what runs in pods are the test images.
    if bench.name == "match" {
        cargo.arg("--release");
    }
    cargo.arg("--").arg(&bench.name).args(&bench.flags);
    if bench.json {
        cargo.arg("--json");
    }
    let status = cargo.status().context("run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
