//! `cargo xtask packages`: the Debian packages alone, for a person who prepares a machine or an image of one.

use std::process::ExitCode;

use anyhow::Result;
use leasehold_testtools::{Stderr, debian};

#[derive(clap::Args)]
pub(crate) struct Packages {
    /// Only list the packages that are missing, one on each line; exit with 1 when there are any
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(packages: &Packages) -> Result<ExitCode> {
    if !packages.check {
        debian::ensure(&Stderr::default())?;
        return Ok(ExitCode::SUCCESS);
    }
    let missing = debian::missing()?;
    for package in &missing {
        println!("{package}");
    }
    Ok(if missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
