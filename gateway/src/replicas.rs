//! The other replicas: each serves streams to the connectors that are connected to it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use leasehold_tunnel::{
    OpenError, Refused, Serve, StreamRequest, TunnelStream, Tunnels, dial::DialError, links::Observe, splice,
    splice::Patience, wire,
};
use tokio::{net, time};

/// Serves the streams that another replica asks for, by connections of this replica alone: streams are forwarded once.
pub(crate) struct Forward(pub(crate) Arc<Tunnels>);

impl Serve for Forward {
    type Opened = TunnelStream;

    async fn open(&self, request: StreamRequest, headers: &HeaderMap) -> Result<TunnelStream, Refused> {
        let provider = headers
            .get(wire::HEADER_PROVIDER)
            .and_then(|value| value.to_str().ok());
        let provider =
            provider.ok_or_else(|| Refused::new(StatusCode::BAD_REQUEST, "no provider is named"))?;
        self.0
            .open_here(provider, &request)
            .await
            .map_err(OpenError::into_refused)
    }

    async fn serve(&self, mut stream: TunnelStream, mut opened: TunnelStream) {
        drop(splice(&mut stream, &mut opened, Patience::default()).await);
    }
}

/// Keeps the number of replicas that connectors are told.
pub(crate) async fn count(address: String, replicas: Arc<AtomicUsize>) {
    loop {
        match net::lookup_host(&address).await {
            Ok(found) => replicas.store(found.count(), Ordering::Relaxed),
            Err(error) => tracing::warn!(%address, %error, "the name of the replicas does not resolve"),
        }
        time::sleep(Duration::from_secs(2)).await;
    }
}

/// Connections to other replicas are logged.
pub(crate) struct Logged;

impl Observe for Logged {
    fn connected(&self, _: usize, _: usize) {}

    fn failed(&self, address: SocketAddr, error: &DialError) {
        tracing::debug!(%address, %error, "no connection to another replica");
    }
}
