//! The gateway of a market: the public entry to the ports of leases. It holds no wallet and reads no Secret but its own
//! certificate; connectors of providers connect to it, and it opens streams to pods through them.

mod authenticate;
mod certificate;
mod http;
mod listener;
mod replicas;
mod routes;
mod settings;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Parser as _;
use kube::runtime::reflector::Store;
use leasehold_crds::GpuLease;
use leasehold_planner::gateway::routes::trim_lease;
use leasehold_runtime::{Service, cache::Source};
use leasehold_telemetry::metrics::Gateway as Metrics;
use leasehold_tunnel::{
    Forward, Identity, Links, Tunnels,
    accept::Acceptor,
    dial::{Credentials, token_file},
    limits::Usages,
    tls,
};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
};

use crate::{
    authenticate::Market,
    certificate::Certificate,
    http::{
        Proxy,
        upstream::{Streams, Upstream},
    },
    listener::Listener,
    replicas::Logged,
    routes::CurrentRoutes,
    settings::Args,
};

/// Many short-lived buffers of different sizes beside objects that live long.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let telemetry =
        leasehold_telemetry::Settings::new("leasehold-gateway", &args.telemetry)?.traced(&args.traces)?;
    let _logs = leasehold_telemetry::start(&telemetry)?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a TLS provider was set before ours"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(run(args, &telemetry))
}

/// Runs until a signal.
async fn run(args: Args, telemetry: &leasehold_telemetry::Settings) -> anyhow::Result<ExitCode> {
    let certificate = Certificate::read(&args.certificate)?;
    let tcp = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}: choose another --listen", args.listen))?;
    let mut service = Service::start(&args.process, telemetry, Metrics::register).await?;
    let (routes, changed) = (Arc::new(CurrentRoutes::default()), Arc::new(Notify::new()));
    let leases: Store<GpuLease> = {
        let changed = changed.clone();
        Source::new(service.client()).watch(trim_lease, move |_: &GpuLease| changed.notify_one())
    };
    service.require(&leases);
    let tunnels = Arc::new(Tunnels::default());
    let market = Market {
        client: service.client().clone(),
        own_user: format!(
            "system:serviceaccount:{}:{}",
            args.process.namespace, args.service_account
        ),
        replicas: Arc::default(),
        reviews: Arc::new(Semaphore::new(16)),
    };
    let streams = Streams {
        tunnels: tunnels.clone(),
        usages: Arc::new(Usages::new(args.limits)),
    };
    let entry = Listener {
        proxy: Arc::new(Proxy {
            domain: args.domain.clone(),
            routes: routes.clone(),
            upstream: Upstream::new(streams.clone()),
            metrics: service.metrics().clone(),
        }),
        streams,
        tunnels: Arc::new(Acceptor {
            replica: args.process.identity.clone(),
            authenticate: market.clone(),
            tunnels: tunnels.clone(),
        }),
        tls_of_users: certificate.for_users()?,
        tls_of_tunnels: certificate.for_tunnels()?,
        tunnel_name: args.tunnel_name(),
        users: Arc::new(Semaphore::new(args.connections)),
    };
    if !service.ready().await? {
        return Ok(ExitCode::SUCCESS);
    }
    tokio::spawn(certificate.reload());
    tokio::spawn(routes.follow(leases, changed));
    tokio::spawn(report(tunnels.clone(), service.metrics().clone()));
    let mut peers = None;
    if let Some(address) = &args.replicas {
        tokio::spawn(replicas::count(address.clone(), market.replicas.clone()));
        let links = links(&args, address, &tunnels)?;
        // Streams of other replicas go on as long as those of this one.
        peers = Some(tokio::spawn(
            links.run(service.shutdown().clone(), listener::DRAIN_WITHIN),
        ));
    }
    entry.run(tcp, service.shutdown().clone()).await;
    if let Some(peers) = peers {
        drop(peers.await);
    }
    service.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Connections to the other replicas.
fn links(args: &Args, address: &str, tunnels: &Arc<Tunnels>) -> anyhow::Result<Links<Forward, Logged>> {
    Ok(Links {
        addresses: vec![address.to_owned()],
        credentials: Credentials {
            tls: tls::authority_file(args.authority.clone())?,
            server_name: ServerName::try_from(args.tunnel_name()).context("the domain")?,
            identity: Identity::Gateway(args.process.identity.clone()),
            token: token_file(args.token.clone()),
        },
        server: Arc::new(Forward(tunnels.clone())),
        observe: Arc::new(Logged),
        except: Some(args.process.identity.clone()),
    })
}

/// Keeps the metrics of the connections of connectors.
async fn report(tunnels: Arc<Tunnels>, metrics: Metrics) {
    loop {
        let (connected, responding) = tunnels.connectors();
        metrics.connectors(connected, responding);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
