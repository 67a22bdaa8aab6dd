//! Where the connector leads a stream of the market's gateway: to a port that a lease of this market declares, and nowhere
//! else, whatever the gateway asks for.
//!
//! The gateway is not trusted here. Nothing of a request becomes part of an address: it only selects among the reservations
//! that this provider made for its market, and the target follows from the reservation.

use leasehold_crds::{GpuReservation, provider::pool::Exposure};

use super::{
    reservation::holds,
    workload::{RESULTS_PORT, service_name_of_node, service_name_of_results},
};

/// A stream that the gateway asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamRequest {
    /// UID of the GpuLease in the market cluster.
    pub lease_uid: String,
    /// Rank of the node in the lease, from 0.
    pub rank: i64,
    /// TCP port of the container, or [`RESULTS_PORT`] for the results of a job.
    pub port: u16,
}

/// Where a stream leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// DNS name of a Service of the lease: `<service>.<namespace>.svc`.
    pub host: String,
    /// TCP port of the Service.
    pub port: u16,
}

/// Why a stream leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This provider has no reservation for such a lease of this market.
    #[error("this provider has no such lease of this market")]
    NoSuchLease,
    /// The lease has no node of that rank at this provider.
    #[error("the lease has no node of this rank at this provider")]
    NoSuchRank,
    /// The ports of the lease are exposed in another way.
    #[error("the ports of the lease are not exposed through the tunnel")]
    NotTunnelled,
    /// The workload declares no such port, and its job keeps no results.
    #[error("the workload of the lease does not declare this port")]
    NotDeclared,
    /// The workload does not run, and its results are not kept, or not yet.
    #[error("the lease does not run, or its results are not kept")]
    NotRunning,
}

/// Drops what no target follows from.
pub fn trim_reservation(reservation: &mut GpuReservation) {
    reservation.metadata.labels = None;
    reservation.metadata.annotations = None;
    reservation.spec.allocation.workload.clear_container();
    if let Some(status) = &mut reservation.status {
        status.conditions.clear();
    }
}

/// Where a stream leads. `provider_namespace` is the namespace of this provider in the market whose gateway asks.
///
/// Of several rounds of a lease, the newest one that runs counts. An earlier one is about to stop.
pub fn target<'a>(
    reservations: impl IntoIterator<Item = &'a GpuReservation>,
    request: &StreamRequest,
    provider_namespace: &str,
) -> Result<Target, Refusal> {
    let is_asked_for = |reservation: &&GpuReservation| {
        let uid = &reservation.spec.allocation.lease.uid;
        holds(reservation, provider_namespace) && !uid.is_empty() && *uid == request.lease_uid
    };
    let mut of_lease = reservations.into_iter().filter(is_asked_for).peekable();
    if of_lease.peek().is_none() {
        return Err(Refusal::NoSuchLease);
    }
    let reservation = of_lease
        .filter(|reservation| index_of(reservation, request.rank).is_some())
        .max_by_key(|reservation| (runs(reservation), reservation.spec.allocation.round))
        .ok_or(Refusal::NoSuchRank)?;
    let index = index_of(reservation, request.rank).ok_or(Refusal::NoSuchRank)?;
    if reservation.spec.hosting.exposure != Exposure::Tunnel {
        return Err(Refusal::NotTunnelled);
    }
    let workload = &reservation.spec.allocation.workload;
    let keeps_results = workload.job.as_ref().is_some_and(|job| job.output.is_some());
    let is_declared = workload
        .ports()
        .iter()
        .any(|port| port.port == i64::from(request.port));
    let (serves, service) = if is_declared {
        (runs(reservation), service_name_of_node(index))
    } else if keeps_results && request.port == RESULTS_PORT {
        (serves_results(reservation), service_name_of_results(index))
    } else {
        return Err(Refusal::NotDeclared);
    };
    let namespace = reservation.metadata.name.as_deref().unwrap_or_default();
    serves
        .then(|| Target {
            host: format!("{service}.{namespace}.svc"),
            port: request.port,
        })
        .ok_or(Refusal::NotRunning)
}

/// Index in the reservation of the node with that rank in the lease.
fn index_of(reservation: &GpuReservation, rank: i64) -> Option<i64> {
    let allocation = &reservation.spec.allocation;
    let index = rank.checked_sub(allocation.first_rank)?;
    (0..allocation.nodes).contains(&index).then_some(index)
}

/// Whether the workload is prepared or serves.
fn runs(reservation: &GpuReservation) -> bool {
    let status = reservation.status.as_ref();
    status.is_some_and(|status| status.phase.is_running())
}

/// Whether the results of the job are kept. They are served when it has ended.
fn serves_results(reservation: &GpuReservation) -> bool {
    let status = reservation.status.as_ref();
    status.is_some_and(|status| status.results_until.is_some())
}

#[cfg(test)]
mod tests;
