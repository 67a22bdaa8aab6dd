//! Flags, checked once before any IO.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Parser, Subcommand};
use ipnet::IpNet;
use leasehold_planner::{escrow::Address, provider::workload::recipient::Recipient};
use leasehold_runtime::ProcessArgs;

/// Leasehold's operator: a market's or a provider's.
#[derive(Parser, Debug, Clone)]
#[command(name = "leasehold-operator", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub telemetry: leasehold_telemetry::Args,
    #[command(flatten)]
    pub traces: leasehold_telemetry::TraceArgs,
}

/// What this process is.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Places tenants' leases on providers and moves the money for them.
    Market(MarketArgs),
    /// Offers this cluster's GPUs and runs what is paid for.
    Provider(ProviderArgs),
    /// Tells whether an installation can work: kinds, permissions, payment networks.
    CheckInstall(CheckArgs),
    /// Fails, and lists them, while leases or reservations are live.
    CheckUninstall(CheckArgs),
    /// Applies the objects that an installation asks for, once their kinds are served.
    Apply(ApplyArgs),
    /// Serves what a job left on its volume, encrypted, until it was fetched. A provider's operator runs it in a pod.
    Results(ResultsArgs),
}

/// Flags of both roles.
#[derive(clap::Args, Debug, Clone)]
pub struct CommonArgs {
    #[command(flatten)]
    pub process: ProcessArgs,
    /// ServiceAccount it runs as: condition messages name it, so that tenants can let it read their wallet.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "leasehold-market")]
    pub service_account: String,
    /// Seconds in which a call to the chain must be answered.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub chain_deadline: u64,
    /// Seconds in which a transaction must be mined; after that the next reconcile checks it.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub mine_deadline: u64,
}

/// Flags of the market role.
#[derive(clap::Args, Debug, Clone)]
pub struct MarketArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// File with the private key that may close accounts, with the refund to the payer alone.
    #[arg(long, value_name = "FILE")]
    pub closer_key_file: PathBuf,
}

/// Flags of the provider role.
#[derive(clap::Args, Debug, Clone)]
pub struct ProviderArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Name of the GpuProvider on the market; its namespace there is provider-NAME.
    #[arg(long, value_name = "NAME")]
    pub provider_name: String,
    /// Address that is paid; its key belongs nowhere near a cluster.
    #[arg(long, value_name = "ADDRESS")]
    pub payee: Address,
    /// Region that tenants select by.
    #[arg(long, default_value = "", value_name = "REGION")]
    pub region: String,
    /// File with the private key that starts, pauses and credits this provider's legs.
    #[arg(long, value_name = "FILE")]
    pub controller_key_file: PathBuf,
    /// Kubeconfig of the market; this cluster is the market when absent.
    #[arg(long, value_name = "FILE")]
    pub market_kubeconfig: Option<PathBuf>,
    /// Name of the market in reservations.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub market_name: String,
    /// This operator's own image, by which pods serve what jobs left behind; a node must be able to pull it without a Secret.
    #[arg(long, env = "LEASEHOLD_IMAGE", value_name = "IMAGE")]
    pub image: String,
    /// Address that tenants reach node ports at; each node's own when absent.
    #[arg(long, value_name = "IP")]
    pub node_port_address: Option<IpAddr>,
    /// Range of this cluster's pods, services or API servers that lies outside the private ones; no lease reaches it.
    /// Addresses and pod ranges of the nodes are known. May be repeated.
    #[arg(long = "own-range", value_name = "CIDR")]
    pub own_ranges: Vec<IpNet>,
}

/// Flags of the checks.
#[derive(clap::Args, Debug, Clone)]
pub struct CheckArgs {
    /// Kubeconfig of the cluster; the pod's own ServiceAccount when absent.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// ServiceAccount of the market's operator, whose permissions are checked too.
    #[arg(long, env = "LEASEHOLD_MARKET_ACCOUNT", value_name = "NAMESPACE:NAME")]
    pub market_account: Option<String>,
    /// ServiceAccount of the provider's operator, whose permissions are checked too.
    #[arg(long, env = "LEASEHOLD_PROVIDER_ACCOUNT", value_name = "NAMESPACE:NAME")]
    pub provider_account: Option<String>,
    /// Provider whose reservations count; every provider's when absent.
    #[arg(long, env = "LEASEHOLD_PROVIDER_NAME", value_name = "NAME")]
    pub provider_name: Option<String>,
}

/// Flags of `apply`.
#[derive(clap::Args, Debug, Clone)]
pub struct ApplyArgs {
    /// Kubeconfig of the cluster; the pod's own ServiceAccount when absent.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// File with a JSON list of objects of Leasehold's kinds.
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
}

/// Flags of `results`.
#[derive(clap::Args, Debug, Clone)]
pub struct ResultsArgs {
    /// Where the volume is mounted.
    #[arg(long, value_name = "DIRECTORY")]
    pub volume: PathBuf,
    /// Directory in the volume; all of it when absent.
    #[arg(long, value_name = "PATH")]
    pub directory: Option<PathBuf>,
    /// Name of that directory in the archive.
    #[arg(long, default_value = "results", value_name = "NAME")]
    pub name: String,
    /// Path it is served at: whoever doesn't know it finds nothing.
    #[arg(long, value_name = "PATH")]
    pub path: String,
    /// Public key that the archive is encrypted to, `age1…` or `ssh-ed25519 …`. May be repeated.
    #[arg(long = "recipient", required = true, value_name = "KEY")]
    pub recipients: Vec<Recipient>,
    /// Most bytes of files in the archive.
    #[arg(long, value_name = "BYTES")]
    pub bytes_max: u64,
    /// Address to serve at.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
}
