//! `cargo xtask bench`: prepares what a bench needs and becomes the bench program, which `tests/e2e` holds.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use leasehold_testtools::cargo;

use crate::{
    mutants,
    prepare::{self, Build},
};

/// The bench itself, and what runs beside the measured images.
const PROGRAMS: &[&str] = &[
    "bench",
    "leasehold-operator",
    "leasehold-agent",
    "gpu-plugin",
    "kwok-kubelet",
    "nvml-sim",
];

#[derive(clap::Args)]
pub(crate) struct Bench {
    /// match, lease, agent, story, scale, reach or mutants
    name: String,
    /// Print one JSON object on each line
    #[arg(long)]
    json: bool,
    /// Further flags of that bench
    #[arg(last = true)]
    flags: Vec<String>,
}

pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    if bench.name == "mutants" {
        return mutants::run(&bench.flags, bench.json);
    }
    // `match` is measured in this process, which must be optimized. The others measure images in a cluster.
    let folder = if bench.name == "match" {
        let mut cargo = cargo::cargo();
        cargo.args([
            "build",
            "--locked",
            "--release",
            "-p",
            "leasehold-e2e",
            "--bin",
            "bench",
        ]);
        let built = cargo.status().context("run cargo")?;
        ensure!(built.success(), "cargo could not build the bench program");
        "release"
    } else {
        prepare::cluster(Build::Programs(PROGRAMS))?;
        "debug"
    };
    let mut program = Command::new(cargo::target_folder().join(folder).join("bench"));
    program.arg(&bench.name).args(&bench.flags);
    if bench.json {
        program.arg("--json");
    }
    bail!("start the bench program: {}", program.exec())
}
