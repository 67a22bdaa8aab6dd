//! `cargo xtask cluster`: a test cluster that stays up until it is taken down, to try things by hand.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use leasehold_testcluster::{Chain, Cluster, ClusterSpec, KwokNode, Quiet, State, Stderr, Tools};

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// Bring a cluster up; it stays until `down`
    Up(Up),
    /// Take a cluster down
    Down(Name),
    /// A shell with kubectl, helm, cast and KUBECONFIG set
    Shell(Name),
    /// Read an OCI archive's images into every real node
    Load(Load),
    /// The clusters of this machine
    List,
}

#[derive(Args)]
pub(crate) struct Name {
    /// Which cluster
    #[arg(long, default_value = "leasehold")]
    name: String,
}

#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    name: Name,
    /// Real nodes
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Nodes played by KWOK, each of 32 CPU, 128Gi and 4 GPUs
    #[arg(long, default_value_t = 0)]
    kwok_nodes: usize,
    /// Seconds between the chain's blocks
    #[arg(long, default_value_t = 1.0)]
    block_time: f64,
    /// Use this chain instead of one of the cluster's own
    #[arg(long)]
    rpc_url: Option<String>,
}

#[derive(Args)]
pub(crate) struct Load {
    #[command(flatten)]
    name: Name,
    /// The archives
    archives: Vec<PathBuf>,
}

pub(crate) async fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Up(up) => bring_up(up).await?,
        Task::Down(Name { name }) => tokio::task::spawn_blocking(move || find(&name)?.tear_down()).await??,
        Task::Shell(Name { name }) => shell(&name).await?,
        Task::Load(Load { name, archives }) => {
            let state = find(&name.name)?;
            let tools = Tools::ensure(&Quiet)?;
            for archive in archives {
                state.load_image(&tools, &archive)?;
            }
        }
        Task::List => list()?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn bring_up(up: Up) -> Result<()> {
    let chain = match up.rpc_url {
        Some(rpc_url) => Chain::External { rpc_url },
        None => Chain::Own {
            block_time: Duration::try_from_secs_f64(up.block_time)?,
        },
    };
    let kwok = (1..=up.kwok_nodes).map(|n| {
        KwokNode::named(format!("kwok-{n}"))
            .capacity("cpu", "32")
            .capacity("memory", "128Gi")
            .capacity("nvidia.com/gpu", "4")
    });
    let spec = ClusterSpec::new(up.name.name, up.nodes)
        .with_chain(chain)
        .with_kwok_nodes(kwok);
    let state = Cluster::up(spec, &Stderr::default()).await?.detach()?;
    println!("export KUBECONFIG={}", state.kubeconfig().display());
    if let Some(rpc_url) = &state.rpc_url {
        println!("export ETH_RPC_URL={rpc_url}");
    }
    Ok(())
}

fn find(name: &str) -> Result<State> {
    State::find(name)?.with_context(|| format!("there is no cluster {name}: see `cargo xtask cluster list`"))
}

async fn shell(name: &str) -> Result<()> {
    let state = find(name)?;
    let tools = Tools::ensure(&Quiet)?;
    let mut path = tools.path_entries();
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let mut shell = Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    shell
        .env("PATH", std::env::join_paths(path)?)
        .env("KUBECONFIG", state.kubeconfig());
    if let Some(rpc_url) = &state.rpc_url {
        shell.env("ETH_RPC_URL", rpc_url);
    }
    bail!("start a shell: {}", shell.exec())
}

fn list() -> Result<()> {
    for state in State::list()? {
        let how = match (state.is_abandoned(), state.ready) {
            (true, _) => "abandoned",
            (false, false) => "starting",
            (false, true) if state.detached => "up",
            (false, true) => "up, owned by a running test",
        };
        println!(
            "{}\t{how}\t{} nodes\t{}",
            state.name,
            state.nodes.len(),
            state.kubeconfig().display()
        );
    }
    Ok(())
}
