//! `cargo xtask`: tasks around the code. This program is small, so that it is compiled within seconds; it starts the
//! long builds, and the programs that they make do the work.

mod bench;
mod contracts;
mod demo;
mod mutants;
mod packages;
mod prepare;
mod suite;
mod tasks;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use leasehold_testtools::{Stderr, cargo};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Tasks of the Leasehold repository"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run two leases on a complete Leasehold on this machine, and account for every unit of money
    Demo(demo::Demo),
    /// Run every test: contracts, crates, and the real cluster and chain
    Test(suite::Suite),
    /// Measure, and print one line for each metric
    Bench(bench::Bench),
    /// Install the Debian packages that the other tasks need
    Packages(packages::Packages),
    /// Print the path of a pinned program of crates.io, and compile it when this machine does not have it
    Tool {
        /// cargo-deny or cargo-mutants
        name: String,
    },
    /// Compile, test or deploy the escrow contract
    #[command(subcommand)]
    Contracts(contracts::Task),
    /// Run a Kubernetes cluster with a chain on this machine
    #[command(disable_help_flag = true)]
    Cluster(Passed),
    /// Write what follows from the sources: CRDs into the chart, references into docs
    #[command(disable_help_flag = true)]
    Codegen(Passed),
    /// Build the images as OCI archives, without a registry or a container engine
    #[command(disable_help_flag = true)]
    Image(Passed),
}

/// What is passed on to the program that does the task, `--help` included.
#[derive(clap::Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Demo(demo) => demo::run(&demo),
        Task::Test(suite) => suite::run(&suite),
        Task::Bench(bench) => bench::run(&bench),
        Task::Packages(packages) => packages::run(&packages),
        Task::Tool { name } => cargo::tool(&name, &Stderr::default()).map(|path| {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }),
        Task::Contracts(task) => contracts::run(task),
        Task::Cluster(passed) => tasks::run("cluster", &passed.arguments),
        Task::Codegen(passed) => tasks::run("codegen", &passed.arguments),
        Task::Image(passed) => tasks::run("image", &passed.arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("FAIL  {error:#}");
        ExitCode::FAILURE
    })
}
