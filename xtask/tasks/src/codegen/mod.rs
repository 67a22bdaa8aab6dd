//! `cargo xtask codegen`: everything that is written down twice is written by hand once. With `--check` nothing is
//! written, and what is stale fails.

mod api;
mod cli;
mod crds;
mod metrics;
mod values;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use leasehold_testtools::{Stderr, contracts};

#[derive(clap::Args)]
pub(crate) struct Codegen {
    /// Write nothing; fail when what is checked in is stale
    #[arg(long)]
    check: bool,
    /// Leave out what needs more than cargo: the contracts' ABI
    #[arg(long)]
    no_contracts: bool,
}

/// A generated file: its path in the repository, and what it must hold.
struct Generated {
    path: String,
    text: String,
}

pub(crate) fn run(codegen: &Codegen) -> Result<ExitCode> {
    let templates = crds::templates()?;
    let mut stale = crds::leftovers(&templates)?;
    settle(codegen, &templates, &mut stale)?;
    settle(codegen, &[api::reference()?, values::reference()?], &mut stale)?;
    // What needs the binaries comes last: the rest is of use while they don't compile.
    let programs = cli::build()?;
    settle(
        codegen,
        &[metrics::reference(&programs.agent)?, cli::reference(&programs)?],
        &mut stale,
    )?;
    if codegen.check && !codegen.no_contracts {
        contracts::script("build.sh", &["--check".to_owned()], &Stderr::default())?;
    }
    if stale.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("stale; run `cargo xtask codegen` and commit what it writes:");
    for line in stale {
        eprintln!("  {line}");
    }
    Ok(ExitCode::FAILURE)
}

/// Writes the files, or notes those that are stale.
fn settle(codegen: &Codegen, files: &[Generated], stale: &mut Vec<String>) -> Result<()> {
    for file in files {
        let path = leasehold_testtools::root().join(&file.path);
        let have = fs::read_to_string(&path).unwrap_or_default();
        if have == file.text {
            continue;
        }
        if codegen.check {
            stale.push(difference(&file.path, &have, &file.text));
        } else {
            write(&path, &file.text)?;
            println!("wrote {}", file.path);
        }
    }
    Ok(())
}

fn write(path: &PathBuf, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The first line that differs, which is most often enough to know why.
fn difference(path: &str, have: &str, want: &str) -> String {
    if have.is_empty() {
        return format!("{path}: not there");
    }
    let mut wanted = want.lines();
    for (number, line) in have.lines().enumerate() {
        let other = wanted.next().unwrap_or("<end of file>");
        if other != line {
            return format!("{path}:{}: has {line:?}, wanted {other:?}", number + 1);
        }
    }
    format!(
        "{path}: has {} lines, wanted {}",
        have.lines().count(),
        want.lines().count()
    )
}

/// A cell of a Markdown table.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_named_with_the_first_line_that_differs() {
        assert_eq!(difference("a", "", "x\n"), "a: not there");
        assert_eq!(difference("a", "x\ny\n", "x\nz\n"), r#"a:2: has "y", wanted "z""#);
        assert_eq!(difference("a", "x\n", "x\nz\n"), "a: has 1 lines, wanted 2");
    }
}
