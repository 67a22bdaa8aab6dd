//! The objects of a workload, from its reservation alone: a namespace that isolates the tenant, what runs in it, and what
//! serves the results of a job after its end. The same reservation always gives the same objects.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, LimitRange, Namespace, PersistentVolumeClaim, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::RoleBinding,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use leasehold_crds::{
    GpuReservation, LABEL_LEASE, LABEL_PROVIDER, PROVIDER_NAMESPACE_PREFIX,
    provider::reservation::GpuReservationSpec,
};
use serde::Serialize;

use crate::escrow::lease_name;

mod connector;
mod disruption;
pub mod egress_denylist;
mod ended;
mod endpoints;
mod isolation;
mod pod;
pub mod recipient;
mod rendezvous;
pub mod results;
mod results_server;
mod service;
mod started;
mod storage;
mod uptime;

pub use self::{
    connector::ConnectorPods,
    egress_denylist::EgressDenylist,
    ended::{End, Removal, end_of, main_container, removal_of},
    endpoints::{endpoints, results_url},
    pod::{CONTAINER, FINALIZER_POD, pod_of, sample_pod},
    results_server::{LABEL_RESULTS, RESULTS_PORT, ResultsObjects},
    service::{LABEL_INDEX, LABEL_RANK},
    started::has_run,
    uptime::{AgentReports, ContainerEnd, Uptime},
};
pub(crate) use self::{
    pod::{no_host_devices, on_nodes, tolerations},
    results_server::service_name as service_name_of_results,
    service::service_name as service_name_of_node,
    uptime::SANDBOX_READY,
};

/// Name of the ServiceAccount and other objects of which a namespace has one, and prefix of the names of pods.
pub const NAME: &str = "lease";

/// Every object of a reservation while its workload runs but its pods, in the order in which they are applied. Pods are created
/// afterwards, so that none exists before what confines it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Objects {
    /// The namespace that holds all others.
    pub namespace: Namespace,
    /// Limits of each container.
    pub limits: LimitRange,
    /// Traffic that is allowed; everything else is denied.
    pub policies: Vec<NetworkPolicy>,
    /// The identity of the pods, without a token.
    pub account: ServiceAccount,
    /// No pod may be evicted.
    pub budget: PodDisruptionBudget,
    /// Rights of the tenant's own subjects.
    pub access: Option<RoleBinding>,
    /// SSH keys of a session.
    pub ssh: Option<ConfigMap>,
    /// Volumes, one for each node.
    pub volumes: Vec<PersistentVolumeClaim>,
    /// Addresses of the nodes' ports, and of results.
    pub services: Vec<Service>,
}

impl Objects {
    /// Builds the objects of a reservation.
    #[must_use]
    pub fn of(reservation: &GpuReservation, denylist: &EgressDenylist, connector: &ConnectorPods) -> Self {
        let ports = reservation.spec.allocation.workload.ports();
        Self {
            namespace: isolation::namespace(reservation),
            limits: isolation::limits(reservation),
            policies: isolation::policies(reservation, ports, denylist, connector),
            account: isolation::account(reservation),
            budget: disruption::budget(reservation),
            access: isolation::access(reservation),
            ssh: pod::ssh_keys(reservation),
            volumes: storage::volumes(reservation),
            services: service::services(reservation, ports),
        }
    }
}

/// Labels of a reservation and of all objects that are made for it: its lease and its provider.
#[must_use]
pub fn labels(spec: &GpuReservationSpec) -> BTreeMap<String, String> {
    let provider = spec.allocation_namespace.strip_prefix(PROVIDER_NAMESPACE_PREFIX);
    [
        (LABEL_LEASE.to_owned(), lease_label(spec)),
        (LABEL_PROVIDER.to_owned(), provider.unwrap_or_default().to_owned()),
    ]
    .into()
}

fn lease_label(spec: &GpuReservationSpec) -> String {
    let id = spec.allocation.escrow.id.parse();
    id.map(lease_name).unwrap_or_default()
}

/// Name of the reservation and of its namespace.
fn name_of(reservation: &GpuReservation) -> String {
    reservation.metadata.name.clone().unwrap_or_default()
}

/// Metadata of an object in the reservation's namespace.
fn meta(reservation: &GpuReservation, object: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(object.into()),
        namespace: Some(name_of(reservation)),
        labels: Some(labels(&reservation.spec)),
        ..ObjectMeta::default()
    }
}

/// `name` for the first of several objects, `name-1` for the second.
fn numbered(name: &str, index: i64) -> String {
    match index {
        0 => name.to_owned(),
        index => format!("{name}-{index}"),
    }
}

#[cfg(test)]
mod tests;
