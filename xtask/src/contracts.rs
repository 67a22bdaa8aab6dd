//! `cargo xtask contracts`: the escrow's sources, which need node and forge as nothing else here does.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// Compile, and write the ABI that the Rust crates use
    Build {
        /// Write nothing; fail when what is checked in is stale
        #[arg(long)]
        check: bool,
    },
    /// Unit, fuzz and invariant tests
    Test {
        /// Also break the contract in each known way, and fail unless the suite notices every one
        #[arg(long)]
        mutants: bool,
        /// Also compare the gas of each action with what is checked in
        #[arg(long)]
        gas: bool,
        /// Further arguments for `forge test`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

pub(crate) fn run(task: Task) -> Result<ExitCode> {
    tools()?;
    match task {
        Task::Build { check } => script(
            "build.sh",
            &if check { vec!["--check".to_owned()] } else { vec![] },
        )?,
        Task::Test {
            mutants,
            gas,
            arguments,
        } => {
            script("test.sh", &arguments)?;
            if gas {
                script("gas.sh", &["--check".to_owned()])?;
            }
            if mutants {
                script("mutants.sh", &[])?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails when the checked-in ABI is not what the sources compile to.
pub(crate) fn check_abi() -> Result<()> {
    tools()?;
    script("build.sh", &["--check".to_owned()])
}

/// What the scripts need, at the locked versions. npm runs no install scripts: the platform packages hold the
/// real binaries.
fn tools() -> Result<()> {
    if folder().join("node_modules").exists() {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    succeed(npm).context("install forge and solc; node 20 or later is needed")
}

fn script(name: &str, arguments: &[String]) -> Result<()> {
    let mut script = Command::new("bash");
    script.arg(name).args(arguments);
    succeed(script)
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command
        .current_dir(folder())
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn folder() -> PathBuf {
    xtask::root().join("chain/contracts")
}
