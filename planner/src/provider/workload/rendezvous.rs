//! How the nodes of one reservation find each other: the names of their pods in the cluster's DNS, and the variables that
//! `torchrun` and other launchers of distributed programs read.

use k8s_openapi::api::core::v1::{EnvVar, Service, ServicePort, ServiceSpec};
use leasehold_crds::{GpuReservation, lease::workload::Port};

use super::{NAME, meta};

/// Port at which the node with index 0 waits for the others, unless the tenant sets `MASTER_PORT`: the default of `torchrun`.
const MASTER_PORT: u16 = 29_500;

/// Whether the reservation has several nodes. A single one needs no name.
fn has_peers(reservation: &GpuReservation) -> bool {
    reservation.spec.allocation.nodes > 1
}

/// Domain of the pods below that of their namespace.
pub(super) fn subdomain(reservation: &GpuReservation) -> Option<String> {
    has_peers(reservation).then(|| NAME.to_owned())
}

/// A headless Service, by which `lease-<index>.lease` resolves to the pod of a node, ready or not.
pub(super) fn service(reservation: &GpuReservation, ports: &[Port]) -> Option<Service> {
    let metadata = meta(reservation, NAME);
    let port = |p: &Port| ServicePort {
        name: Some(p.name.clone()),
        port: i32::try_from(p.port).unwrap_or(0),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    has_peers(reservation).then(|| Service {
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: metadata.labels.clone(),
            publish_not_ready_addresses: Some(true),
            ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        metadata,
        ..Service::default()
    })
}

/// The variables of a pod: address and port of the node with index 0, the number of nodes, and processes per node.
pub(super) fn variables(reservation: &GpuReservation, index: i64) -> Vec<EnvVar> {
    let spec = &reservation.spec.allocation;
    let master = if has_peers(reservation) {
        format!("{NAME}-0.{NAME}")
    } else {
        "localhost".to_owned()
    };
    let port = MASTER_PORT.to_string();
    let plain = |name: &str, value: &str| EnvVar {
        name: name.into(),
        value: Some(value.into()),
        ..EnvVar::default()
    };
    vec![
        plain("MASTER_ADDR", &master),
        plain("MASTER_PORT", &port),
        plain("PET_MASTER_ADDR", &master),
        plain("PET_MASTER_PORT", &port),
        plain("PET_NNODES", &spec.nodes.to_string()),
        plain("PET_NPROC_PER_NODE", &spec.per_node.gpus.to_string()),
        plain("PET_NODE_RANK", &index.to_string()),
    ]
}
