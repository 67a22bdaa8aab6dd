//! Recovery of a lost status, and whose account it may lead to.

use super::*;
use crate::{escrow::allocation_name, placement::Provider};

/// A lease whose status was lost, and the account that the chain shows for it. Its allocation still exists.
fn lost(terms: Terms) -> World {
    let mut world = world(AccountRead::Absent, AllocationPhase::Active);
    (world.account, world.second_account) = (None, None);
    Arc::make_mut(&mut world.lease).status = None;
    world.prior = Observed::Known(Some(RecoveredAccount { round: 1, terms }));
    world
}

#[test]
fn an_account_is_adopted_if_it_is_what_the_lease_would_open() {
    let mut world = lost(terms());
    let adopted = |world: &World| decide(world, &check(world), now()).status.escrow.is_some();
    assert!(adopted(&world), "its allocation states its terms");
    world.allocations.clear();
    assert!(adopted(&world));
}

#[test]
fn an_account_that_the_lease_would_not_open_is_never_paid_into() {
    let stranger = Address([9; 20]);
    let foreign = Terms {
        payer: stranger,
        ..terms()
    };
    let token = Terms {
        token: stranger,
        ..terms()
    };
    let closer = Terms {
        closer: stranger,
        ..terms()
    };
    let legs = Terms {
        legs: vec![terms().legs[0]; 2],
        ..terms()
    };
    let mut dear = terms();
    dear.legs[0].rate = Rate(600_000_000_000_000);
    for other in [foreign, token, closer, legs, dear] {
        let mut world = lost(other.clone());
        let plan = decide(&world, &check(&world), now());
        assert_eq!(plan.status.escrow, None, "{other:?}");
        let matched = find(&plan.status.conditions, "Matched").unwrap();
        assert_eq!(matched.reason, "AccountMismatch");
        // To end the lease, it is closed: this returns the money to the payer.
        delete(Arc::make_mut(&mut world.lease));
        let plan = decide(&world, &check(&world), now());
        assert_eq!(
            plan.status.escrow.is_some(),
            network().secret.chose(&other),
            "{other:?}"
        );
    }
}

/// The tenant replaces the wallet, and the account belongs to the earlier one.
#[test]
fn a_wallet_pays_only_into_an_account_that_it_opened() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    intend(&mut world, IntentAction::Fund, "2000000");
    assert!(needs_wallet(&world));
    let funds = |world: &World| decide(world, &check(world), now());
    world.wallet = Observed::Known(Wallet::Ready(terms().payer));
    assert!(matches!(funds(&world).call, Some(ChainCall::Fund { .. })));
    world.wallet = Observed::Known(Wallet::Ready(Address([9; 20])));
    let plan = funds(&world);
    assert_eq!((plan.call, plan.status.phase), (None, Phase::Active));
    let funded = find(&plan.status.conditions, "Funded").unwrap();
    assert_eq!(funded.reason, "OtherWallet");

    let mut opens = super::world(AccountRead::Absent, AllocationPhase::Reserved);
    let status = intend(&mut opens, IntentAction::Open, "2000000");
    (status.phase, status.escrow.as_mut().unwrap().open_by) =
        (Phase::Matched, i64::try_from(NOW).unwrap() + 50);
    opens.wallet = Observed::Known(Wallet::Ready(terms().payer));
    assert!(matches!(funds(&opens).call, Some(ChainCall::Open { .. })));
    opens.wallet = Observed::Known(Wallet::Ready(Address([9; 20])));
    let plan = funds(&opens);
    let funded = find(&plan.status.conditions, "Funded").unwrap();
    assert_eq!((plan.call, funded.reason.as_str()), (None, "OtherWallet"));
}

/// A lease whose status was lost and that is deleted, and then the chain is unreachable.
#[test]
fn a_lease_whose_account_was_found_does_not_end_before_the_chain_shows_it() {
    let mut world = lost(terms());
    delete(Arc::make_mut(&mut world.lease));
    let adopted = decide(&world, &check(&world), now());
    Arc::make_mut(&mut world.lease).status = Some(adopted.status);
    world.prior = Observed::Known(None);
    world.account = Some(Observed::Unknown("no answer".into()));
    world.head = Observed::Unknown("no answer".into());
    let plan = decide(&world, &check(&world), now());
    assert_eq!((plan.status.phase, plan.finalizer), (Phase::Settling, None));
    world.account = Some(known(AccountRead::Present(account(600))));
    let plan = decide(&world, &check(&world), now());
    assert_eq!(plan.status.intent.unwrap().action, IntentAction::Close);
}

