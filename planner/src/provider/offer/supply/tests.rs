//! What is sold, what is not and why, and the rows of an offer.

use leasehold_crds::provider::pool::{GpuPoolSpec, MaxPerGpu, PoolToleration};
use proptest::prelude::*;

use super::*;

mod root;

fn node(name: &str, gpus: u64, requested: u64) -> NodeSeen {
    let shape = |gpus| Shape {
        gpus,
        millicores: gpus * 8000,
        memory: gpus << 35,
        scratch: 0,
    };
    let uuids: Vec<String> = (0..gpus).map(|i| format!("GPU-{name}-{i}")).collect();
    NodeSeen {
        name: name.into(),
        schedulable: true,
        allocatable: shape(gpus),
        requested: shape(requested),
        pods_free: 110,
        gpus: Some(GpusSeen {
            sell: true,
            class: "t4-16g".into(),
            memory: 16_000_000_000,
            compute_capability: Version(7, 5),
            cuda: Version(12, 4),
            healthy: true,
            claims: uuids.clone(),
            units: uuids,
            alive: true,
            ..GpusSeen::default()
        }),
        handlers: [(String::new(), true)].into(),
        ..NodeSeen::default()
    }
}

fn pool() -> GpuPool {
    GpuPool::new(
        "p",
        GpuPoolSpec {
            price_per_gpu_hour: "1".into(),
            max_duration: "1h".into(),
            max_pause: "0s".into(),
            ..Default::default()
        },
    )
}

fn supply(nodes: &[NodeSeen], holds: &[Hold]) -> PoolSupply {
    pool_supply(
        &pool(),
        (Some(&PoolRuntime::default()), Some(&PaymentIdentity::default())),
        nodes,
        holds,
        &mut BTreeSet::new(),
        Timestamp::UNIX_EPOCH,
    )
}

/// A kubelet admits a bounded number of pods, whatever they request.
#[test]
fn a_node_that_admits_no_more_pods_is_not_sold() {
    let mut full = node("full", 4, 1);
    full.pods_free = 0;
    let mut last = node("last", 4, 1);
    last.pods_free = 1;
    let nodes = [full, last];
    let mut sold = supply(&nodes, &[]);
    assert_eq!(sold.not_sold[0].reason, "NoPodFree");
    let free: Vec<_> = sold.free.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(free, ["last"]);
    // The pod of a reservation that does not exist yet is the last.
    let shape = Shape {
        gpus: 1,
        ..Shape::default()
    };
    let hold = Hold {
        name: "r".into(),
        shape,
        nodes: vec!["last".into()],
    };
    assert_eq!(supply(&nodes, &[hold]).not_sold[1].reason, "NoPodFree");
    sold.take(&["last".into()], &shape);
    assert!(sold.free.is_empty());
}

/// A GPU without CPU and memory starts nothing.
#[test]
fn a_node_without_room_beside_its_gpus_is_not_sold() {
    let requested = |change: fn(&mut Shape)| {
        let mut node = node("n", 4, 1);
        change(&mut node.requested);
        node
    };
    let refused = |node: NodeSeen| {
        supply(&[node], &[])
            .not_sold
            .first()
            .map(|out| out.reason.clone())
    };
    let no_room = Some("NoRoomFree".to_owned());
    assert_eq!(refused(requested(|r| r.millicores = 32_000)), no_room);
    assert_eq!(refused(requested(|r| r.millicores = 31_999)), None);
    assert_eq!(refused(requested(|r| r.memory = 4 << 35)), no_room);
    // The overhead alone does not fit.
    let runtime = PoolRuntime {
        overhead: Shape {
            scratch: 1,
            ..Shape::default()
        },
        ..PoolRuntime::default()
    };
    let mut sandbox = pool();
    sandbox.spec.runtime_class_name = Some("sandbox".into());
    let sold = pool_supply(
        &sandbox,
        (Some(&runtime), Some(&PaymentIdentity::default())),
        &[node("n", 4, 0)],
        &[],
        &mut BTreeSet::new(),
        Timestamp::UNIX_EPOCH,
    );
    assert_eq!(sold.not_sold.first().map(|out| out.reason.clone()), no_room);
}

