//! `cargo xtask test`: every test there is, one after the other, with a count at the end.

use std::{
    io::{BufRead as _, BufReader},
    process::{ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};
use leasehold_testtools::{Stderr, cargo, debian};

use crate::contracts;
use crate::prepare::{self, Build};

#[derive(clap::Args)]
pub(crate) struct Suite {
    /// Only the tests without a cluster: seconds instead of minutes
    #[arg(long)]
    quick: bool,
    /// Leave out breaking the contract in each known way
    #[arg(long)]
    no_mutants: bool,
}

/// What cargo's test runner counted, summed up over its binaries.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

pub(crate) fn run(suite: &Suite) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut count = Count::default();
    let mut failures = Vec::new();

    let quick = suite.quick || !can_run_clusters();
    if quick {
        cargo::build_tests(&Stderr::default())?;
    } else {
        prepare::cluster(Build::Tests)?;
    }

    heading("contracts");
    let contracts = contracts::test(&contracts::Test {
        mutants: !suite.quick && !suite.no_mutants,
        gas: true,
        arguments: Vec::new(),
    });
    match contracts {
        Ok(()) => count.passed += 1,
        Err(error) => {
            eprintln!("{error:#}");
            count.failed += 1;
            failures.push("contracts".to_owned());
        }
    }

    heading(if quick {
        "crates, without a cluster"
    } else {
        "crates, with real clusters and chains"
    });
    cargo_test(quick, &mut count, &mut failures)?;

    println!();
    for failure in &failures {
        println!("failed: {failure}");
    }
    println!("{} s in all", begun.elapsed().as_secs());
    println!(
        "{} passed, {} failed, {} skipped",
        count.passed, count.failed, count.skipped
    );
    Ok(if failures.is_empty() && count.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether this process may make a cluster. When it may not, that is printed, as most of what there is to test is then
/// left out.
fn can_run_clusters() -> bool {
    match debian::require_root() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("SKIPPED: every test with a cluster: {error:#}");
            false
        }
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Runs cargo's tests, shows what they print, and sums up their closing lines.
fn cargo_test(quick: bool, count: &mut Count, failures: &mut Vec<String>) -> Result<()> {
    let mut cargo = cargo::cargo();
    cargo
        .args([
            "test",
            "--workspace",
            "--locked",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    if quick {
        cargo.env("LEASEHOLD_TESTS", "quick");
    }
    let mut child = cargo.spawn().context("run cargo test")?;
    let output = child.stdout.take().context("cargo's output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(closing) = line.strip_prefix("test result: ") {
            count.add(closing);
        } else if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            failures.push(test.to_owned());
        }
    }
    if !child.wait().context("wait for cargo test")?.success() && failures.is_empty() {
        failures.push("cargo test".to_owned());
    }
    Ok(())
}

impl Count {
    /// Adds `ok. 5 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, closing: &str) {
        let of = |word: &str| {
            let before = closing.split(word).next()?;
            before.trim_end().rsplit(' ').next()?.parse::<u64>().ok()
        };
        self.passed += of("passed").unwrap_or(0);
        self.failed += of("failed").unwrap_or(0);
        self.skipped += of("ignored").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed_up() {
        let mut count = Count::default();
        count.add("ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        count.add("FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!((count.passed, count.failed, count.skipped), (7, 3, 1));
    }
}