/// The event of the account was read, and then a node of the endpoint that is behind does not show the account.
#[test]
fn an_account_that_was_found_is_not_replaced_before_it_can_no_longer_be_opened() {
    for allocations in [0, 1] {
        let mut world = lost(terms());
        world.allocations.truncate(allocations);
        let adopted = decide(&world, &check(&world), now());
        let open_by = adopted.status.escrow.as_ref().map(|e| e.open_by);
        assert_eq!(open_by, i64::try_from(NOW).ok(), "15 minutes before `startBy`");
        Arc::make_mut(&mut world.lease).status = Some(adopted.status);
        world.prior = Observed::Known(None);
        world.account = Some(known(AccountRead::Absent));
        world.second_account = world.account.clone();
        let plan = decide(&world, &check(&world), now());
        let id = plan.status.escrow.map(|e| e.terms.id);
        assert_eq!(id, Some(terms().id().to_string()));
    }
}

/// The backup of etcd is an hour old: the status shows a round that lapsed, and the account of a later one is charged.
#[test]
fn a_restored_status_leads_to_no_second_account() {
    let later = Terms {
        salt: network()
            .secret
            .salt(RoundKey::new(MARKET, "uid", 3), terms().payer),
        ..terms()
    };
    let mut restored = world(AccountRead::Absent, AllocationPhase::Reserved);
    let status = Arc::make_mut(&mut restored.lease).status.as_mut().unwrap();
    (status.phase, status.escrow.as_mut().unwrap().open_by) =
        (Phase::Matched, i64::try_from(NOW).unwrap() + 50);
    Arc::make_mut(&mut restored.allocations[0].object).metadata.name = Some(allocation_name(terms().id(), 0));
    assert!(super::super::needs_prior(&parsed(&restored)));
    assert_eq!(prior_rounds(&restored.lease), 2..=65);
    let planned = |world: &World| decide(world, &check(world), now());
    let opens = planned(&restored).status.intent.map(|i| i.action);
    assert_eq!(opens, Some(IntentAction::Open), "there is no other account");

    restored.prior = Observed::Unknown("no answer".into());
    assert_eq!(planned(&restored).status.intent, None, "there may be one");

    restored.prior = Observed::Known(Some(RecoveredAccount {
        round: 3,
        terms: later.clone(),
    }));
    let plan = planned(&restored);
    assert_eq!((plan.status.round, &plan.call), (3, &None));
    let found = plan.status.escrow.unwrap().terms.id;
    assert_eq!(found, later.id().to_string());

    // The same if the intent to open was restored with it.
    let status = Arc::make_mut(&mut restored.lease).status.as_mut().unwrap();
    status.intent = Some(Intent {
        action: IntentAction::Open,
        total: Some("2000000".into()),
        written_at: now().to_string(),
    });
    assert_eq!(planned(&restored).status.round, 3);
    restored.prior = Observed::Unknown("no answer".into());
    assert_eq!(planned(&restored).call, None);
}

/// The chain is unreachable when a lease is created: it can be deleted although its account was not searched.
#[test]
fn a_new_lease_needs_no_search_to_end() {
    let mut new = world(AccountRead::Absent, AllocationPhase::Reserved);
    let lease = Arc::make_mut(&mut new.lease);
    (lease.status, lease.metadata.finalizers) = (None, None);
    new.allocations.clear();
    new.prior = Observed::Unknown("no answer".into());
    let plan = decide(&new, &check(&new), now());
    assert!(plan.status.recovery_checked);
}

