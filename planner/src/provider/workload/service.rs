//! The Services in front of the nodes of a workload.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use leasehold_crds::{GpuReservation, lease::workload::Port, provider::pool::Exposure};

use super::{NAME, labels, meta, rendezvous, results_server};

/// Label with a node's rank in the lease.
pub const LABEL_RANK: &str = "leasehold.dev/rank";
/// Label of a pod with the index of its node in the reservation, from 0.
pub const LABEL_INDEX: &str = "leasehold.dev/index";

/// The Services of the workload's ports and of its results.
pub(super) fn services(reservation: &GpuReservation, ports: &[Port]) -> Vec<Service> {
    let mut services: Vec<Service> = rendezvous::service(reservation, ports).into_iter().collect();
    if !ports.is_empty() {
        let nodes = 0..reservation.spec.allocation.nodes;
        services.extend(nodes.map(|index| exposed(reservation, index, ports)));
    }
    services.extend(results_server::services(reservation));
    services
}

/// Name of the Service of the node with that index in the reservation.
pub(crate) fn service_name(index: i64) -> String {
    format!("{NAME}-{index}")
}

/// The Service of one node, so that each node has an address of its own.
fn exposed(reservation: &GpuReservation, index: i64, ports: &[Port]) -> Service {
    let mut metadata = meta(reservation, &service_name(index));
    let mut selector = labels(&reservation.spec);
    selector.insert(LABEL_INDEX.into(), index.to_string());
    let rank = reservation.spec.allocation.first_rank + index;
    metadata
        .labels
        .get_or_insert_default()
        .insert(LABEL_RANK.into(), rank.to_string());
    let port = |p: &Port| ServicePort {
        name: Some(p.name.clone()),
        port: i32::try_from(p.port).unwrap_or(0),
        target_port: Some(IntOrString::String(p.name.clone())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(service_type(reservation).into()),
            selector: Some(selector),
            // Only for traffic from outside the cluster, which a Service behind the gateway does not get.
            external_traffic_policy: match reservation.spec.hosting.exposure {
                Exposure::NodePort | Exposure::LoadBalancer => Some("Local".into()),
                Exposure::Tunnel => None,
            },
            ports: Some(ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// How the pool exposes its tenants' ports.
pub(super) const fn service_type(reservation: &GpuReservation) -> &'static str {
    match reservation.spec.hosting.exposure {
        Exposure::NodePort => "NodePort",
        Exposure::LoadBalancer => "LoadBalancer",
        Exposure::Tunnel => "ClusterIP",
    }
}
