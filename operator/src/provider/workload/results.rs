//! What is observed of the pods that serve a job's results.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use leasehold_crds::{GpuReservation, lease::workload::ResultsAt};
use leasehold_planner::provider::{
    reservation::ResultsSeen,
    workload::{self, results::Retention},
};
use leasehold_runtime::cache;

use crate::provider::Provider;

impl Provider {
    /// What is observed of a reservation's results.
    pub(crate) fn results_seen(
        &self,
        reservation: &GpuReservation,
        services: &[Arc<Service>],
    ) -> ResultsSeen {
        if Retention::of_reservation(reservation).is_none() {
            return ResultsSeen::default();
        }
        let name = reservation.name_any();
        let mut pods = self.caches.pods.of(&name);
        pods.retain(|p| p.serves.is_some());
        let spec = &reservation.spec.allocation;
        let ranks = || spec.first_rank..spec.first_rank + spec.nodes;
        let fetched = |rank| pods.iter().any(|p| p.serves == Some(rank) && p.has_succeeded());
        ResultsSeen {
            at: ranks()
                .zip(&reservation.spec.nodes)
                .filter_map(|(rank, node)| {
                    let url = self.results_url(reservation, services, rank, node)?;
                    Some(ResultsAt {
                        node: rank,
                        url,
                        until: None,
                    })
                })
                .collect(),
            fetched: ranks().all(fetched),
            ready: pods.iter().filter(|p| p.ready || p.has_succeeded()).count(),
            trouble: pods.iter().find_map(|p| p.trouble.clone()).unwrap_or_default(),
        }
    }

    fn results_url(
        &self,
        reservation: &GpuReservation,
        services: &[Arc<Service>],
        rank: i64,
        node: &str,
    ) -> Option<String> {
        let node = cache::get(&self.caches.nodes, node, None);
        // A node port is open on every node, wherever the pod runs.
        let node_host = self.node_port_host(node.as_deref());
        workload::results_url(reservation, services.iter().map(|s| &**s), rank, node_host)
    }
}
