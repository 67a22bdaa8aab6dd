//! Streams to pods of leases.

use http::{HeaderMap, StatusCode};
use kube::runtime::reflector::Store;
use leasehold_crds::GpuReservation;
use leasehold_planner::provider::connector::{self, Refusal, StreamRequest};
use leasehold_telemetry::metrics::{Connector as Metrics, StreamOutcome};
use leasehold_tunnel::{
    Refused, Serve, TunnelStream,
    limits::{Admitted, Paced, Usages},
    splice,
    splice::Timeouts,
    tcp::Tcp,
};
use tokio::net::TcpStream;

/// Opens streams to the ports that leases of this market declare.
pub(super) struct Streams {
    pub(super) reservations: Store<GpuReservation>,
    /// Namespace of this provider in the market whose gateway asks.
    pub(super) provider_namespace: String,
    /// Domain of this cluster.
    pub(super) cluster_domain: String,
    pub(super) usages: Usages,
    pub(super) metrics: Metrics,
}

impl Serve for Streams {
    type Opened = (Tcp, Admitted);

    async fn open(&self, request: StreamRequest, _: &HeaderMap) -> Result<Self::Opened, Refused> {
        let opened = self.connect(&request).await;
        self.metrics.asked(match &opened {
            Ok(_) => StreamOutcome::Opened,
            Err(refused) if refused.status == StatusCode::BAD_GATEWAY => StreamOutcome::Failed,
            Err(_) => StreamOutcome::Refused,
        });
        opened
    }

    async fn serve(&self, mut stream: TunnelStream, (pod, admitted): Self::Opened) {
        let _open = self.metrics.opened();
        let mut pod = Paced::new(pod, admitted);
        let (moved, ended) = splice(&mut stream, &mut pod, Timeouts::default()).await;
        self.metrics.moved(moved.forth, moved.back);
        if ended.is_ok() {
            pod.get_mut().complete();
        }
    }
}

impl Streams {
    async fn connect(&self, request: &StreamRequest) -> Result<(Tcp, Admitted), Refused> {
        let reservations = self.reservations.state();
        let reservations = reservations.iter().map(|reservation| &**reservation);
        let target = connector::target(reservations, request, &self.provider_namespace)
            .map_err(|refusal| Refused::new(status(refusal), refusal))?;
        let admitted = self
            .usages
            .admit(&request.lease_uid)
            .map_err(|limit| Refused::new(StatusCode::TOO_MANY_REQUESTS, limit))?;
        // With the dot at its end, the name is looked up in no other domain.
        let host = format!("{}.{}.", target.host, self.cluster_domain);
        let pod = TcpStream::connect((host.as_str(), target.port))
            .await
            .map_err(|error| {
                tracing::debug!(host = %target.host, port = target.port, %error, "a pod did not accept a connection");
                Refused::new(
                    StatusCode::BAD_GATEWAY,
                    format!("the program does not accept connections on port {}", target.port),
                )
            })?;
        let pod = Tcp::new(pod).map_err(|error| Refused::new(StatusCode::BAD_GATEWAY, error))?;
        Ok((pod, admitted))
    }
}

/// Whether another connector may know the lease already.
const fn status(refusal: Refusal) -> StatusCode {
    match refusal {
        Refusal::NoSuchLease | Refusal::NoSuchRank | Refusal::NotRunning => StatusCode::NOT_FOUND,
        Refusal::NotTunnelled | Refusal::NotDeclared => StatusCode::FORBIDDEN,
    }
}