#[test]
fn nodes_are_left_out_with_a_reason() {
    let mut sick = node("sick", 4, 0);
    sick.gpus.as_mut().unwrap().healthy = false;
    let mut lost = node("lost", 4, 0);
    *lost.gpus.as_mut().unwrap() = GpusSeen {
        healthy: false,
        reason: "GpuLost".into(),
        message: "GPU 0: gone".into(),
        ..lost.gpus.clone().unwrap()
    };
    let mut silent = node("silent", 4, 0);
    silent.gpus.as_mut().unwrap().alive = false;
    let supply = supply(&[node("a", 4, 0), node("b", 4, 4), sick, lost, silent], &[]);
    let reasons: Vec<_> = supply.not_sold.iter().map(|n| n.reason.as_str()).collect();
    assert_eq!(reasons, ["NoGpuFree", "Unhealthy", "GpuLost", "AgentSilent"]);
    assert_eq!(supply.not_sold[2].message, "GPU 0: gone");
    assert_eq!(supply.rows.len(), 1);
    assert_eq!(supply.rows[0].gpus, 4);
}

#[test]
fn neither_of_two_nodes_that_claim_one_gpu_is_sold() {
    let mut liar = node("liar", 2, 0);
    liar.gpus.as_mut().unwrap().claims[1] = "GPU-honest-3".into();
    let supply = supply(&[node("honest", 4, 0), liar, node("other", 1, 0)], &[]);
    let unsold: Vec<_> = supply
        .not_sold
        .iter()
        .map(|n| (n.node.as_str(), n.reason.as_str()))
        .collect();
    assert_eq!(unsold, [("honest", "DuplicateUuid"), ("liar", "DuplicateUuid")]);
    assert!(
        supply.not_sold[0]
            .message
            .starts_with("GPU-honest-3 is claimed by liar too"),
        "{}",
        supply.not_sold[0].message
    );
    assert_eq!(supply.free.len(), 1);
}

/// Reason and message of the only node, which is not sold.
fn refused(node: NodeSeen) -> (String, String) {
    let mut supply = supply(&[node], &[]);
    assert!(supply.free.is_empty() && supply.rows.is_empty(), "{supply:?}");
    let entry = supply.not_sold.remove(0);
    (entry.reason, entry.message)
}

#[test]
fn a_node_is_sold_only_if_each_gpu_that_it_allocates_is_a_gpu_of_its_own() {
    let change = |change: fn(&mut NodeSeen)| {
        let mut node = node("n", 4, 0);
        change(&mut node);
        refused(node)
    };
    let more = change(|n| n.allocatable.gpus = 16);
    assert_eq!(more.0, "SharedGpus");
    assert!(
        more.1.starts_with("the node allocates 16 GPUs and has 4,") && more.1.contains("time-slicing"),
        "{}",
        more.1
    );
    let twice = change(|n| n.gpus.as_mut().unwrap().units[3] = "GPU-n-0".into());
    assert_eq!(twice.0, "SharedGpus", "one UUID is one GPU");
    let named = change(|n| n.sharing = Some("the Node has the label a=b".into()));
    assert_eq!(named.0, "SharedGpus");
    assert!(named.1.starts_with("the Node has the label a=b, so that"));
    let replicas = change(|n| n.gpus.as_mut().unwrap().shared = vec!["GPU-n-2".into()]);
    assert_eq!(replicas.0, "SharedGpus");
    assert!(replicas.1.contains("replicas of GPU-n-2"));
    let mig = change(|n| n.gpus.as_mut().unwrap().mig = vec!["GPU-n-1".into()]);
    assert_eq!(mig.0, "MigEnabled");
    assert!(mig.1.contains("GPU-n-1") && mig.1.contains("nvidia-smi"));
    let mixed = change(|n| n.slice_resource = Some("nvidia.com/mig-1g.10gb".into()));
    assert_eq!(mixed.0, "MigEnabled");
    assert!(mixed.1.contains("nvidia.com/mig-1g.10gb") && mixed.1.contains("single"));
    let fewer = change(|n| n.allocatable.gpus = 3);
    assert_eq!(fewer.0, "GpusNotAdvertised");
    assert!(fewer.1.starts_with("the node allocates 3 of its 4 GPUs"));
}

