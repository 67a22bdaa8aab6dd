//! Flags, checked once before any IO.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Parser, Subcommand};
use ipnet::IpNet;
use leasehold_planner::{
    escrow::Address,
    provider::workload::{ConnectorPods, recipient::Recipient},
    urls::{self, GatewayAddress},
};
use leasehold_runtime::ProcessArgs;
use leasehold_tunnel::limits::Limits;

/// The Leasehold operator, for a market or for a provider.
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

/// The role or the task of the process.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Run the market operator: place leases on providers, and open, fund and close their escrow accounts.
    Market(MarketArgs),
    /// Run the provider operator: offer the GPUs of this cluster, and run paid workloads.
    Provider(ProviderArgs),
    /// Connect this cluster to the gateway of the market, and serve its streams to ports of leases.
    Connector(ConnectorArgs),
    /// Check an installation: CRDs, permissions, PaymentNetworks.
    CheckInstall(CheckArgs),
    /// Fail while leases or reservations are active, and list them.
    CheckUninstall(CheckArgs),
    /// Apply the objects of an installation as soon as their CRDs are established.
    Apply(ApplyArgs),
    /// Fail unless this container is root in a user namespace of its own and can open exactly one GPU. The provider operator runs
    /// this in a pod on each node before it sells root there.
    CheckUserNamespace,
    /// Serve the encrypted results of a job until they have been fetched. The provider operator runs this in a pod.
    Results(ResultsArgs),
}

/// Flags of both roles.
#[derive(clap::Args, Debug, Clone)]
pub struct CommonArgs {
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Name of the operator's own ServiceAccount. Condition messages contain it, so that tenants can permit it to read
    /// their wallet.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "leasehold-market")]
    pub service_account: String,
    /// Timeout of a call to the chain, in seconds.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub chain_deadline: u64,
    /// Seconds to wait until a transaction is mined. After that the next reconcile checks it.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub mine_deadline: u64,
}

/// Flags of the market role.
#[derive(clap::Args, Debug, Clone)]
pub struct MarketArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// File with the private key that closes accounts. The remainder is refunded to the payer only.
    #[arg(long, value_name = "FILE")]
    pub closer_key_file: PathBuf,
    /// Domain of the market's gateway. Each port behind it is published as https://PORT-LEASE-HASH.DOMAIN. If absent, leases with
    /// ports or results are not placed on pools with exposure Tunnel.
    #[arg(long, value_name = "DOMAIN", value_parser = urls::parse_domain)]
    pub gateway_domain: Option<String>,
    /// TCP port at which the gateway is reached from outside.
    #[arg(long, default_value_t = 443, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub gateway_port: u16,
}

impl MarketArgs {
    /// Where the gateway is reached from outside, if the market has one.
    pub fn gateway(&self) -> Option<GatewayAddress> {
        let domain = self.gateway_domain.clone()?;
        Some(GatewayAddress {
            domain,
            port: self.gateway_port,
        })
    }
}

/// Flags of the provider role.
#[derive(clap::Args, Debug, Clone)]
pub struct ProviderArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Name of the GpuProvider in the market cluster. Its namespace there is provider-NAME.
    #[arg(long, value_name = "NAME")]
    pub provider_name: String,
    /// Address that receives the earnings. Do not store its key in a cluster.
    #[arg(long, value_name = "ADDRESS")]
    pub payee: Address,
    /// Region by which tenants select providers.
    #[arg(long, default_value = "", value_name = "REGION")]
    pub region: String,
    /// File with the private key that starts, pauses, credits and ends the legs of this provider.
    #[arg(long, value_name = "FILE")]
    pub controller_key_file: PathBuf,
    /// Kubeconfig of the market cluster. If absent, this cluster is the market.
    #[arg(long, value_name = "FILE")]
    pub market_kubeconfig: Option<PathBuf>,
    /// Name of the market in reservations.
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub market_name: String,
    /// Image of this operator, which pods use to serve job results. Nodes must be able to pull it without a Secret.
    #[arg(long, env = "LEASEHOLD_IMAGE", value_name = "IMAGE")]
    pub image: String,
    /// Namespace with the labels of the namespaces of leases, in which pods are created by a dry run before a lease is accepted,
    /// and pods that probe user namespaces. If absent, refusals by the cluster are known only after a lease is paid, and
    /// containers cannot be root.
    #[arg(long, value_name = "NAMESPACE")]
    pub checks_namespace: Option<String>,
    /// Address of node ports for tenants. If absent, the address of each node is used.
    #[arg(long, value_name = "IP")]
    pub node_port_address: Option<IpAddr>,
    /// Public range of pods, Services or API servers of this cluster that leases must not reach. The addresses and pod
    /// ranges of the nodes are always excluded. Can be repeated.
    #[arg(long = "own-range", value_name = "CIDR")]
    pub own_ranges: Vec<IpNet>,
    /// Namespace of the connector, from whose pods alone leases are reached through a tunnel. If absent, the namespace of the
    /// operator.
    #[arg(long, value_name = "NAMESPACE")]
    pub connector_namespace: Option<String>,
    /// Label that all pods of the connector have, and no other pods of their namespace. Can be repeated.
    #[arg(
        long = "connector-label",
        value_name = "KEY=VALUE",
        value_parser = label,
        default_value = "app.kubernetes.io/component=connector"
    )]
    pub connector_labels: Vec<(String, String)>,
}

