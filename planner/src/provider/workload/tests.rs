use leasehold_crds::{
    lease::workload::{
        EnvVar, Job as JobSpec, NodeShape, Port, Service as ServiceSpec, Session, Storage, Workload,
    },
    market::allocation::GpuAllocationSpec,
    provider::reservation::{GpuReservationSpec, Hosting},
};

use k8s_openapi::{
    api::core::v1::{PodSpec, Toleration},
    apimachinery::pkg::util::intstr::IntOrString,
};
use leasehold_crds::{
    GPU_RESOURCE,
    provider::pool::{Exposure, PoolToleration},
};

use super::*;

fn reservation(workload: Workload, hosting: Hosting) -> GpuReservation {
    let allocation = GpuAllocationSpec {
        nodes: 2,
        per_node: NodeShape {
            cpu: "4".into(),
            memory: "8Gi".into(),
            ephemeral_storage: "10Gi".into(),
            gpus: 3,
        },
        storage: Some(Storage {
            size: "5Gi".into(),
            mount_path: "/data".into(),
        }),
        workload,
        ..GpuAllocationSpec::default()
    };
    let spec = GpuReservationSpec {
        allocation,
        hosting,
        nodes: vec!["a".into(), "b".into()],
        ..GpuReservationSpec::default()
    };
    GpuReservation::new("lease-x", spec)
}

fn session() -> Workload {
    Workload {
        session: Some(Box::new(Session::default())),
        ..Workload::default()
    }
}

fn service() -> Workload {
    let port = Port {
        name: "http".into(),
        port: 8080,
        ..Port::default()
    };
    Workload {
        service: Some(Box::new(ServiceSpec {
            ports: vec![port],
            ..ServiceSpec::default()
        })),
        ..Workload::default()
    }
}

fn objects(workload: Workload, hosting: Hosting) -> Objects {
    Objects::of(
        &reservation(workload, hosting),
        &EgressDenylist::default(),
        &ConnectorPods::default(),
    )
}

fn pod(workload: Workload, hosting: Hosting) -> PodSpec {
    pod_of(&reservation(workload, hosting), 0).spec.unwrap()
}

#[test]
fn a_session_is_root_in_a_user_namespace_and_nowhere_else() {
    let hosting = Hosting {
        user_namespaces: true,
        ..Hosting::default()
    };
    let inside = pod(session(), hosting);
    assert_eq!(inside.host_users, Some(false));
    let container = inside.containers[0].security_context.clone().unwrap();
    assert_eq!(container.allow_privilege_escalation, Some(true));
    let capabilities = container.capabilities.unwrap();
    assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
    let added = capabilities.add.unwrap();
    for capability in ["NET_RAW", "MKNOD", "NET_ADMIN", "SYS_ADMIN"] {
        assert!(!added.iter().any(|c| c == capability), "{capability}");
    }
    assert!(added.iter().any(|c| c == "SETUID"), "sshd changes users");

    let outside = pod(session(), Hosting::default());
    assert_eq!(outside.host_users, None);
    assert_eq!(outside.security_context.unwrap().run_as_non_root, Some(true));
    let container = outside.containers[0].security_context.clone().unwrap();
    assert_eq!(container.allow_privilege_escalation, Some(false));
    assert_eq!(container.capabilities.unwrap().drop, Some(vec!["ALL".to_owned()]));
}

/// The API server would refuse another pod for another reason.
#[test]
fn the_pod_of_a_dry_run_is_that_of_the_workload() {
    for workload in [session(), service()] {
        let hosting = Hosting {
            user_namespaces: true,
            ..Hosting::default()
        };
        let mut reservation = reservation(workload, hosting);
        reservation.spec.allocation.storage = None;
        let sample = sample_pod(&reservation, "lease-checks-a");
        assert_eq!(sample.metadata.namespace.as_deref(), Some("lease-checks-a"));
        let pod = pod_of(&reservation, 0).spec.unwrap();
        assert_eq!(sample.spec, Some(pod));
    }
    let stored = reservation(service(), Hosting::default());
    assert!(stored.spec.allocation.storage.is_some());
    let spec = sample_pod(&stored, "lease-checks-a").spec.unwrap();
    let volumes = spec.volumes.unwrap();
    let mounts = spec.containers[0].volume_mounts.clone().unwrap();
    assert!(mounts.iter().all(|m| volumes.iter().any(|v| v.name == m.name)));
}

