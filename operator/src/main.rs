//! Leasehold's operator. Start-up has a fixed order: flags, telemetry, TLS, clients, caches, leadership, controllers.

mod commands;
mod connector;
mod market;
mod payment_networks;
mod payments;
mod provider;
mod settings;

use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Parser as _;

use settings::{Cli, Command};

/// Thousands of small objects live long between answers of some hundred kilobytes that don't: of what the C library's
/// allocator held, half was holes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    let args = Cli::parse();
    // A small container, which only looks around.
    if matches!(args.command, Command::CheckUserNamespace) {
        return Ok(commands::user_namespace::run());
    }
    let service = match args.command {
        Command::Market(_) => "leasehold-operator-market",
        Command::Provider(_) => "leasehold-operator-provider",
        Command::Connector(_) => "leasehold-operator-connector",
        Command::CheckInstall(_) | Command::CheckUninstall(_) | Command::CheckUserNamespace => {
            "leasehold-operator-check"
        }
        Command::Apply(_) => "leasehold-operator-apply",
        Command::Results(_) => "leasehold-operator-results",
    };
    let telemetry = leasehold_telemetry::Settings::new(service, &args.telemetry)?.traced(&args.traces)?;
    let _logs = leasehold_telemetry::start(&telemetry)?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a TLS provider was set before ours"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        match args.command {
            Command::Market(args) => market::run(args, &telemetry).await,
            Command::Provider(args) => provider::run(args, &telemetry).await,
            Command::Connector(args) => connector::run(args, &telemetry).await,
            Command::CheckInstall(args) => commands::checks::install(args).await,
            Command::CheckUninstall(args) => commands::checks::uninstall(args).await,
            Command::Apply(args) => commands::apply::run(args).await,
            Command::Results(args) => commands::results::run(args).await,
            Command::CheckUserNamespace => Ok(commands::user_namespace::run()),
        }
    })
}
