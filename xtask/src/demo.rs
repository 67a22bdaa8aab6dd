//! `cargo xtask demo`: prepares everything and becomes the demo program, which `tests/e2e` holds.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use leasehold_testtools::{cargo, debian};

use crate::prepare::{self, Build};

/// The demo itself, and what its images hold.
const PROGRAMS: &[&str] = &[
    "demo",
    "leasehold-operator",
    "leasehold-agent",
    "gpu-plugin",
    "kwok-kubelet",
    "nvml-sim",
];

#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Leave the cluster running at the end, and print its kubeconfig
    #[arg(long)]
    keep: bool,
    /// Break a step on purpose, to see the demo fail
    #[arg(long = "break", value_name = "STEP", hide = true)]
    sabotage: Option<String>,
}

pub(crate) fn run(demo: &Demo) -> Result<ExitCode> {
    debian::require_root()
        .context("the demo can't run: run it as root, for example by `sudo -E cargo xtask demo`")?;
    prepare::cluster(Build::Programs(PROGRAMS))?;
    let mut program = Command::new(cargo::target_folder().join("debug/demo"));
    if demo.keep {
        program.arg("--keep");
    }
    if let Some(step) = &demo.sabotage {
        program.args(["--break", step]);
    }
    bail!("start the demo: {}", program.exec())
}