#[test]
fn a_gpu_whose_memory_is_unknown_is_not_sold() {
    let mut unified = node("n", 1, 0);
    unified.gpus.as_mut().unwrap().memory = 0;
    let (reason, message) = refused(unified);
    assert_eq!(reason, "GpuMemoryUnknown");
    assert!(message.contains("gb10-128g"), "{message}");
}

/// The supply of a pool whose spec is changed.
fn supply_of(
    node: NodeSeen,
    runtime: Option<&PoolRuntime>,
    change: impl FnOnce(&mut GpuPoolSpec),
) -> PoolSupply {
    let mut pool = pool();
    change(&mut pool.spec);
    let payment = PaymentIdentity::default();
    pool_supply(
        &pool,
        (runtime, Some(&payment)),
        &[node],
        &[],
        &mut BTreeSet::new(),
        Timestamp::UNIX_EPOCH,
    )
}

#[test]
fn a_lease_can_have_with_each_gpu_what_the_pool_states_or_the_proportion_of_the_node() {
    let mut node = node("n", 4, 1);
    node.allocatable.millicores = 31_001;
    let runtime = PoolRuntime::default();
    let most = |spec: fn(&mut GpuPoolSpec)| {
        let supply = supply_of(node.clone(), Some(&runtime), spec);
        assert_eq!(
            PerGpu::from_wire(&supply.rows[0].max_per_gpu, &PerGpu::UNBOUNDED).unwrap(),
            supply.free[0].max_per_gpu,
            "the offer says what is accepted"
        );
        supply.free[0].max_per_gpu
    };
    let proportion = PerGpu {
        millicores: 7_751,
        memory: 1 << 35,
        scratch: 0,
        storage: u64::MAX,
    };
    assert_eq!(most(|_| ()), proportion);
    assert!(
        proportion.permits(&node.allocatable, 1 << 60),
        "all GPUs can have all of the node"
    );
    let stated = most(|spec| {
        spec.max_per_gpu = Some(MaxPerGpu {
            cpu: Some("2".into()),
            storage: Some("1Ti".into()),
            ..MaxPerGpu::default()
        });
    });
    let expected = PerGpu {
        millicores: 2_000,
        storage: 1 << 40,
        ..proportion
    };
    assert_eq!(stated, expected);
    let shape = |gpus, millicores| Shape {
        gpus,
        millicores,
        ..Shape::default()
    };
    assert!(stated.permits(&shape(2, 4_000), 2 << 40));
    assert!(!stated.permits(&shape(2, 4_001), 0) && !stated.permits(&shape(1, 1), 2 << 40));
}

#[test]
fn the_overhead_of_the_runtime_class_is_not_offered() {
    let runtime = PoolRuntime {
        overhead: Shape {
            millicores: 250,
            memory: 120 << 20,
            ..Shape::default()
        },
        ..PoolRuntime::default()
    };
    let mut supply = supply_of(node("n", 2, 0), Some(&runtime), |_| ());
    assert_eq!(supply.free[0].room.millicores, 15_750);
    assert_eq!(supply.rows[0].cpu, "15750m");
    let one = Shape {
        gpus: 1,
        millicores: 8_000,
        ..Shape::default()
    };
    supply.take(&["n".into()], &one);
    assert_eq!(supply.free[0].room.millicores, 7_500, "each pod has its overhead");
    let missing = supply_of(node("n", 2, 0), None, |_| ());
    assert!(
        missing.rows.is_empty() && !missing.selling,
        "pods of a RuntimeClass that does not exist are refused"
    );
}

