//! Tasks around the code, each a subcommand with a file of its own: `cargo xtask --help`.

mod cluster;

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
    /// A Kubernetes with a chain on this machine, for hands
    #[command(subcommand)]
    Cluster(cluster::Task),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().task {
        Task::Cluster(task) => cluster::run(task).await,
    }
}
