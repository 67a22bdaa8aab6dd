//! Cargo's builds. All of them select the whole workspace, so that they agree on the features of every dependency and
//! each is compiled once; which programs are built is chosen by name.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{Progress, exists, once};

/// Programs of crates.io that checks and benches run, with their versions.
const TOOLS: [(&str, &str); 2] = [("cargo-deny", "0.20.2"), ("cargo-mutants", "27.1.0")];

/// The cargo that runs this program, or the one on PATH.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::root());
    cargo
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .filter(|folder| !folder.is_empty())
        .map_or_else(|| crate::root().join("target"), PathBuf::from)
}

/// Builds the programs of those names in the dev profile and returns the folder that holds them.
///
/// # Errors
/// When cargo fails, with what it printed.
pub fn build(programs: &[&str], progress: &dyn Progress) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["build", "--workspace", "--locked"]);
    cargo.args(programs.iter().flat_map(|program| ["--bin", program]));
    run(&mut cargo, progress).with_context(|| format!("cargo could not build {}", programs.join(", ")))?;
    Ok(target_folder().join("debug"))
}

/// Compiles every test of the workspace and runs none.
///
/// # Errors
/// When cargo fails, with what it printed.
pub fn build_tests(progress: &dyn Progress) -> Result<()> {
    let mut cargo = cargo();
    cargo.args([
        "test",
        "--workspace",
        "--locked",
        "--lib",
        "--bins",
        "--tests",
        "--no-run",
    ]);
    run(&mut cargo, progress).context("cargo could not compile the tests")
}

/// Finds one of the pinned programs, and compiles it when this machine does not have it.
///
/// # Errors
/// When no such program is pinned, and when cargo can't install it.
pub fn tool(name: &str, progress: &dyn Progress) -> Result<PathBuf> {
    let names = || TOOLS.map(|(name, _)| name).join(", ");
    let (_, version) = TOOLS
        .iter()
        .find(|(tool, _)| *tool == name)
        .with_context(|| format!("{name} is not pinned; pinned are {}", names()))?;
    let key = format!("{name}-{version}");
    if !exists(&key) {
        progress.step(&format!("compile {name} {version} (once a machine)"));
    }
    let directory = once(&key, |draft| {
        let built = draft.join("target");
        let mut cargo = cargo();
        cargo.args(["install", name, "--version", version, "--locked", "--root"]);
        cargo.arg(draft).arg("--target-dir").arg(&built);
        run(&mut cargo, progress).with_context(|| format!("cargo could not install {name}"))?;
        Ok(std::fs::remove_dir_all(built)?)
    })?;
    Ok(directory.join("bin").join(name))
}

fn run(cargo: &mut Command, progress: &dyn Progress) -> Result<()> {
    let mut child = cargo
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start cargo")?;
    let printed = child.stderr.take().context("cargo's standard error")?;
    let mut said = String::new();
    for line in BufReader::new(printed).lines() {
        let line = line?;
        if let Some(compiling) = line.trim_start().strip_prefix("Compiling ") {
            progress.compiling(compiling.split_whitespace().next().unwrap_or_default());
        } else if !line.trim_start().starts_with("Download") {
            said.push_str(&line);
            said.push('\n');
        }
    }
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("{status}\n{said}");
    }
    Ok(())
}
