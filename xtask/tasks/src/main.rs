//! The tasks of `cargo xtask` that need the product's crates, each a subcommand with a file of its own. `cargo xtask`
//! builds this program and passes the arguments on.

mod cluster;
mod codegen;
mod deploy;
mod images;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Run a Kubernetes cluster with a chain on this machine
    #[command(subcommand)]
    Cluster(cluster::Task),
    /// Write what follows from the sources: CRDs into the chart, references into docs
    Codegen(codegen::Codegen),
    /// Deploy the escrow to a chain, and print the PaymentNetwork for it
    #[command(
        override_usage = "cargo xtask contracts deploy [OPTIONS] --rpc-url <RPC_URL> --key-file <KEY_FILE>"
    )]
    Deploy(deploy::Deploy),
    /// Build the images as OCI archives, without a registry or a container engine
    Image(images::Images),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().task {
        Task::Cluster(task) => cluster::run(task).await,
        Task::Codegen(codegen) => codegen::run(&codegen),
        Task::Deploy(deploy) => deploy::run(deploy).await,
        Task::Image(images) => images::run(images),
    }
}