#[test]
fn a_workload_that_states_its_user_runs_as_that_user() {
    let mut workload = service();
    workload.service.as_mut().unwrap().container.run_as_user = Some(1000);
    for user_namespaces in [false, true] {
        let hosting = Hosting {
            user_namespaces,
            ..Hosting::default()
        };
        let pod = pod(workload.clone(), hosting);
        let container = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(container.run_as_user, Some(1000));
        assert_eq!(pod.host_users, user_namespaces.then_some(false));
    }
}

#[test]
fn pods_tolerate_the_taint_of_gpus_and_the_taints_of_their_pool() {
    let hosting = Hosting {
        tolerations: vec![PoolToleration {
            key: "sku".into(),
            value: Some("gpu".into()),
            effect: None,
        }],
        ..Hosting::default()
    };
    let tolerations = pod(service(), hosting).tolerations.unwrap();
    let text = |t: &Toleration| format!("{:?} {:?} {:?} {:?}", t.key, t.operator, t.value, t.effect);
    assert_eq!(
        text(&tolerations[0]),
        r#"Some("nvidia.com/gpu") Some("Exists") None None"#
    );
    assert_eq!(
        text(&tolerations[1]),
        r#"Some("sku") Some("Equal") Some("gpu") None"#
    );
}

#[test]
fn no_workload_shares_the_node_s_namespaces_or_gets_a_token() {
    let job = Workload {
        job: Some(Box::new(JobSpec::default())),
        ..Workload::default()
    };
    for workload in [session(), service(), job] {
        let pod = pod(workload, Hosting::default());
        assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
        assert_eq!(pod.automount_service_account_token, Some(false));
        let container = &pod.containers[0];
        assert_eq!(container.security_context.as_ref().unwrap().privileged, None);
        let volumes = pod.volumes.unwrap_or_default();
        assert!(volumes.iter().all(|v| v.host_path.is_none()));
        let limits = container.resources.as_ref().unwrap().limits.clone().unwrap();
        assert_eq!(limits[GPU_RESOURCE].0, "3");
    }
}

#[test]
fn an_image_s_own_variables_open_no_devices_of_the_node() {
    let job = Workload {
        job: Some(Box::new(JobSpec::default())),
        ..Workload::default()
    };
    for workload in [session(), service(), job] {
        let pod = pod(workload, Hosting::default());
        let env = pod.containers[0].env.clone().unwrap();
        let value = |name: &str| {
            let mut found = env.iter().filter(|e| e.name == name);
            let first = found.next().and_then(|e| e.value.clone());
            assert!(found.next().is_none(), "{name} is set twice");
            first
        };
        for name in ["NVIDIA_GDS", "NVIDIA_MOFED", "NVIDIA_NVSWITCH", "NVIDIA_GDRCOPY"] {
            assert_eq!(value(name).as_deref(), Some("disabled"), "{name}");
        }
        for name in [
            "NVIDIA_MIG_CONFIG_DEVICES",
            "NVIDIA_MIG_MONITOR_DEVICES",
            "NVIDIA_IMEX_CHANNELS",
        ] {
            assert_eq!(value(name).as_deref(), Some(""), "{name}");
        }
        assert_eq!(value("NVIDIA_VISIBLE_DEVICES"), None, "the device plugin sets it");
    }
}

