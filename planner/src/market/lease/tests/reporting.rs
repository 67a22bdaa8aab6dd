//! What is reported of a lease.

use super::*;

#[test]
fn time_beyond_what_a_pool_sells_is_reported_once_its_provider_has_answered() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    let stops_at = i64::try_from(NOW).unwrap() + 300;
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    let deposited = condition(
        LeaseCondition::Funded,
        ConditionStatus::True,
        LeaseReason::Deposited,
        String::new(),
        1,
    );
    set(&mut status.conditions, deposited, now());
    let reported = |world: &mut World, answered: i64, stops_at: i64| {
        let allocation = Arc::make_mut(&mut world.allocations[0].object);
        allocation.metadata.generation = Some(2);
        let status = allocation.status.as_mut().unwrap();
        (status.observed_generation, status.not_after) = (answered, Some(stops_at));
        let plan = decide(world, &check(world), now());
        let funded = find(&plan.status.conditions, "Funded").cloned().unwrap();
        let before = world.lease.status.clone();
        let events = events(before.as_ref(), &plan.status);
        let warned = events
            .iter()
            .filter(|event| event.reason == LeaseEvent::LongerThanSold)
            .count();
        Arc::make_mut(&mut world.lease).status = Some(plan.status);
        (funded.status, funded.reason, warned)
    };
    let said = |reason: &str, warned| ("True".to_owned(), reason.to_owned(), warned);
    assert_eq!(
        reported(&mut world, 1, stops_at),
        said("Deposited", 0),
        "it may still be granted"
    );
    assert_eq!(reported(&mut world, 2, stops_at), said("LongerThanSold", 1));
    assert_eq!(
        reported(&mut world, 2, stops_at),
        said("LongerThanSold", 0),
        "once"
    );
    assert_eq!(
        reported(&mut world, 2, stops_at + 300),
        said("Deposited", 0),
        "all of it is served"
    );
}

/// What a person reads stands until it is no longer true, and does not flap meanwhile.
#[test]
fn where_results_are_outlives_the_allocation_that_reported_it() {
    let mut world = world(AccountRead::Present(account(60)), AllocationPhase::Active);
    let at = |node, url: &str| ResultsAt {
        node,
        url: url.into(),
        until: None,
    };
    let mut lease = GpuLease::clone(&world.lease);
    if let Some(status) = &mut lease.status {
        status.results = vec![at(0, "http://old"), at(1, "http://other")];
    }
    world.lease = Arc::new(lease);
    let mut allocation = GpuAllocation::clone(&world.allocations[0].object);
    if let Some(status) = &mut allocation.status {
        status.results = vec![at(0, "http://new")];
    }
    world.allocations[0].object = Arc::new(allocation);
    let reported = |world: &World| decide(world, &check(world), now()).status.results;
    let both = vec![at(0, "http://new"), at(1, "http://other")];
    assert_eq!(reported(&world), both, "the latest report of each node");
    let mut lease = GpuLease::clone(&world.lease);
    if let Some(status) = &mut lease.status {
        status.results.clone_from(&both);
    }
    world.lease = Arc::new(lease);
    world.allocations.clear();
    assert_eq!(reported(&world), both);
}

#[test]
fn only_a_tenant_who_deletes_a_lease_drops_its_results() {
    let dropped = |world: &World| {
        let plan = decide(world, &check(world), now());
        plan.allocations.into_iter().find_map(|write| match write {
            AllocationWrite::Release { drop_results, .. } => Some(drop_results),
            _ => None,
        })
    };
    let mut deleted = world(AccountRead::Present(account(60)), AllocationPhase::Active);
    let mut lease = GpuLease::clone(&deleted.lease);
    delete(&mut lease);
    deleted.lease = Arc::new(lease);
    assert_eq!(dropped(&deleted), Some(true));
    let given_up = world(AccountRead::Present(account(60)), AllocationPhase::Stopped);
    assert_eq!(dropped(&given_up), Some(false));
}

