//! Where containers can be root.

use leasehold_crds::provider::pool::{GpuPoolStatus, ProbeResult, UserNamespaceProof};

use super::*;

#[test]
fn only_the_handler_that_is_used_counts_for_user_namespaces() {
    let root = |handlers: &[(&str, bool)], handler: &str, user_namespaces: UserNamespaces| {
        let mut node = node("n", 1, 0);
        node.software = Some("boot 1".into());
        node.handlers = handlers
            .iter()
            .map(|(name, has)| ((*name).to_owned(), *has))
            .collect();
        let mut pool = pool();
        pool.spec.user_namespaces = user_namespaces;
        let runtime = PoolRuntime {
            handler: handler.into(),
            ..PoolRuntime::default()
        };
        let identity = identity(&node, &runtime).unwrap();
        pool.status = Some(proven("n", ProbeResult::Proven, &identity));
        let supply = supply_with(&pool, &runtime, node);
        supply.free.first().map(|free| free.user_namespaces)
    };
    let both = [("", true), ("nvidia", false)];
    let auto = UserNamespaces::Auto;
    assert_eq!(root(&both, "", auto), Some(true));
    assert_eq!(
        root(&both, "nvidia", auto),
        Some(false),
        "another handler has them"
    );
    assert_eq!(
        root(&[], "nvidia", auto),
        Some(false),
        "the runtime reports nothing"
    );
    assert_eq!(root(&both, "", UserNamespaces::Never), Some(false));
    assert_eq!(root(&both, "kata", auto), None, "the node has no such handler");
}

/// The status of a pool whose node was probed.
fn proven(node: &str, result: ProbeResult, identity: &str) -> GpuPoolStatus {
    GpuPoolStatus {
        user_namespaces: vec![UserNamespaceProof {
            node: node.into(),
            result,
            identity: identity.into(),
            ..UserNamespaceProof::default()
        }],
        ..GpuPoolStatus::default()
    }
}

fn supply_with(pool: &GpuPool, runtime: &PoolRuntime, node: NodeSeen) -> PoolSupply {
    let payment = PaymentIdentity::default();
    let terms = (Some(runtime), Some(&payment));
    pool_supply(
        pool,
        terms,
        &[node],
        &[],
        &mut BTreeSet::new(),
        Timestamp::UNIX_EPOCH,
    )
}

/// NVIDIA's stack reports user namespaces of its runtime, and does not start containers in them (C1).
#[test]
fn root_is_sold_only_where_a_probe_has_proven_user_namespaces() {
    let runtime = PoolRuntime::default();
    let mut seen = node("n", 2, 0);
    seen.software = Some("boot 1, kubelet v1.34.2".into());
    let current = identity(&seen, &runtime).unwrap();
    assert_eq!(current, "boot 1, kubelet v1.34.2, handler the default");
    let sold = |status: Option<GpuPoolStatus>, seen: &NodeSeen| {
        let pool = GpuPool { status, ..pool() };
        let supply = supply_with(&pool, &runtime, seen.clone());
        assert_eq!(supply.candidates.len(), 1, "it can be probed");
        assert_eq!(supply.candidates[0].room, Ok(()));
        let root = supply.rows[0].root_allowed;
        assert_eq!(
            supply.free[0].user_namespaces, root,
            "the offer says what is accepted"
        );
        root
    };
    assert!(!sold(None, &seen), "nothing is proven");
    assert!(sold(Some(proven("n", ProbeResult::Proven, &current)), &seen));
    assert!(
        !sold(Some(proven("m", ProbeResult::Proven, &current)), &seen),
        "another node"
    );
    for result in [ProbeResult::Failed, ProbeResult::Probing, ProbeResult::Unknown] {
        assert!(!sold(Some(proven("n", result, &current)), &seen), "{result:?}");
    }
    seen.software = Some("boot 2, kubelet v1.34.2".into());
    let of_boot_1 = || Some(proven("n", ProbeResult::Proven, &current));
    assert!(!sold(of_boot_1(), &seen), "the node was restarted");
    seen.software = None;
    assert!(!sold(of_boot_1(), &seen), "its versions are not known");
}

#[test]
fn a_node_without_room_for_a_probe_says_why() {
    let why = |change: fn(&mut NodeSeen)| {
        let mut seen = node("n", 2, 0);
        change(&mut seen);
        let supply = supply_with(&pool(), &PoolRuntime::default(), seen);
        supply.candidates[0].room.clone().unwrap_err()
    };
    assert_eq!(why(|n| n.requested.gpus = 2), "no GPU was free");
    assert_eq!(
        why(|n| n.schedulable = false),
        "the node is not sold: NotSchedulable"
    );
    let no_memory = why(|n| n.requested.memory = n.allocatable.memory - 1);
    assert_eq!(no_memory, "a GPU was free, but no CPU or memory beside it");
    let mut seen = node("n", 2, 0);
    seen.handlers.clear();
    let supply = supply_with(&pool(), &PoolRuntime::default(), seen);
    assert!(
        supply.candidates.is_empty(),
        "its runtime reports no user namespaces"
    );
}