#[test]
fn pods_run_as_the_pool_was_when_it_was_reserved() {
    let hosting = Hosting {
        runtime_class_name: Some("nvidia".into()),
        storage_class_name: Some("fast".into()),
        exposure: Exposure::LoadBalancer,
        ..Hosting::default()
    };
    let objects = objects(service(), hosting.clone());
    assert_eq!(
        pod(service(), hosting).runtime_class_name.as_deref(),
        Some("nvidia")
    );
    let claim = objects.volumes[0].spec.clone().unwrap();
    assert_eq!(claim.storage_class_name.as_deref(), Some("fast"));
    let kinds: Vec<_> = objects
        .services
        .iter()
        .filter_map(|s| s.spec.as_ref()?.type_.clone())
        .collect();
    assert_eq!(kinds, ["LoadBalancer", "LoadBalancer"]);
}

/// Everybody else in the cluster, its nodes and other tenants included, is kept out by the policy.
#[test]
fn what_is_exposed_through_a_tunnel_is_reached_from_the_connector_alone() {
    let connector = ConnectorPods {
        namespace: "gpus".into(),
        ..ConnectorPods::default()
    };
    let hosting = |exposure| Hosting {
        exposure,
        ..Hosting::default()
    };
    let built = |exposure| {
        let reservation = reservation(service(), hosting(exposure));
        Objects::of(&reservation, &EgressDenylist::default(), &connector)
    };
    let ingress = |objects: &Objects| {
        let mut policies = objects.policies.iter();
        let ports = policies.find(|p| p.metadata.name.as_deref() == Some("allow-ports"));
        serde_json::to_value(ports.unwrap().spec.as_ref().unwrap().ingress.as_ref().unwrap()).unwrap()
    };
    let tunnel = built(Exposure::Tunnel);
    let ports = serde_json::json!([{"protocol": "TCP", "port": 8080}]);
    let connector = serde_json::json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gpus"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "connector"}},
    }]);
    let from = serde_json::json!([{"from": connector, "ports": ports}]);
    assert_eq!(ingress(&tunnel), from);
    let everybody = serde_json::json!([{"ports": ports}]);
    for exposure in [Exposure::NodePort, Exposure::LoadBalancer] {
        assert_eq!(ingress(&built(exposure)), everybody, "{exposure:?}");
    }
    let is_exposed = |s: &&Service| s.metadata.labels.as_ref().unwrap().contains_key(LABEL_RANK);
    let exposed: Vec<_> = tunnel.services.iter().filter(is_exposed).collect();
    assert_eq!(exposed.len(), 2);
    for service in exposed {
        let spec = service.spec.as_ref().unwrap();
        assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
        assert_eq!(spec.external_traffic_policy, None, "the API server refuses it");
    }
}

#[test]
fn shared_memory_is_as_large_as_the_memory_and_volumes_can_be_written() {
    let pod = pod(session(), Hosting::default());
    let shm = pod.volumes.unwrap().remove(0).empty_dir.unwrap();
    assert_eq!(shm.medium.as_deref(), Some("Memory"));
    assert_eq!(shm.size_limit.unwrap().0, "8Gi");
    let mounts = pod.containers[0].volume_mounts.clone().unwrap();
    assert!(mounts.iter().any(|m| m.mount_path == "/dev/shm"));
    assert_eq!(pod.security_context.unwrap().fs_group, Some(2000));
}

