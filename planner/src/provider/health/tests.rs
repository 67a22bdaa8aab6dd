//! Faults of a reservation's GPUs, and GPUs that two nodes claim.

use jiff::Timestamp;
use leasehold_crds::{
    provider::node::{DeviceHealth, GpuDevice, GpuNodeStatus, GpuSlice, NodeReason},
    shared::conditions::{ConditionStatus, condition},
};

use super::*;
use crate::provider::offer::supply::GpusSeen;

fn device(uuid: &str, health: DeviceHealth) -> GpuDevice {
    GpuDevice {
        uuid: uuid.into(),
        health,
        message: "words".into(),
        since: "1970-01-01T00:01:40.9Z".into(),
        ..GpuDevice::default()
    }
}

fn status(devices: &[GpuDevice]) -> GpuNodeStatus {
    GpuNodeStatus {
        devices: devices.to_vec(),
        ..GpuNodeStatus::default()
    }
}

const NOW: i64 = 500;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn report(status: &GpuNodeStatus, alive: bool) -> NodeReport<'_> {
    NodeReport {
        node: "n",
        heard_at: Some(at(if alive { NOW - 5 } else { NOW - 61 })),
        status: Some(status),
        kubelet: KubeletReport::Ready,
    }
}

fn assessed(held: &str, devices: &[GpuDevice], alive: bool) -> Observed<Option<Fault>> {
    let health = assess(&[held.into()], &[report(&status(devices), alive)], None, at(NOW));
    assert_eq!(health.due, None, "the kubelet is well");
    health.fault
}

fn broken(message: &str, since: u64) -> Observed<Option<Fault>> {
    Observed::Known(Some(Fault {
        kind: FaultKind::Gpu,
        message: message.into(),
        since,
    }))
}

#[test]
fn a_fault_is_told_with_its_time_and_health_only_by_a_living_agent() {
    let lost = [
        device("a", DeviceHealth::Lost),
        device("b", DeviceHealth::Healthy),
    ];
    let fault = broken("n: GPU 0: words", 100);
    assert_eq!(assessed("a", &lost, true), fault);
    assert_eq!(assessed("a", &lost, false), fault, "a reported fault remains");
    assert_eq!(
        assessed("b", &lost, true),
        Observed::Known(None),
        "another's fault is none of ours"
    );
    assert!(matches!(assessed("b", &lost, false), Observed::Unknown(_)));
    let back = [device("a", DeviceHealth::Recovering)];
    assert!(
        matches!(assessed("a", &back, true), Observed::Known(Some(_))),
        "watched, not yet well"
    );
    let unread = [device("a", DeviceHealth::Unknown)];
    assert!(matches!(assessed("a", &unread, true), Observed::Unknown(_)));
}

