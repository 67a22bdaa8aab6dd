//! The pods of the connector, from which alone the ports of a lease are reached through a tunnel.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use leasehold_crds::{GpuReservation, provider::pool::Exposure};

/// Pods of the connector of this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorPods {
    /// Their namespace.
    pub namespace: String,
    /// Labels that all of them have, and no other pods of the namespace; at least one.
    pub labels: BTreeMap<String, String>,
}

impl Default for ConnectorPods {
    fn default() -> Self {
        let component = ("app.kubernetes.io/component", "connector");
        Self {
            namespace: "leasehold-system".into(),
            labels: [component]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        }
    }
}

impl ConnectorPods {
    fn peer(&self) -> NetworkPolicyPeer {
        let name = ("kubernetes.io/metadata.name".to_owned(), self.namespace.clone());
        let selector = |labels: BTreeMap<String, String>| LabelSelector {
            match_labels: Some(labels),
            ..LabelSelector::default()
        };
        NetworkPolicyPeer {
            namespace_selector: Some(selector([name].into())),
            pod_selector: Some(selector(self.labels.clone())),
            ip_block: None,
        }
    }
}

/// Who reaches these ports: the pods of the connector through a tunnel, and everybody otherwise.
pub(super) fn ingress(
    reservation: &GpuReservation,
    connector: &ConnectorPods,
    ports: Vec<NetworkPolicyPort>,
) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from: match reservation.spec.hosting.exposure {
            Exposure::Tunnel => Some(vec![connector.peer()]),
            Exposure::NodePort | Exposure::LoadBalancer => None,
        },
        ports: Some(ports),
    }
}