#[test]
fn only_open_ports_are_reachable_and_denied_ranges_are_not() {
    let denylist = EgressDenylist {
        v4: vec!["10.0.0.0/8".into()],
        v6: vec!["fc00::/7".into()],
    };
    let open = Objects::of(
        &reservation(service(), Hosting::default()),
        &denylist,
        &ConnectorPods::default(),
    );
    let closed = Objects::of(
        &reservation(session(), Hosting::default()),
        &denylist,
        &ConnectorPods::default(),
    );
    let names = |o: &Objects| -> Vec<String> {
        o.policies
            .iter()
            .filter_map(|p| p.metadata.name.clone())
            .collect()
    };
    assert_eq!(names(&open), ["deny-all", "allow-internet", "allow-ports"]);
    assert_eq!(names(&closed), ["deny-all", "allow-internet"]);
    let internet = open.policies[1].spec.clone().unwrap().egress.unwrap();
    let excepted: Vec<_> = internet
        .iter()
        .flat_map(|rule| rule.to.iter().flatten())
        .filter_map(|peer| peer.ip_block.clone()?.except)
        .collect();
    assert_eq!(excepted, [denylist.v4, denylist.v6]);
    let ports = open.policies[2].spec.clone().unwrap().ingress.unwrap();
    assert_eq!(ports[0].ports.as_ref().unwrap().len(), 1);
}

