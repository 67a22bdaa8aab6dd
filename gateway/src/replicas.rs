//! The other replicas.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use leasehold_tunnel::{dial::DialError, links::Observe};
use tokio::{net, time};

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
