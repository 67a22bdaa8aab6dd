//! What providers report of a lease, copied into its status.

use std::collections::BTreeMap;

use leasehold_crds::{
    GpuLease,
    lease::{
        GpuLeaseStatus,
        workload::{Endpoint, ResultsAt},
    },
};

use super::{check::Checked, world::World};
use crate::urls::{self, GatewayAddress};

/// Bound of the schema for a URL, in bytes. A status beyond it would be refused whole.
const URL_MAX: usize = 512;

/// Copies what providers report of their own nodes. Money never depends on it.
pub(super) fn copy_provider_reports(world: &World, checked: &Checked, status: &mut GpuLeaseStatus) {
    if let Some(job) = &checked.job {
        status.job = Some(job.clone());
    }
    // Reports about the nodes of another provider are ignored: they could redirect the traffic and results of those nodes.
    let reports = || {
        let allocations = world.allocations.iter();
        allocations.filter_map(|a| {
            let first = a.object.spec.first_rank;
            let ranks = first..first.saturating_add(a.object.spec.nodes);
            Some((ranks, a.object.status.as_ref()?))
        })
    };
    let (lease, gateway) = (&*world.lease, world.gateway.as_ref());
    let mut endpoints: Vec<_> = reports()
        .flat_map(|(ranks, s)| s.endpoints.iter().filter(move |e| ranks.contains(&e.node)))
        .filter_map(|endpoint| published_endpoint(lease, gateway, endpoint))
        .collect();
    // An allocation that is gone takes nothing along: its results outlive it.
    let results = reports()
        .flat_map(|(ranks, s)| s.results.iter().filter(move |r| ranks.contains(&r.node)))
        .filter_map(|results| published_results(lease, gateway, results));
    let mut by_node: BTreeMap<i64, ResultsAt> = status.results.drain(..).map(|r| (r.node, r)).collect();
    by_node.extend(results.map(|r| (r.node, r)));
    status.results = by_node.into_values().take(64).collect();
    endpoints.truncate(256);
    endpoints.sort_by(|a, b| (a.node, &a.name).cmp(&(b.node, &b.name)));
    status.endpoints = endpoints;
}

/// An endpoint as it is published: at a host that the provider reports, or at the URL that follows from the lease. A URL that a
/// provider reports is ignored: callers send the token there. `None` if it cannot be reached.
fn published_endpoint(
    lease: &GpuLease,
    gateway: Option<&GatewayAddress>,
    endpoint: &Endpoint,
) -> Option<Endpoint> {
    let url = match (&endpoint.host, endpoint.port) {
        (Some(_), Some(_)) => None,
        (None, None) => {
            let mut declared = lease.spec.workload.ports().iter();
            let port = declared.find(|port| port.name == endpoint.name)?;
            Some(url(lease, gateway?, &port.name, endpoint.node))
        }
        (Some(_), None) | (None, Some(_)) => return None,
    };
    Some(Endpoint {
        url,
        ..endpoint.clone()
    })
}

/// The results of a node as they are published. `None` if they cannot be reached.
fn published_results(
    lease: &GpuLease,
    gateway: Option<&GatewayAddress>,
    results: &ResultsAt,
) -> Option<ResultsAt> {
    let path = &results.url;
    let url = if path.starts_with('/') {
        format!("{}{path}", url(lease, gateway?, urls::RESULTS, results.node))
    } else {
        path.clone()
    };
    (url.len() <= URL_MAX).then(|| ResultsAt {
        url,
        ..results.clone()
    })
}

fn url(lease: &GpuLease, gateway: &GatewayAddress, port: &str, rank: i64) -> String {
    let namespace = lease.metadata.namespace.as_deref().unwrap_or_default();
    let name = lease.metadata.name.as_deref().unwrap_or_default();
    gateway.url(&urls::host_label(namespace, name, port, rank))
}
