//! What providers report of a lease, copied into its status.

use std::collections::BTreeMap;

use leasehold_crds::lease::{GpuLeaseStatus, workload::ResultsAt};

use super::{check::Checked, world::World};

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
    let mut endpoints: Vec<_> = reports()
        .flat_map(|(ranks, s)| s.endpoints.iter().filter(move |e| ranks.contains(&e.node)))
        .cloned()
        .collect();
    // An allocation that is gone takes nothing along: its results outlive it.
    let results = reports()
        .flat_map(|(ranks, s)| s.results.iter().filter(move |r| ranks.contains(&r.node)))
        .cloned();
    let mut by_node: BTreeMap<i64, ResultsAt> = status.results.drain(..).map(|r| (r.node, r)).collect();
    by_node.extend(results.map(|r| (r.node, r)));
    status.results = by_node.into_values().take(64).collect();
    endpoints.truncate(256);
    endpoints.sort_by(|a, b| (a.node, &a.name).cmp(&(b.node, &b.name)));
    status.endpoints = endpoints;
}
