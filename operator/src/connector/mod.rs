//! The connector: it connects this cluster to the gateway of the market, and serves the gateway's streams to ports that
//! leases declare. It holds no wallet and no key of the controller, and reads nothing but reservations.

mod streams;
mod token;

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use leasehold_crds::{GpuReservation, PROVIDER_NAMESPACE_PREFIX};
use leasehold_planner::provider::connector::trim_reservation;
use leasehold_runtime::{Service, cache::Source};
use leasehold_telemetry::metrics::Connector as Metrics;
use leasehold_tunnel::{
    Identity, Links,
    dial::{Credentials, DialError},
    limits::Usages,
    links::Observe,
    tls,
};
use rustls::pki_types::ServerName;

use self::streams::Streams;
use crate::settings::ConnectorArgs;

/// How long streams may go on after the signal to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(25);

/// Runs until a signal.
pub async fn run(args: ConnectorArgs, telemetry: &leasehold_telemetry::Settings) -> anyhow::Result<ExitCode> {
    let server_name = args.server_name().context("--gateway-name: not a DNS name")?;
    let mut service = Service::start(&args.process, telemetry, Metrics::register).await?;
    let reservations = Source::new(service.client()).watch(trim_reservation, |_: &GpuReservation| {});
    service.require(&reservations);
    if !service.ready().await? {
        return Ok(ExitCode::SUCCESS);
    }
    let metrics = service.metrics().clone();
    let links = Links {
        addresses: args.gateways.clone(),
        credentials: Credentials {
            tls: tls::authority_file(args.gateway_ca.clone())?,
            server_name,
            identity: Identity::Provider(args.provider_name.clone()),
            token: token::source(&args).await?,
        },
        server: Arc::new(Streams {
            reservations,
            provider_namespace: format!("{PROVIDER_NAMESPACE_PREFIX}{}", args.provider_name),
            cluster_domain: args.cluster_domain.clone(),
            usages: Usages::new(args.limits),
            metrics: metrics.clone(),
        }),
        observe: Arc::new(Reported(metrics)),
        except: None,
    };
    links.run(service.shutdown().clone(), DRAIN_WITHIN).await;
    service.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Connections are counted, and failures are logged.
struct Reported(Metrics);

impl Observe for Reported {
    fn connected(&self, connected: usize, wanted: usize) {
        self.0.connected(connected, wanted);
    }

    fn failed(&self, address: SocketAddr, error: &DialError) {
        self.0.failed();
        tracing::warn!(%address, %error, "no connection to the gateway; trying again");
    }
}

impl ConnectorArgs {
    /// The name in the certificate of the gateway: the host of the first address, unless another one is given.
    fn server_name(&self) -> anyhow::Result<ServerName<'static>> {
        let first = self.gateways.first().map(String::as_str).unwrap_or_default();
        let host = first.rsplit_once(':').map_or(first, |(host, _)| host);
        let name = self.gateway_name.as_deref().unwrap_or(host);
        Ok(ServerName::try_from(name.to_owned())?)
    }
}
