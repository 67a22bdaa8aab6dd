//! Flags, checked once before any IO.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use leasehold_planner::urls::parse_domain;
use leasehold_runtime::ProcessArgs;
use leasehold_tunnel::limits::Limits;

/// The gateway of a market: the public entry to the ports of leases, through the tunnels of the providers' connectors.
#[derive(Parser, Debug, Clone)]
#[command(name = "leasehold-gateway", version, about, max_term_width = 110)]
pub struct Args {
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Domain of the URLs: each port of a lease has a name directly below it. A wildcard record of the DNS must lead to this
    /// gateway.
    #[arg(long, value_name = "DOMAIN", value_parser = parse_domain)]
    pub domain: String,
    /// Address at which users and connectors are served with TLS.
    #[arg(long, default_value = "0.0.0.0:8443", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Directory with the certificate of `*.DOMAIN`, `tls.crt`, and its key, `tls.key`. Changes are noticed within ten
    /// seconds.
    #[arg(long, default_value = "/etc/leasehold/tls", value_name = "DIRECTORY")]
    pub certificate: PathBuf,
    /// `HOST:PORT` that resolves to every replica of the gateway. If absent, there is one replica.
    #[arg(long, value_name = "HOST:PORT")]
    pub replicas: Option<String>,
    /// Certificate authority of the gateway's certificate, by which replicas know each other. If absent, the roots of the
    /// system are used.
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// File with a token of the gateway's own ServiceAccount for the audience `leasehold-gateway`, with which replicas
    /// connect to each other.
    #[arg(long, default_value = "/var/run/leasehold/gateway/token", value_name = "FILE")]
    pub token: PathBuf,
    /// Name of the gateway's own ServiceAccount.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "leasehold-gateway")]
    pub service_account: String,
    /// Connections of users at this replica at once.
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER")]
    pub connections: usize,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub telemetry: leasehold_telemetry::Args,
    #[command(flatten)]
    pub traces: leasehold_telemetry::TraceArgs,
}

impl Args {
    /// Name by which connectors and replicas reach the tunnel.
    pub fn tunnel_name(&self) -> String {
        format!("tunnel.{}", self.domain)
    }
}
