//! The routes of all leases, rebuilt when leases change.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use kube::runtime::reflector::Store;
use leasehold_crds::GpuLease;
use leasehold_planner::gateway::routes::{Route, Routes};
use tokio::{sync::Notify, time};

/// Shortest time between two rebuilds.
const REBUILD_AFTER: Duration = Duration::from_millis(200);

/// The present routes.
#[derive(Default)]
pub(crate) struct CurrentRoutes(RwLock<Routes>);

impl CurrentRoutes {
    /// The route of the first label of a host.
    pub(crate) fn get(&self, label: &str) -> Option<Route> {
        let routes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(label).cloned()
    }

    /// Rebuilds the routes whenever leases have changed.
    pub(crate) async fn follow(self: Arc<Self>, leases: Store<GpuLease>, changed: Arc<Notify>) {
        loop {
            let leases = leases.state();
            let next = Routes::of(leases.iter().map(|lease| &**lease));
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
            time::sleep(REBUILD_AFTER).await;
            changed.notified().await;
        }
    }
}