/// By its name a pod is the only one of its node, and by its node no two of a lease share one.
#[test]
fn each_pod_is_named_after_its_node_and_runs_there_alone() {
    let mut reservation = reservation(session(), Hosting::default());
    reservation.metadata.uid = Some("u".into());
    for (index, node) in [(0, "a"), (1, "b")] {
        let pod = pod_of(&reservation, index);
        assert_eq!(pod.metadata.name, Some(format!("lease-{index}")));
        assert_eq!(pod.metadata.finalizers, Some(vec![FINALIZER_POD.to_owned()]));
        let owners = pod.metadata.owner_references.unwrap();
        assert_eq!((owners[0].uid.as_str(), owners[0].controller), ("u", Some(true)));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname, Some(format!("lease-{index}")));
        let affinity = serde_json::to_string(&spec.affinity).unwrap();
        assert!(
            affinity.contains(&format!(r#""values":["{node}"]"#)),
            "{affinity}"
        );
        let claims = spec.volumes.unwrap();
        let claim = claims.iter().find_map(|v| v.persistent_volume_claim.as_ref());
        let objects = Objects::of(
            &reservation,
            &EgressDenylist::default(),
            &ConnectorPods::default(),
        );
        let volume = &objects.volumes[usize::try_from(index).unwrap()];
        assert_eq!(claim.map(|c| c.claim_name.clone()), volume.metadata.name);
    }
}

#[test]
fn a_container_that_the_cluster_adds_is_limited_to_little() {
    let mut reservation = reservation(session(), Hosting::default());
    let of = |reservation: &GpuReservation| {
        let limits = Objects::of(reservation, &EgressDenylist::default(), &ConnectorPods::default()).limits;
        let item = limits.spec.unwrap().limits.remove(0);
        (item.default.unwrap(), item.max.unwrap())
    };
    let (default, max) = of(&reservation);
    assert_eq!((default["cpu"].0.as_str(), max["cpu"].0.as_str()), ("100m", "4"));
    assert_eq!(
        (default["memory"].0.as_str(), max["memory"].0.as_str()),
        ("128Mi", "8Gi")
    );
    // The API refuses a default beyond the maximum.
    reservation.spec.allocation.per_node.memory = "64Mi".into();
    assert_eq!(of(&reservation).0["memory"].0, "64Mi");
}

#[test]
fn everything_is_labelled_with_its_lease_and_its_provider() {
    let mut reservation = reservation(session(), Hosting::default());
    let id = crate::escrow::Hash([7; 32]);
    reservation.spec.allocation.escrow.id = id.to_string();
    reservation.spec.allocation_namespace = "provider-prairie".into();
    let expected = labels(&reservation.spec);
    assert_eq!(expected[LABEL_LEASE], lease_name(id));
    assert_eq!(expected[LABEL_PROVIDER], "prairie");
    let all = Objects::of(
        &reservation,
        &EgressDenylist::default(),
        &ConnectorPods::default(),
    );
    let pod = pod_of(&reservation, 1).metadata;
    assert_eq!(pod.labels.as_ref().unwrap()[LABEL_INDEX], "1");
    for labelled in [all.namespace.metadata, all.limits.metadata, pod] {
        let labelled = labelled.labels.unwrap();
        assert!(
            expected
                .iter()
                .all(|(key, value)| labelled.get(key) == Some(value))
        );
    }
}

/// Value of a variable of the first container.
fn variable(pod: &PodSpec, name: &str) -> Option<String> {
    let mut found = pod.containers[0].env.iter().flatten().filter(|e| e.name == name);
    let first = found.next()?;
    assert!(found.next().is_none(), "{name} is set twice");
    first.value.clone()
}

#[test]
fn the_nodes_of_a_job_of_several_nodes_find_each_other() {
    let job = Workload {
        job: Some(Box::new(JobSpec::default())),
        ..Workload::default()
    };
    for workload in [session(), service(), job] {
        let objects = objects(workload.clone(), Hosting::default());
        let mut headless = objects.services.iter().filter_map(|s| s.spec.as_ref());
        let headless = headless
            .find(|s| s.cluster_ip.as_deref() == Some("None"))
            .unwrap();
        assert_eq!(headless.publish_not_ready_addresses, Some(true));
        let reservation = reservation(workload, Hosting::default());
        let pod = pod_of(&reservation, 1).spec.unwrap();
        assert_eq!(pod.subdomain.as_deref(), Some(NAME), "the domain of the Service");
        for (name, value) in [
            ("MASTER_ADDR", "lease-0.lease"),
            ("MASTER_PORT", "29500"),
            ("PET_MASTER_ADDR", "lease-0.lease"),
            ("PET_MASTER_PORT", "29500"),
            ("PET_NNODES", "2"),
            ("PET_NPROC_PER_NODE", "3"),
        ] {
            assert_eq!(variable(&pod, name).as_deref(), Some(value), "{name}");
        }
        for name in ["PET_NODE_RANK", "LEASEHOLD_INDEX"] {
            assert_eq!(variable(&pod, name).as_deref(), Some("1"), "{name}");
        }
    }
}

#[test]
fn a_single_node_meets_itself_and_the_tenant_s_own_variables_stay() {
    let mut workload = service();
    workload.service.as_mut().unwrap().container.env = vec![EnvVar {
        name: "MASTER_PORT".into(),
        value: "1234".into(),
    }];
    let mut reservation = reservation(workload, Hosting::default());
    reservation.spec.allocation.nodes = 1;
    let objects = Objects::of(
        &reservation,
        &EgressDenylist::default(),
        &ConnectorPods::default(),
    );
    assert_eq!(objects.services.len(), 1, "only that of its port");
    let pod = pod_of(&reservation, 0).spec.unwrap();
    assert_eq!(pod.subdomain, None);
    assert_eq!(variable(&pod, "MASTER_ADDR").as_deref(), Some("localhost"));
    assert_eq!(variable(&pod, "MASTER_PORT").as_deref(), Some("1234"));
}

#[test]
fn no_pod_of_a_lease_may_be_evicted_and_no_autoscaler_removes_its_node() {
    let objects = objects(service(), Hosting::default());
    let budget = objects.budget.spec.unwrap();
    assert_eq!(budget.min_available, Some(IntOrString::Int(2)));
    let selector = budget.selector.unwrap();
    let expressions = selector.match_expressions.unwrap();
    assert_eq!(
        (expressions[0].key.as_str(), expressions[0].operator.as_str()),
        (LABEL_RESULTS, "DoesNotExist"),
        "the pods that serve results are not paid for"
    );
    let template = pod_of(&reservation(service(), Hosting::default()), 0).metadata;
    let labels = template.labels.unwrap();
    assert!(
        selector
            .match_labels
            .unwrap()
            .iter()
            .all(|(k, v)| labels.get(k) == Some(v))
    );
    let annotations = template.annotations.unwrap();
    assert_eq!(
        annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"],
        "false"
    );
    assert_eq!(annotations["karpenter.sh/do-not-disrupt"], "true");
}