#[test]
fn a_node_whose_taint_or_label_keeps_pods_away_is_not_sold() {
    let taint = |key: &str, value: &str, effect: &str| Taint {
        key: key.into(),
        value: value.into(),
        effect: effect.into(),
    };
    let sold = |taint: Taint, toleration: Option<(&str, Option<&str>, Option<&str>)>| {
        let mut node = node("n", 1, 0);
        node.taints = vec![taint];
        let supply = supply_of(node, Some(&PoolRuntime::default()), |spec| {
            spec.tolerations = toleration
                .into_iter()
                .map(|(key, value, effect)| PoolToleration {
                    key: key.into(),
                    value: value.map(str::to_owned),
                    effect: effect.map(str::to_owned),
                })
                .collect();
        });
        supply
            .not_sold
            .first()
            .map(|n| (n.reason.clone(), n.message.clone()))
    };
    let gpu = || taint("sku", "gpu", "NoSchedule");
    let (reason, message) = sold(gpu(), None).unwrap();
    assert_eq!(reason, "Tainted");
    assert!(message.contains("sku=gpu:NoSchedule"), "{message}");
    assert_eq!(sold(gpu(), Some(("sku", None, None))), None);
    assert_eq!(sold(gpu(), Some(("sku", Some("gpu"), Some("NoSchedule")))), None);
    for wrong in [
        ("sku", Some("cpu"), None),
        ("sku", None, Some("NoExecute")),
        ("other", None, None),
    ] {
        assert_eq!(sold(gpu(), Some(wrong)).unwrap().0, "Tainted", "{wrong:?}");
    }
    let elsewhere = PoolRuntime {
        node_selector: [("sandbox".to_owned(), "true".to_owned())].into(),
        ..PoolRuntime::default()
    };
    let supply = supply_of(node("n", 1, 0), Some(&elsewhere), |_| ());
    assert_eq!(supply.not_sold[0].reason, "NotSchedulable");
}

#[test]
fn a_node_with_more_gpus_than_a_row_can_have_is_offered_up_to_the_bound() {
    let supply = supply(&[node("large", 20, 0)], &[]);
    assert_eq!((supply.rows[0].gpus, supply.free[0].room.gpus), (16, 20));
}

#[test]
fn a_class_that_is_no_name_does_not_get_into_the_offer() {
    for class in ["", "T4", "t4_16g", "-t4", &"a".repeat(64)] {
        let mut node = node("n", 1, 0);
        node.gpus.as_mut().unwrap().class = class.into();
        assert_eq!(refused(node).0, "OtherClass", "{class:?}");
    }
}

#[test]
fn hours_of_sale() {
    let hours = [SaleHours {
        days: vec![Day::Mon],
        from: "08:00".into(),
        to: "18:00".into(),
    }];
    assert!(is_open(&hours, "2026-11-23T08:00:00Z".parse().unwrap()));
    assert!(!is_open(&hours, "2026-11-23T18:00:00Z".parse().unwrap()));
    assert!(!is_open(&hours, "2026-11-22T09:00:00Z".parse().unwrap()));
}

proptest! {
    /// However reservations follow on each other, no GPU is held twice, and to take what is reserved off what was
    /// counted before comes to the same as to count anew.
    #[test]
    fn no_gpu_twice(sizes in prop::collection::vec(0u64..9, 1..6), requests in prop::collection::vec((1u64..9, 1usize..4), 0..20)) {
        let nodes: Vec<_> = sizes.iter().enumerate().map(|(i, n)| node(&format!("n{i}"), *n, 0)).collect();
        let mut holds: Vec<Hold> = vec![];
        let mut counted = supply(&nodes, &holds);
        for (i, (gpus, count)) in requests.into_iter().enumerate() {
            let shape = Shape { gpus, millicores: gpus * 8000, memory: gpus << 35, scratch: 0 };
            if let Some(picked) = pick(&supply(&nodes, &holds).free, &shape, count) {
                let picked: BTreeSet<_> = picked.into_iter().map(|n| n.name.clone()).collect();
                prop_assert_eq!(picked.len(), count);
                let nodes: Vec<_> = picked.into_iter().collect();
                counted.take(&nodes, &shape);
                holds.push(Hold { name: i.to_string(), shape, nodes });
            }
            prop_assert_eq!(&counted.free, &supply(&nodes, &holds).free);
            for n in &nodes {
                let held: u64 = holds.iter().filter(|h| h.nodes.contains(&n.name)).map(|h| h.shape.gpus).sum();
                prop_assert!(held <= n.allocatable.gpus);
            }
        }
    }
}
