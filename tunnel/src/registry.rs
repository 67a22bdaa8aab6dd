//! The connections that a replica of the gateway has, by who dialled.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use leasehold_planner::provider::connector::StreamRequest;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};

use crate::{
    links::REPLACE_AFTER,
    stream::TunnelStream,
    tunnel::{OpenError, Tunnel},
    wire::Identity,
};

/// Connections of one identity at one replica: several connectors, and old connections whose streams run on.
const PER_IDENTITY: usize = 16;
/// A connection that is older was replaced, and is closed when there are too many.
const REPLACED_AFTER: Duration = Duration::from_secs(2 * REPLACE_AFTER.as_secs());

/// An identity has as many connections as it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {PER_IDENTITY} connections of this identity at this replica, which is the limit")]
pub struct TunnelsFull;

/// How long a stream waits for a connection, after a replica was started or a connector was lost.
const CONNECTED_WITHIN: Duration = Duration::from_millis(2500);
/// How often the other replicas are asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// The connections of one replica.
#[derive(Debug, Default)]
pub struct Tunnels {
    by_identity: Mutex<HashMap<Identity, Vec<Arc<Tunnel>>>>,
    added: Notify,
}

impl Tunnels {
    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, Vec<Arc<Tunnel>>>> {
        self.by_identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection.
    ///
    /// # Errors
    /// When the identity has too many.
    pub fn insert(&self, identity: &Identity, tunnel: Tunnel) -> Result<Arc<Tunnel>, TunnelsFull> {
        let mut by_identity = self.lock();
        let tunnels = by_identity.entry(identity.clone()).or_default();
        if let Some(replaced) = in_the_way(tunnels)? {
            replaced.close();
        }
        let tunnel = Arc::new(tunnel);
        tunnels.push(tunnel.clone());
        drop(by_identity);
        self.added.notify_waiters();
        Ok(tunnel)
    }

    /// Whether a connection of the identity can be added.
    ///
    /// # Errors
    /// When the identity has too many.
    pub fn has_place(&self, identity: &Identity) -> Result<(), TunnelsFull> {
        let by_identity = self.lock();
        let tunnels = by_identity.get(identity).map_or(&[][..], Vec::as_slice);
        in_the_way(tunnels).map(drop)
    }

    /// Removes a connection that has ended.
    pub fn remove(&self, identity: &Identity, tunnel: &Arc<Tunnel>) {
        let mut by_identity = self.lock();
        if let Some(tunnels) = by_identity.get_mut(identity) {
            tunnels.retain(|other| !Arc::ptr_eq(other, tunnel));
            if tunnels.is_empty() {
                by_identity.remove(identity);
            }
        }
    }

    /// Number of connections of connectors, and of those that answer pings.
    #[must_use]
    pub fn connectors(&self) -> (usize, usize) {
        let by_identity = self.lock();
        let of_connectors = by_identity
            .iter()
            .filter(|(identity, _)| matches!(identity, Identity::Provider(_)));
        let mut counts = (0, 0);
        for tunnel in of_connectors.flat_map(|(_, tunnels)| tunnels) {
            counts.0 += 1;
            counts.1 += usize::from(tunnel.is_responding());
        }
        counts
    }

    /// The connections of an identity, the best one first.
    fn of(&self, identity: &Identity) -> Vec<Arc<Tunnel>> {
        let mut tunnels = self.lock().get(identity).cloned().unwrap_or_default();
        tunnels.sort_by_cached_key(|tunnel| (!tunnel.is_responding(), tunnel.streams()));
        tunnels
    }

    /// The connections of other replicas.
    fn of_gateways(&self) -> Vec<Arc<Tunnel>> {
        let by_identity = self.lock();
        let of_gateways = by_identity
            .iter()
            .filter(|(identity, _)| matches!(identity, Identity::Gateway(_)));
        // One connection of each is enough.
        of_gateways
            .filter_map(|(_, tunnels)| {
                tunnels
                    .iter()
                    .min_by_key(|tunnel| (!tunnel.is_responding(), tunnel.age()))
            })
            .cloned()
            .collect()
    }

    /// Opens a stream at a connector of the provider: by a connection of this replica, or by another replica. While there is no
    /// connection, it waits for one for 2.5 seconds.
    ///
    /// # Errors
    /// When no connector of the provider is connected, or the connector refuses.
    pub async fn open(&self, provider: &str, target: &StreamRequest) -> Result<TunnelStream, OpenError> {
        let deadline = Instant::now() + CONNECTED_WITHIN;
        loop {
            let mut added = std::pin::pin!(self.added.notified());
            added.as_mut().enable();
            match self.open_now(provider, target).await {
                Err(OpenError::NotConnected(_) | OpenError::Failed(_)) if Instant::now() < deadline => {
                    drop(time::timeout(ASK_AGAIN, added).await);
                }
                result => return result,
            }
        }
    }

    /// The same without waiting.
    async fn open_now(&self, provider: &str, target: &StreamRequest) -> Result<TunnelStream, OpenError> {
        let mut error = match self.open_here(provider, target).await {
            Err(error) if may_be_served_elsewhere(&error) => error,
            result => return result,
        };
        for gateway in self.of_gateways() {
            match gateway.open(target, Some(provider)).await {
                Err(OpenError::NotConnected(_) | OpenError::Failed(_)) => {}
                Err(OpenError::Refused(refused)) if refused.status == StatusCode::MISDIRECTED_REQUEST => {}
                Err(other) if may_be_served_elsewhere(&other) => {
                    if matches!(error, OpenError::NotConnected(_)) {
                        error = other;
                    }
                }
                result => return result,
            }
        }
        Err(error)
    }

    /// Opens a stream at a connector of the provider by a connection of this replica alone.
    ///
    /// # Errors
    /// When no connector of the provider is connected here, or the connector refuses.
    pub async fn open_here(&self, provider: &str, target: &StreamRequest) -> Result<TunnelStream, OpenError> {
        let mut error = OpenError::NotConnected(provider.to_owned());
        for tunnel in self.of(&Identity::Provider(provider.to_owned())) {
            match tunnel.open(target, None).await {
                Err(other) if may_be_served_elsewhere(&other) => error = other,
                result => return result,
            }
        }
        Err(error)
    }
}

/// The connection that must be closed before another one of the same identity is added, if any.
fn in_the_way(tunnels: &[Arc<Tunnel>]) -> Result<Option<&Arc<Tunnel>>, TunnelsFull> {
    if tunnels.len() < PER_IDENTITY {
        return Ok(None);
    }
    let oldest = tunnels.iter().max_by_key(|tunnel| tunnel.age());
    match oldest.filter(|tunnel| tunnel.age() > REPLACED_AFTER) {
        Some(oldest) => Ok(Some(oldest)),
        None => Err(TunnelsFull),
    }
}

/// Whether another connection may serve what this one did not: the connection failed, is being drained, or its connector has
/// not seen the lease yet.
fn may_be_served_elsewhere(error: &OpenError) -> bool {
    match error {
        OpenError::NotConnected(_) | OpenError::Failed(_) => true,
        OpenError::Refused(refused) => {
            matches!(
                refused.status,
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::NOT_FOUND
            )
        }
    }
}