#[test]
fn a_failed_write_is_reported_until_one_is_mined() {
    let short = PaymentError::InsufficientGas {
        address: Address([3; 20]),
    };
    let funding = ChainCall::Fund {
        terms: terms(),
        total: TokenAmount(2_000_000),
    };
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    let status = intend(&mut world, IntentAction::Fund, "2000000");
    chain_failure(status, &funding, &short, 1, now());
    let reported = |world: &World| {
        let plan = decide(world, &check(world), now());
        let funded = find(&plan.status.conditions, "Funded").cloned().unwrap();
        (funded.reason, plan.status)
    };
    let (reason, _) = reported(&world);
    assert_eq!(reason, "InsufficientGas", "not True again before the next try");
    let mined = Account {
        deposited: TokenAmount(2_000_000),
        ..account(600)
    };
    world.account = Some(known(AccountRead::Present(mined.clone())));
    let (reason, status) = reported(&world);
    assert_eq!((reason.as_str(), status.intent), ("Deposited", None));

    let close = ChainCall::Close {
        terms: terms(),
        payouts: 1,
    };
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    (status.intent, status.close_reason) = (None, Some(CloseReason::Deleted));
    chain_failure(status, &close, &short, 1, now());
    let closed = Some(known(AccountRead::Present(Account {
        closed: true,
        ..mined
    })));
    (world.account, world.second_account) = (closed.clone(), closed.clone());
    let (_, status) = reported(&world);
    assert_eq!(status.phase, Phase::Closed);
    let settled = find(&status.conditions, "Settled").unwrap();
    assert_eq!(settled.reason, "Pending", "a reorganisation may drop the close");
    world.final_reads = closed.into_iter().cycle().take(2).collect();
    let (_, status) = reported(&world);
    assert!(is_true(&status.conditions, "Settled"));
}

#[test]
fn what_an_abandoned_account_spent_is_not_reported_as_nothing() {
    let closed = |reason, money| GpuLeaseStatus {
        phase: Phase::Closed,
        close_reason: Some(reason),
        money,
        ..GpuLeaseStatus::default()
    };
    let note = |status: &GpuLeaseStatus| {
        let mut events = events(None, status).into_iter();
        events.find(|e| e.reason == LeaseEvent::Closed).unwrap().note
    };
    let nothing_paid = closed(CloseReason::Deleted, None);
    assert_eq!(note(&nothing_paid), "Deleted: spent 0, refunded 0");
    for money in [None, Some(AccountSummary::default())] {
        let abandoned = note(&closed(CloseReason::Abandoned, money));
        assert!(abandoned.ends_with("what was spent is unknown"), "{abandoned}");
    }
}

/// Neither an outage nor a close that a reorganisation dropped shows that the account is closed.
#[test]
fn a_closed_lease_is_not_settled_while_its_account_is_open_or_unknown() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Stopped);
    let close = ChainCall::Close {
        terms: terms(),
        payouts: 1,
    };
    let short = PaymentError::InsufficientGas {
        address: Address([3; 20]),
    };
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    (status.phase, status.close_reason) = (Phase::Closed, Some(CloseReason::Deleted));
    chain_failure(status, &close, &short, 1, now());
    let unknown = Some(Observed::Unknown("no answer".into()));
    for account in [world.account.clone(), unknown] {
        world.account = account;
        let status = decide(&world, &check(&world), now()).status;
        let settled = find(&status.conditions, "Settled").unwrap();
        assert_eq!(settled.reason, "InsufficientGas");
    }
}

#[test]
fn a_closed_lease_is_not_ready() {
    let closed = Account {
        closed: true,
        running: 0,
        ..account(0)
    };
    for reason in [CloseReason::JobSucceeded, CloseReason::TermOver] {
        let mut world = world(AccountRead::Present(closed.clone()), AllocationPhase::Stopped);
        let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
        (status.phase, status.close_reason) = (Phase::Closed, Some(reason));
        let plan = decide(&world, &check(&world), now());
        let ready = find(&plan.status.conditions, "Ready").unwrap();
        let expected = LeaseReason::from(reason);
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_str()),
            ("False", expected.as_str())
        );
    }
}

/// Otherwise it would receive the tenant's traffic, and the requests for its results.
#[test]
fn a_provider_speaks_for_its_own_nodes_only() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    let allocation = Arc::make_mut(&mut world.allocations[0].object);
    (allocation.spec.first_rank, allocation.spec.nodes) = (1, 2);
    let status = allocation.status.as_mut().unwrap();
    let endpoint = |node| Endpoint {
        node,
        host: Some("192.0.2.1".into()),
        port: Some(30_080),
        ..Endpoint::default()
    };
    let results = |node| ResultsAt {
        node,
        ..ResultsAt::default()
    };
    status.endpoints = (0..4).map(endpoint).collect();
    status.results = (0..4).map(results).collect();
    let plan = decide(&world, &check(&world), now());
    let endpoints: Vec<i64> = plan.status.endpoints.iter().map(|e| e.node).collect();
    let results: Vec<i64> = plan.status.results.iter().map(|r| r.node).collect();
    assert_eq!((endpoints, results), (vec![1, 2], vec![1, 2]));
}