/// The status of a lease was wiped after its end, its allocation is gone, and a reorganisation dropped the close: nothing but the
/// account is left. Nobody serves it, and its deposit is refunded.
#[test]
fn a_recovered_lease_that_nobody_serves_is_closed() {
    let provider = |name: &str| Provider {
        name: name.into(),
        region: String::new(),
        payee: terms().legs[0].payee,
        controller: terms().legs[0].controller,
        alive: true,
        answers: true,
        starts: true,
    };
    let recovered = |change: fn(&mut Account)| {
        let mut world = lost(terms());
        world.allocations.clear();
        world.providers = Arc::from([provider("prairie")]);
        let adopted = decide(&world, &check(&world), now());
        Arc::make_mut(&mut world.lease).status = Some(adopted.status);
        world.prior = Observed::Known(None);
        let mut account = account(600);
        account.block_time += 100;
        change(&mut account);
        let read = Some(known(AccountRead::Present(account)));
        (world.account, world.second_account) = (read.clone(), read);
        world
    };
    // Its leg still runs: whoever serves it goes on, and reports it again.
    let mut world = recovered(|_| {});
    let plan = decide(&world, &check(&world), now());
    assert_eq!(plan.status.phase, Phase::Active);
    let [
        AllocationWrite::Create {
            namespace,
            name,
            spec,
            ..
        },
    ] = plan.allocations.as_slice()
    else {
        panic!("{:?}", plan.allocations);
    };
    assert_eq!((namespace.as_str(), spec.nodes), ("provider-prairie", 1));
    // It declines, because it has no reservation for it.
    let mut object = GpuAllocation::new(name, (**spec).clone());
    object.metadata.namespace = Some(namespace.clone());
    object.status = Some(GpuAllocationStatus {
        phase: AllocationPhase::Declined,
        ..GpuAllocationStatus::default()
    });
    Arc::make_mut(&mut world.lease).status = Some(plan.status);
    world.allocations.push(AllocationSeen {
        object: Arc::new(object),
        signed: false,
    });
    assert_eq!(check(&world).end, Some(CloseReason::ProviderStopped));

    // The chain shows that it does not serve.
    let ended = recovered(|a| (a.running, a.ended) = (0, 1));
    let plan = decide(&ended, &check(&ended), now());
    assert_eq!(plan.status.close_reason, Some(CloseReason::ProviderStopped));
    assert_eq!(plan.status.intent.unwrap().action, IntentAction::Close);
    let spent = recovered(|a| (a.running, a.ended, a.exhausted_at) = (0, 1, a.block_time - 1));
    assert_eq!(check(&spent).end, Some(CloseReason::FundsSpent));
    let mut one = ended.clone();
    one.second_account = Some(known(AccountRead::Present(account(600))));
    assert_eq!(check(&one).end, None, "one reading is none");
    // Its provider has left the market.
    let mut paused = recovered(|a| a.running = 0);
    assert_eq!(check(&paused).end, None);
    paused.providers = Arc::from([Provider {
        name: "tundra".into(),
        ..provider("prairie")
    }]);
    assert_eq!(check(&paused).end, Some(CloseReason::ProviderStopped));
    // It was never started: a provider that does not answer is not waited for after `startBy`.
    let never = recovered(|a| {
        (a.running, a.started_at, a.paid_seconds) = (0, 0, 0);
        (a.legs[0], a.block_time) = (LegState::default(), NOW + 901);
    });
    assert!(check(&never).ends_round);
}

/// Before `openBy`, an allocation that is missing may be one that the cache does not show yet.
#[test]
fn an_allocation_is_created_again_only_when_it_was_there() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    let escrow = status.escrow.as_mut().unwrap();
    escrow.legs[0].provider = "prairie".into();
    escrow.open_by = i64::try_from(NOW).unwrap() - 15;
    world.providers = Arc::from([Provider {
        name: "prairie".into(),
        region: String::new(),
        payee: Address([1; 20]),
        controller: Address([2; 20]),
        alive: true,
        answers: true,
        starts: true,
    }]);
    world.allocations.clear();
    let created = |world: &World| {
        let plan = decide(world, &check(world), now());
        let creates = |write: &&AllocationWrite| matches!(write, AllocationWrite::Create { .. });
        plan.allocations.iter().filter(creates).count()
    };
    assert_eq!(created(&world), 0);
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    status.escrow.as_mut().unwrap().open_by -= 1;
    assert_eq!(created(&world), 1);
    Arc::make_mut(&mut world.lease)
        .status
        .as_mut()
        .unwrap()
        .close_reason = Some(CloseReason::Deleted);
    assert_eq!(created(&world), 0);
}
