//! Tasks around the code, each a subcommand with a file of its own: `cargo xtask --help`.

mod bench;
mod cluster;
mod codegen;
mod contracts;
mod demo;
mod images;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the Leasehold repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure, and print a line a metric
    Bench(bench::Bench),
    /// A Kubernetes with a chain on this machine, for hands
    #[command(subcommand)]
    Cluster(cluster::Task),
    /// Write what follows from the sources: CRDs into the chart, references into docs
    Codegen(codegen::Codegen),
    /// The escrow's Solidity sources
    #[command(subcommand)]
    Contracts(contracts::Task),
    /// Two stories on a whole Leasehold of this machine, told step by step, with the money of everybody at the end
    Demo(demo::Demo),
    /// Every test there is: contracts, crates, and the real cluster and chain
    Test(suite::Suite),
    /// Build the images as OCI archives, without a registry or a container engine
    Image(images::Images),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().task {
        Task::Bench(bench) => bench::run(&bench),
        Task::Cluster(task) => cluster::run(task).await,
        Task::Codegen(codegen) => codegen::run(&codegen),
        Task::Contracts(task) => contracts::run(task).await,
        Task::Demo(demo) => demo::run(&demo),
        Task::Test(suite) => suite::run(&suite).await,
        Task::Image(images) => images::run(images),
    }
}
