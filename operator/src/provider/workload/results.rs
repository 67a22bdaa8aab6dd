//! What is observed of the pods that serve a job's results.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use leasehold_crds::{GpuReservation, lease::workload::ResultsAt};
use leasehold_planner::provider::{
    reservation::ResultsSeen,
    workload::{LABEL_RESULTS, RESULTS_PORT, results::Retention},
};
use leasehold_runtime::cache;

use super::observe;
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

    /// The address contains the allocation's uid, so that a port scan does not find it.
    fn results_url(
        &self,
        reservation: &GpuReservation,
        services: &[Arc<Service>],
        rank: i64,
        node: &str,
    ) -> Option<String> {
        let service = services
            .iter()
            .find(|s| s.labels().get(LABEL_RESULTS) == Some(&rank.to_string()))?;
        let (host, port) = match observe::load_balancer(service) {
            Some(host) => (host, RESULTS_PORT),
            // A node port is open on every node, wherever the pod runs.
            None => (
                self.node_port_host(cache::get(&self.caches.nodes, node, None).as_deref())?,
                service.spec.as_ref()?.ports.as_ref()?.first()?.node_port?,
            ),
        };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Some(format!(
            "http://{host}:{port}/{}",
            reservation.spec.allocation_uid
        ))
    }
}
