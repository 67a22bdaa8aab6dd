//! A lease without an account.

use leasehold_crds::lease::Blocker;

use super::*;

const RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

/// A lease without allocations, a payer with money, and one provider whose offer fits.
fn unmatched() -> World {
    let mut world = world(AccountRead::Absent, AllocationPhase::Requested);
    Arc::make_mut(&mut world.lease).status = None;
    world.allocations.clear();
    (world.account, world.second_account) = (None, None);
    let provider = crate::placement::Provider {
        name: "p".into(),
        region: "eu-west".into(),
        payee: Address([1; 20]),
        controller: Address([2; 20]),
        alive: true,
        answers: true,
        starts: true,
    };
    let row = crate::placement::Candidate {
        provider: 0,
        pool: "pool".into(),
        class: "a100-80g-pcie".into(),
        nodes_free: 100,
        room: crate::request::Shape {
            gpus: 8,
            millicores: 64_000,
            memory: 512 << 30,
            scratch: 1 << 40,
        },
        storage: 0,
        gpu_memory: 80_000_000_000,
        compute_capability: crate::request::Version(8, 0),
        cuda: crate::request::Version(12, 8),
        price: leasehold_crds::payment::money::Price::parse("1.85").unwrap(),
        currency: network().currency,
        max_term: 86_400,
        max_pause: 0,
        max_keep_results: 0,
        max_per_gpu: crate::request::PerGpu::UNBOUNDED,
        architecture: Some(leasehold_crds::shared::architecture::Architecture::Amd64),
        max_start_within: 3_600,
        root_allowed: true,
        exposure: leasehold_crds::provider::pool::Exposure::NodePort,
    };
    world.providers = Arc::from([provider]);
    world.candidates = Arc::from([row]);
    world
}

#[test]
fn what_is_reached_through_a_tunnel_is_matched_in_a_market_with_a_gateway_alone() {
    let mut world = unmatched();
    let mut rows = world.candidates.to_vec();
    rows[0].exposure = leasehold_crds::provider::pool::Exposure::Tunnel;
    world.candidates = rows.into();
    let matches = |world: &World| !parsed(world).parsed.placement.unwrap().choices.is_empty();
    assert!(!matches(&world), "a service has ports");
    let mut without_ports = world.clone();
    let workload = json!({"job": {"image": "i"}});
    Arc::make_mut(&mut without_ports.lease).spec.workload = serde_json::from_value(workload).unwrap();
    assert!(matches(&without_ports), "nothing is reached");
    let mut with_results = world.clone();
    let spec = &mut Arc::make_mut(&mut with_results.lease).spec;
    let output = json!({"path": "/data/out", "keepResultsFor": "1h", "recipients": [RECIPIENT]});
    let workload = json!({"job": {"image": "i", "output": output}});
    spec.workload = serde_json::from_value(workload).unwrap();
    spec.storage = serde_json::from_value(json!({"size": "1Gi", "mountPath": "/data"})).unwrap();
    let mut rows = with_results.candidates.to_vec();
    (rows[0].storage, rows[0].max_keep_results) = (1 << 40, 86_400);
    with_results.candidates = rows.into();
    assert!(!matches(&with_results), "results are fetched");
    for world in [&mut world, &mut with_results] {
        world.gateway = Some(gateway());
        assert!(matches(world));
    }
}

#[test]
fn a_network_that_does_not_agree_with_its_chain_begins_no_round() {
    let mut world = unmatched();
    world.wallet = Observed::Known(Wallet::Ready(Address([3; 20])));
    let begins = |world: &World| decide(world, &check(world), now()).status.escrow.is_some();
    world.balances = Some(Observed::Known(crate::ports::Balances {
        token: TokenAmount(1_000_000_000),
        gas_wei: 1 << 60,
    }));
    assert!(begins(&world) && needs_wallet(&world));
    let Observed::Known(Some(network)) = &mut world.network else {
        unreachable!()
    };
    network.refusal = Some((Blocker::NetworkNotFound, "6 decimals, not 2".into()));
    assert!(!begins(&world));
    Arc::make_mut(&mut world.lease).metadata.finalizers = None;
    assert!(!needs_wallet(&world) && !super::super::needs_prior(&parsed(&world)));
    let plan = decide(&world, &check(&world), now());
    assert_eq!(plan.status.blocked_on, Some(Blocker::NetworkNotFound));
}

#[test]
fn a_lease_is_queued_at_a_saturated_provider_and_its_key_is_not_read_meanwhile() {
    let mut world = unmatched();
    assert!(needs_wallet(&world));
    world.wallet = Observed::Known(Wallet::Ready(Address([3; 20])));
    world.balances = Some(Observed::Known(crate::ports::Balances {
        token: TokenAmount(10_000_000),
        gas_wei: 1,
    }));
    let decided = |world: &World| decide(world, &check(world), now());
    let plan = decided(&world);
    assert_eq!(plan.status.phase, Phase::Matched);
    let before = GpuLeaseStatus::default();
    assert_eq!(
        plan.new_allocations(&before).map(|(p, _)| p).collect::<Vec<_>>(),
        ["p"]
    );
    assert_eq!(
        plan.new_allocations(&plan.status).count(),
        0,
        "each allocation is created once"
    );

    world.unanswered = [("p".to_owned(), UNANSWERED_PER_PROVIDER_MAX)].into();
    assert!(!needs_wallet(&world));
    world.wallet = Observed::Known(Wallet::NotRead);
    let plan = decided(&world);
    let matched = find(&plan.status.conditions, "Matched").unwrap();
    assert_eq!(
        (plan.status.phase, matched.reason.as_str()),
        (Phase::Pending, "Queued")
    );
    assert_eq!(plan.queued_at.as_deref(), Some("p"));
    // Others lease nodes meanwhile: that alone is nothing to write.
    Arc::make_mut(&mut world.lease).status = Some(plan.status.clone());
    Arc::make_mut(&mut world.candidates)[0].nodes_free -= 1;
    assert_eq!(decided(&world).status, plan.status);
    Arc::make_mut(&mut world.lease).status = None;
    assert_eq!(plan.new_allocations(&before).count(), 0);

    // Other allocations were answered while this reconcile read: it reads again, and reports nothing false of the
    // wallet.
    world.unanswered.clear();
    let plan = decided(&world);
    assert_eq!((plan.status.phase, plan.wake), (Phase::Pending, now()));
    assert!(plan.queued_at.is_none() && find(&plan.status.conditions, "Funded").is_none());
}

/// An allocation that could not be deleted would be an orphan once its lease is closed.
#[test]
fn a_lease_is_not_closed_before_its_allocations_are_deleted() {
    let mut world = unmatched();
    let lease = Arc::make_mut(&mut world.lease);
    delete(lease);
    world.allocations = self::world(AccountRead::Absent, AllocationPhase::Reserved).allocations;
    let matched = GpuLeaseStatus {
        phase: Phase::Matched,
        round: 1,
        ..GpuLeaseStatus::default()
    };
    lease.status = Some(matched.clone());
    let plan = decide(&world, &check(&world), now());
    assert_eq!((plan.status.phase, plan.allocations.len()), (Phase::Closed, 1));
    assert_eq!(plan.status_if_incomplete(&matched), matched);
}
