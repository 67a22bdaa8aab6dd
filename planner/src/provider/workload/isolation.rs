//! What confines a tenant: a namespace with its limits, network policies, and an identity without rights.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{LimitRange, LimitRangeItem, LimitRangeSpec, Namespace, ServiceAccount},
        networking::v1::{
            IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort, NetworkPolicySpec,
        },
        rbac::v1::{RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use leasehold_crds::{
    ANNOTATION_ESCROW, GPU_RESOURCE, GpuReservation, lease::workload::Port, shared::quantity,
};

use super::{
    ConnectorPods, EgressDenylist, NAME, connector::ingress, labels, meta, name_of, pod::resources,
    results_server,
};

/// ClusterRole with the rights of `access.subjects`; the chart creates it.
const ACCESS_ROLE: &str = "leasehold-tenant-access";

/// The namespace, under the baseline Pod Security Standard.
pub(super) fn namespace(reservation: &GpuReservation) -> Namespace {
    let mut labels = labels(&reservation.spec);
    for mode in ["enforce", "warn"] {
        labels.insert(
            format!("pod-security.kubernetes.io/{mode}"),
            "baseline".to_owned(),
        );
    }
    let escrow = &reservation.spec.allocation.escrow;
    Namespace {
        metadata: ObjectMeta {
            name: Some(name_of(reservation)),
            labels: Some(labels),
            annotations: Some([(ANNOTATION_ESCROW.to_owned(), escrow.id.clone())].into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

/// Limits of a container that states none, such as a sidecar that the cluster injects. Without these defaults it would get
/// the maximum, and the pod would need twice what was sold.
const ADDED: [(&str, &str); 3] = [
    ("cpu", "100m"),
    ("memory", "128Mi"),
    ("ephemeral-storage", "64Mi"),
];

/// No container may take more than a node of the lease has, and one that the cluster adds takes little.
pub(super) fn limits(reservation: &GpuReservation) -> LimitRange {
    let max: BTreeMap<String, Quantity> = resources(reservation)
        .into_iter()
        .filter(|(resource, _)| resource != GPU_RESOURCE)
        .collect();
    // Of CPUs and of bytes.
    let thousandths = |text: &str| quantity::millicores(text).unwrap_or(u64::MAX);
    let added = ADDED.into_iter().filter_map(|(resource, little)| {
        let most = max.get(resource)?;
        let less = thousandths(little) < thousandths(&most.0);
        let default = if less {
            Quantity(little.into())
        } else {
            most.clone()
        };
        Some((resource.to_owned(), default))
    });
    let added: BTreeMap<String, Quantity> = added.collect();
    LimitRange {
        metadata: meta(reservation, NAME),
        spec: Some(LimitRangeSpec {
            limits: vec![LimitRangeItem {
                type_: "Container".into(),
                default: Some(added.clone()),
                default_request: Some(added),
                max: Some(max),
                ..LimitRangeItem::default()
            }],
        }),
    }
}

/// The pods' identity: it has no token and no rights.
pub(super) fn account(reservation: &GpuReservation) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(reservation, NAME),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// Rights of the tenant's own subjects in the namespace.
pub(super) fn access(reservation: &GpuReservation) -> Option<RoleBinding> {
    let api_group = "rbac.authorization.k8s.io";
    let subjects = &reservation.spec.allocation.subjects;
    let subject = |s: &leasehold_crds::lease::workload::Subject| Subject {
        kind: s.kind.clone(),
        name: s.name.clone(),
        api_group: Some(api_group.into()),
        namespace: None,
    };
    (!subjects.is_empty()).then(|| RoleBinding {
        metadata: meta(reservation, NAME),
        role_ref: RoleRef {
            api_group: api_group.into(),
            kind: "ClusterRole".into(),
            name: ACCESS_ROLE.into(),
        },
        subjects: Some(subjects.iter().map(subject).collect()),
    })
}

/// Denies everything, then allows DNS and the internet as destinations, traffic between the lease's own pods, its open
/// ports, and results. What is exposed through a tunnel is open to the connector alone.
pub(super) fn policies(
    reservation: &GpuReservation,
    ports: &[Port],
    denylist: &EgressDenylist,
    connector: &ConnectorPods,
) -> Vec<NetworkPolicy> {
    let mut policies = vec![
        NetworkPolicy {
            metadata: meta(reservation, "deny-all"),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(LabelSelector::default()),
                policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
                ..NetworkPolicySpec::default()
            }),
        },
        allow_internet(reservation, denylist),
    ];
    if !ports.is_empty() {
        policies.push(NetworkPolicy {
            metadata: meta(reservation, "allow-ports"),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(LabelSelector::default()),
                policy_types: Some(vec!["Ingress".into()]),
                ingress: Some(vec![ingress(
                    reservation,
                    connector,
                    ports.iter().map(|p| port("TCP", p.port)).collect(),
                )]),
                egress: None,
            }),
        });
    }
    policies.extend(results_server::policy(reservation, connector));
    policies
}

fn port(protocol: &str, port: i64) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(i32::try_from(port).unwrap_or(0))),
        ..NetworkPolicyPort::default()
    }
}

/// The lease's own pods both ways, the cluster's DNS, and every address that is not denied.
fn allow_internet(reservation: &GpuReservation, denylist: &EgressDenylist) -> NetworkPolicy {
    let block = |cidr: &str, except: Vec<String>| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.into(),
            except: Some(except),
        }),
        ..NetworkPolicyPeer::default()
    };
    let own = NetworkPolicyPeer {
        pod_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let dns = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some([("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned())].into()),
            ..LabelSelector::default()
        }),
        pod_selector: Some(LabelSelector {
            match_labels: Some([("k8s-app".to_owned(), "kube-dns".to_owned())].into()),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    NetworkPolicy {
        metadata: meta(reservation, "allow-internet"),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(results_server::selector("DoesNotExist")),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(vec![own.clone()]),
                ports: None,
            }]),
            egress: Some(vec![
                NetworkPolicyEgressRule {
                    to: Some(vec![own]),
                    ports: None,
                },
                NetworkPolicyEgressRule {
                    to: Some(vec![dns]),
                    ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
                },
                NetworkPolicyEgressRule {
                    to: Some(vec![
                        block("0.0.0.0/0", denylist.v4.clone()),
                        block("::/0", denylist.v6.clone()),
                    ]),
                    ports: None,
                },
            ]),
        }),
    }
}
