//! `cargo xtask bench`: builds and runs the bench program, which `tests/e2e` holds: it needs this crate's images.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{image, root};

#[derive(clap::Args)]
pub(crate) struct Bench {
    /// match, lease, agent, story or scale
    name: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Further flags of that bench
    #[arg(last = true)]
    flags: Vec<String>,
}

pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    // Optimized is what is measured in this process; in clusters, the images of what is measured. Else the whole
    // workspace, as for tests: other features would compile every dependency once more.
    let (flags, folder): (&[&str], _) = match bench.name.as_str() {
        "match" => (&["--release", "-p", "leasehold-e2e", "--bin", "bench"], "release"),
        _ => (&["--workspace"], "debug"),
    };
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root())
        .args(["build", "--locked"])
        .args(flags)
        .status()
        .context("run cargo")?;
    ensure!(built.success(), "cargo could not build the bench program");
    let images = image::default_folder();
    let target = images.parent().context("cargo's target directory")?;
    let mut program = Command::new(target.join(folder).join("bench"));
    program.arg(&bench.name).args(&bench.flags);
    if bench.json {
        program.arg("--json");
    }
    bail!("start the bench program: {}", program.exec())
}