impl ProviderArgs {
    /// The pods of the connector.
    pub fn connector_pods(&self) -> ConnectorPods {
        let namespace = self.connector_namespace.as_ref();
        ConnectorPods {
            namespace: namespace.unwrap_or(&self.common.process.namespace).clone(),
            labels: self.connector_labels.iter().cloned().collect(),
        }
    }
}

/// A label with its value: `app.kubernetes.io/component=connector`.
fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("{text:?} is no label: write KEY=VALUE")),
    }
}

/// Flags of the connector.
#[derive(clap::Args, Debug, Clone)]
pub struct ConnectorArgs {
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Name of the GpuProvider in the market cluster.
    #[arg(long, value_name = "NAME")]
    pub provider_name: String,
    /// `HOST:PORT` of the market's gateway. A name that resolves to several addresses leads to several replicas. Can be repeated.
    #[arg(long = "gateway", required = true, value_name = "HOST:PORT")]
    pub gateways: Vec<String>,
    /// Name in the gateway's certificate, `tunnel.` and the domain of the market's URLs. If absent, the host of the first
    /// `--gateway`.
    #[arg(long, value_name = "NAME")]
    pub gateway_name: Option<String>,
    /// Certificate authority of the gateway, the only one that is trusted then. If absent, the roots of the system are used.
    #[arg(long, value_name = "FILE")]
    pub gateway_ca: Option<PathBuf>,
    /// Kubeconfig of the market cluster with the account `connector` of the provider's namespace. It makes a token for each
    /// connection. If absent, this cluster is the market.
    #[arg(long, value_name = "FILE")]
    pub market_kubeconfig: Option<PathBuf>,
    /// Domain of this cluster, below which Services have their names. Names are looked up there and nowhere else.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN", value_parser = urls::parse_domain)]
    pub cluster_domain: String,
    /// File with a token for the audience `leasehold-gateway`, if this cluster is the market.
    #[arg(long, default_value = "/var/run/leasehold/gateway/token", value_name = "FILE")]
    pub token_file: PathBuf,
    #[command(flatten)]
    pub limits: Limits,
}

/// Flags of the checks.
#[derive(clap::Args, Debug, Clone)]
pub struct CheckArgs {
    /// Kubeconfig of the cluster. If absent, the ServiceAccount of the pod is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// ServiceAccount of the market operator. Its permissions are checked.
    #[arg(long, env = "LEASEHOLD_MARKET_ACCOUNT", value_name = "NAMESPACE:NAME")]
    pub market_account: Option<String>,
    /// ServiceAccount of the provider operator. Its permissions are checked.
    #[arg(long, env = "LEASEHOLD_PROVIDER_ACCOUNT", value_name = "NAMESPACE:NAME")]
    pub provider_account: Option<String>,
    /// Provider whose reservations are checked. If absent, those of every provider are.
    #[arg(long, env = "LEASEHOLD_PROVIDER_NAME", value_name = "NAME")]
    pub provider_name: Option<String>,
}

/// Flags of `apply`.
#[derive(clap::Args, Debug, Clone)]
pub struct ApplyArgs {
    /// Kubeconfig of the cluster. If absent, the ServiceAccount of the pod is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// File with a JSON list of objects of the Leasehold API.
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
}

/// Flags of `results`.
#[derive(clap::Args, Debug, Clone)]
pub struct ResultsArgs {
    /// Directory at which the volume is mounted.
    #[arg(long, value_name = "DIRECTORY")]
    pub volume: PathBuf,
    /// Directory in the volume. If absent, the entire volume is served.
    #[arg(long, value_name = "PATH")]
    pub directory: Option<PathBuf>,
    /// Name of that directory in the archive.
    #[arg(long, default_value = "results", value_name = "NAME")]
    pub name: String,
    /// Secret URL path of the archive.
    #[arg(long, value_name = "PATH")]
    pub path: String,
    /// Public key for the encryption of the archive, `age1…` or `ssh-ed25519 …`. Can be repeated.
    #[arg(long = "recipient", required = true, value_name = "KEY")]
    pub recipients: Vec<Recipient>,
    /// Maximum size of all files in the archive, in bytes.
    #[arg(long, value_name = "BYTES")]
    pub bytes_max: u64,
    /// Address of the server.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
}
