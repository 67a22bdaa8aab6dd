//! `cargo xtask demo`: builds everything and runs the demo program, which `tests/e2e` holds: it needs this crate's images.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use leasehold_testcluster::Unavailable;
use xtask::{image, root};

#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Leave the cluster up at the end, to look around in it
    #[arg(long)]
    keep: bool,
    /// Break a step on purpose, to see the demo fail
    #[arg(long = "break", value_name = "STEP", hide = true)]
    sabotage: Option<String>,
}

pub(crate) fn run(demo: &Demo) -> Result<ExitCode> {
    // Before minutes of building.
    Unavailable::check()
        .context("the demo can't run here; become root, for instance by `sudo -E cargo xtask demo`")?;
    eprintln!("building the workspace; the first time this takes minutes");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The whole workspace, as for images and tests: other features would compile every dependency once more.
    let built = Command::new(cargo)
        .current_dir(root())
        .args(["build", "--workspace", "--locked"])
        .status()
        .context("run cargo")?;
    ensure!(built.success(), "cargo could not build the workspace");
    let mut program = Command::new(program()?);
    if demo.keep {
        program.arg("--keep");
    }
    if let Some(step) = &demo.sabotage {
        program.args(["--break", step]);
    }
    bail!("start the demo: {}", program.exec())
}

/// Where cargo puts it: beside the folder of images.
fn program() -> Result<PathBuf> {
    let folder = image::default_folder();
    let target = folder.parent().context("cargo's target directory")?;
    Ok(target.join("debug/demo"))
}
