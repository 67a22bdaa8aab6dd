use leasehold_crds::{
    lease::workload::{Job as JobOfLease, JobOutput, NodeShape, Storage, Workload},
    market::allocation::GpuAllocationSpec,
    provider::{
        pool::Exposure,
        reservation::{GpuReservationSpec, Hosting},
    },
};

use super::*;
use crate::provider::workload::pod_of;

fn reservation(user_namespaces: bool) -> GpuReservation {
    let output = JobOutput {
        path: "/data/out".into(),
        keep_results_for: "1h".into(),
        recipients: vec!["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj".into()],
    };
    let allocation = GpuAllocationSpec {
        nodes: 2,
        first_rank: 3,
        per_node: NodeShape {
            cpu: "4".into(),
            memory: "64Mi".into(),
            ephemeral_storage: "10Gi".into(),
            gpus: 3,
        },
        storage: Some(Storage {
            size: "5Gi".into(),
            mount_path: "/data".into(),
        }),
        workload: Workload {
            job: Some(Box::new(JobOfLease {
                output: Some(output),
                ..JobOfLease::default()
            })),
            ..Workload::default()
        },
        ..GpuAllocationSpec::default()
    };
    GpuReservation::new(
        "lease-x",
        GpuReservationSpec {
            allocation,
            allocation_uid: "uid".into(),
            hosting: Hosting {
                user_namespaces,
                ..Hosting::default()
            },
            nodes: vec!["a".into(), "b".into()],
            ..GpuReservationSpec::default()
        },
    )
}

fn pod(user_namespaces: bool) -> PodSpec {
    let made = jobs(&reservation(user_namespaces), "operator:1");
    made[1].spec.clone().unwrap().template.spec.unwrap()
}

#[test]
fn each_node_s_volume_is_served_as_its_job_had_it() {
    let built = Objects::of(
        &reservation(true),
        &EgressDenylist::default(),
        &ConnectorPods::default(),
    );
    let claim_of = |pod: &PodSpec| {
        let mut volumes = pod.volumes.iter().flatten();
        volumes.find_map(|v| Some(v.persistent_volume_claim.clone()?.claim_name))
    };
    let claim = |job: &Job| claim_of(&job.spec.clone().unwrap().template.spec.unwrap());
    let of = |jobs: &[Job]| -> Vec<_> { jobs.iter().map(claim).collect() };
    let volumes: Vec<_> = built.volumes.iter().map(|v| v.metadata.name.clone()).collect();
    assert_eq!(volumes, [Some("data".into()), Some("data-1".into())]);
    let of_job = |index| claim_of(&pod_of(&reservation(true), index).spec.unwrap());
    assert_eq!([of_job(0), of_job(1)].to_vec(), volumes);
    assert_eq!(of(&jobs(&reservation(true), "operator:1")), volumes);
    let args = pod(true).containers[0].args.clone().unwrap();
    assert!(args.contains(&"--directory=out".to_owned()), "{args:?}");
}

#[test]
fn it_can_only_read_and_takes_nothing_that_is_sold() {
    for root in [true, false] {
        let pod = pod(root);
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(
            pod.host_users,
            root.then_some(false),
            "root only where that is nobody outside"
        );
        let context = pod.security_context.unwrap();
        assert_eq!(context.run_as_user, Some(if root { 0 } else { UNPRIVILEGED }));
        let container = &pod.containers[0];
        assert_eq!(container.volume_mounts.as_ref().unwrap()[0].read_only, Some(true));
        let security = container.security_context.clone().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.read_only_root_filesystem, Some(true));
        let resources = container.resources.clone().unwrap();
        assert!(resources.requests.unwrap().values().all(|q| q.0 == "0"));
        // The limit range allows no more than the tenant's node.
        assert_eq!(resources.limits.unwrap()["memory"].0, (64u64 << 20).to_string());
    }
}

#[test]
fn it_is_reached_at_its_port_alone_and_reaches_nothing() {
    let reservation = reservation(true);
    let built = Objects::of(
        &reservation,
        &EgressDenylist::default(),
        &ConnectorPods::default(),
    );
    let internet = built
        .policies
        .iter()
        .find(|p| p.metadata.name.as_deref() == Some("allow-internet"));
    let chosen = internet.unwrap().spec.clone().unwrap().pod_selector;
    assert_eq!(chosen, Some(selector("DoesNotExist")));
    let open = policy(&reservation, &ConnectorPods::default())
        .unwrap()
        .spec
        .unwrap();
    assert_eq!(open.pod_selector, Some(selector("Exists")));
    assert_eq!(open.egress, None);
    let services = services(&reservation);
    assert_eq!(services.len(), 2);
    for (index, service) in services.iter().enumerate() {
        let rank = (3 + index).to_string();
        assert_eq!(
            service.spec.clone().unwrap().selector.unwrap()[LABEL_RESULTS],
            rank
        );
    }
}

#[test]
fn results_behind_the_gateway_are_reached_from_the_connector_alone() {
    let mut reservation = reservation(true);
    let from = |reservation: &GpuReservation| {
        let policy = policy(reservation, &ConnectorPods::default()).unwrap();
        policy.spec.unwrap().ingress.unwrap().remove(0).from
    };
    assert_eq!(from(&reservation), None);
    reservation.spec.hosting.exposure = Exposure::Tunnel;
    let peers = from(&reservation).unwrap();
    assert_eq!(peers.len(), 1);
    let labels = peers[0].pod_selector.clone().unwrap().match_labels.unwrap();
    assert_eq!(labels["app.kubernetes.io/component"], "connector");
    assert!(peers[0].namespace_selector.is_some() && peers[0].ip_block.is_none());
    let made = services(&reservation);
    let kinds: Vec<_> = made
        .iter()
        .map(|s| s.spec.clone().unwrap().type_.unwrap())
        .collect();
    assert_eq!(kinds, ["ClusterIP", "ClusterIP"]);
}