#[test]
fn a_gpu_is_gone_only_by_a_whole_list() {
    let other = [device("b", DeviceHealth::Healthy)];
    assert_eq!(assessed("a", &other, true), broken("GPU a is gone", 500));
    assert!(matches!(assessed("a", &other, false), Observed::Unknown(_)));
    assert!(
        matches!(assessed("a", &[], true), Observed::Unknown(_)),
        "a GpuNode made anew says nothing yet"
    );
    let unread = [device("b", DeviceHealth::Unknown)];
    assert!(matches!(assessed("a", &unread, true), Observed::Unknown(_)));
    let nothing = GpuNodeStatus::default();
    let nobody = NodeReport {
        status: None,
        ..report(&nothing, true)
    };
    let fault = |held: &[String], nodes: &[NodeReport<'_>]| assess(held, nodes, None, at(NOW)).fault;
    assert!(matches!(fault(&["a".into()], &[nobody]), Observed::Unknown(_)));
    assert_eq!(fault(&[], &[]), Observed::Known(None), "nothing is held");
}

#[test]
fn a_slice_is_as_well_as_the_gpus_that_have_slices() {
    let mut card = device("GPU-a", DeviceHealth::Healthy);
    assert!(
        matches!(assessed("MIG-1", &[card.clone()], true), Observed::Known(Some(_))),
        "no GPU here has slices"
    );
    card.mig_enabled = Some(true);
    assert_eq!(assessed("MIG-1", &[card.clone()], true), Observed::Known(None));
    card.health = DeviceHealth::FatalXid;
    assert!(matches!(
        assessed("MIG-1", &[card], true),
        Observed::Known(Some(_))
    ));
}

#[test]
fn a_slice_is_as_well_as_its_own_gpu() {
    let card = |uuid: &str, slice: &str, health| GpuDevice {
        mig_enabled: Some(true),
        slices: vec![GpuSlice {
            uuid: slice.into(),
            ..GpuSlice::default()
        }],
        ..device(uuid, health)
    };
    let cards = [
        card("GPU-a", "MIG-1", DeviceHealth::Healthy),
        card("GPU-b", "MIG-2", DeviceHealth::FatalXid),
    ];
    assert_eq!(assessed("MIG-1", &cards, true), Observed::Known(None));
    assert!(matches!(
        assessed("MIG-2", &cards, true),
        Observed::Known(Some(_))
    ));
}

#[test]
fn a_lost_node_is_a_fault_since_the_first_of_what_broke() {
    let devices = |health| status(&[device("a", health)]);
    let healthy = devices(DeviceHealth::Healthy);
    let silent = |heard_at: i64| NodeReport {
        heard_at: Some(at(heard_at)),
        kubelet: KubeletReport::NotReady {
            since: at(NOW - 100),
            heard_at: None,
        },
        ..report(&healthy, false)
    };
    let assessed = |nodes: &[NodeReport<'_>]| assess(&["a".into()], nodes, Some(at(0)), at(NOW));
    let kind = |health: &Health| {
        health
            .fault
            .known()
            .and_then(|f| f.as_ref().map(|f| (f.kind, f.since)))
    };
    let lost = assessed(&[silent(300), silent(200)]);
    assert_eq!(kind(&lost), Some((FaultKind::Node, 200)));
    // The GPU failed at second 100 and the node at 200: seconds are credited since 100; and the other way round.
    let broken = devices(DeviceHealth::Lost);
    let both = |heard_at| NodeReport {
        status: Some(&broken),
        ..silent(heard_at)
    };
    assert_eq!(kind(&assessed(&[both(200)])), Some((FaultKind::Gpu, 100)));
    assert_eq!(kind(&assessed(&[both(50)])), Some((FaultKind::Node, 50)));
    // Not for long enough yet: the state is unknown.
    let fresh = assess(&["a".into()], &[silent(300)], Some(at(NOW - 10)), at(NOW));
    assert!(matches!(fresh.fault, Observed::Unknown(_)));
    assert_eq!(fresh.due, Some(at(NOW + 51)));
}

fn node(name: &str, claims: &[&str]) -> NodeSeen {
    NodeSeen {
        name: name.into(),
        gpus: Some(GpusSeen {
            sell: true,
            claims: claims.iter().map(ToString::to_string).collect(),
            alive: true,
            ..GpusSeen::default()
        }),
        ..NodeSeen::default()
    }
}

fn named(nodes: &[NodeSeen]) -> Vec<&str> {
    claimed_twice(nodes).into_keys().collect()
}

#[test]
fn a_gpu_that_two_nodes_claim_keeps_both_from_sale_until_one_is_out() {
    let mut nodes = [
        node("honest", &["a", "b"]),
        node("liar", &["x", "b"]),
        node("other", &["c"]),
    ];
    assert_eq!(named(&nodes), ["honest", "liar"]);
    assert!(claimed_twice(&nodes)["honest"].starts_with("b is claimed by liar too"));
    nodes[1].gpus.as_mut().unwrap().sell = false;
    assert!(
        named(&nodes).is_empty(),
        "who takes the liar out has the honest one back"
    );
    nodes[1].gpus.as_mut().unwrap().sell = true;
    nodes[1].gpus.as_mut().unwrap().alive = false;
    assert!(named(&nodes).is_empty(), "a machine that is off claims nothing");
}

#[test]
fn a_lost_gpu_is_no_claim() {
    let seen = status(&[
        device("a", DeviceHealth::Lost),
        device("b", DeviceHealth::Duplicate),
        device("", DeviceHealth::Healthy),
    ]);
    assert_eq!(claims(&seen), ["b"]);
}

#[test]
fn a_node_is_fit_when_all_who_must_have_spoken_well_of_it() {
    let said = |truths: &[(NodeCondition, ConditionStatus)]| {
        let mut seen = status(&[device("a", DeviceHealth::Healthy)]);
        seen.conditions = truths
            .iter()
            .map(|(kind, truth)| condition(*kind, *truth, NodeReason::Agree, "words", 0))
            .collect();
        unfit(&seen)
    };
    use ConditionStatus::{False, True, Unknown};
    let reported = Some(("Agree".to_owned(), "words".to_owned()));
    let nothing = Some((String::new(), String::new()));
    assert_eq!(
        said(&[
            (NodeCondition::Healthy, True),
            (NodeCondition::WitnessesAgree, True)
        ]),
        None
    );
    assert_eq!(
        said(&[(NodeCondition::Healthy, True)]),
        nothing,
        "the other witnesses have not reported"
    );
    assert_eq!(said(&[]), nothing);
    assert_eq!(
        said(&[
            (NodeCondition::Healthy, Unknown),
            (NodeCondition::WitnessesAgree, True)
        ]),
        reported
    );
    assert_eq!(
        said(&[
            (NodeCondition::Healthy, True),
            (NodeCondition::WitnessesAgree, False)
        ]),
        reported
    );
    let unused = |kind, truth| {
        said(&[
            (NodeCondition::Healthy, True),
            (NodeCondition::WitnessesAgree, True),
            (kind, truth),
        ])
    };
    let processes = |truth| unused(NodeCondition::NoForeignProcesses, truth);
    assert_eq!(processes(True), None);
    assert_eq!(
        processes(Unknown),
        None,
        "agents without the host's processes can't know"
    );
    assert_eq!(processes(False), reported, "a foreign process runs on a GPU");
    let memory = |truth| unused(NodeCondition::UnheldMemoryFree, truth);
    assert_eq!((memory(True), memory(Unknown)), (None, None));
    assert_eq!(memory(False), reported, "the next tenant would run out of memory");
}
