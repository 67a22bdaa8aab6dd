use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use leasehold_crds::{
    FINALIZER_MARKET, GpuAllocation, GpuLease,
    lease::{
        CloseReason, GpuLeaseStatus, Intent, IntentAction, LeaseEscrow, Phase, Share,
        conditions::{LeaseCondition, LeaseEvent, LeaseReason},
        workload::ResultsAt,
    },
    market::allocation::{AllocationPhase, GpuAllocationSpec, GpuAllocationStatus, StopReason},
    payment::money::{Rate, TokenAmount},
    shared::conditions::{ConditionStatus, condition, find, is_true, set},
};
use proptest::prelude::*;
use serde_json::json;

use super::{check::AccountState, *};
use crate::{
    escrow::{Account, AccountRead, Address, Hash, Leg, Terms, salt},
    observed::Observed,
    placement::Currency,
    ports::{Head, PaymentError},
};

const NOW: u64 = 1_800_000_000;
const MARKET: Address = Address([4; 20]);

fn now() -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap()
}

fn network() -> Network {
    Network {
        currency: Currency {
            chain_id: 31_337,
            escrow: Address([8; 20]),
            token: Address([5; 20]),
        },
        market_id: MARKET,
        closer: Address([6; 20]),
        symbol: "USDC".into(),
        decimals: 6,
    }
}

fn terms() -> Terms {
    Terms {
        payer: Address([3; 20]),
        market: MARKET,
        token: network().currency.token,
        closer: network().closer,
        salt: salt(MARKET, "uid", 1),
        start_by: NOW + 900,
        notice_seconds: 0,
        pause_for: 0,
        legs: vec![Leg {
            payee: Address([1; 20]),
            controller: Address([2; 20]),
            rate: Rate(500_000_000_000_000),
        }],
    }
}

/// Started a minute ago, and paid for so many seconds from now.
fn account(left: u64) -> Account {
    Account {
        closed: false,
        deposited: TokenAmount(1_000_000),
        balance_scaled: u128::from(left) * 500_000_000_000_000,
        block_time: NOW,
        paid_until: NOW + left,
        exhausted_at: 0,
        started_at: NOW - 60,
        paid_seconds: 60,
        running: 1,
        ended: 0,
        legs: vec![],
    }
}

fn exhausted() -> Account {
    Account {
        exhausted_at: NOW - 1,
        paid_until: NOW - 1,
        running: 0,
        ..account(0)
    }
}

/// A lease that serves, with its one allocation.
fn world(account: AccountRead, provider: AllocationPhase) -> World {
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease",
        "metadata": {"name": "l", "namespace": "team", "uid": "uid", "generation": 1, "finalizers": [FINALIZER_MARKET]},
        "spec": {
            "perNode": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"service": {"image": "i", "ports": [{"name": "http", "port": 80}]}},
            "payment": {"network": "n", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "w"}},
        },
    });
    let mut lease: GpuLease = serde_json::from_value(lease).unwrap();
    let wire = terms().to_wire(network().currency.chain_id, network().currency.escrow);
    lease.status = Some(GpuLeaseStatus {
        phase: Phase::Active,
        round: 1,
        escrow: Some(LeaseEscrow {
            terms: wire.clone(),
            open_by: i64::try_from(NOW).unwrap() - 100,
            shares: vec![Share::default()],
        }),
        ..GpuLeaseStatus::default()
    });
    let mut allocation = GpuAllocation::new(
        "a",
        GpuAllocationSpec {
            round: 1,
            escrow: wire,
            nodes: 1,
            not_after: i64::try_from(NOW).unwrap() + 7_200,
            ..GpuAllocationSpec::default()
        },
    );
    allocation.status = Some(GpuAllocationStatus {
        phase: provider,
        ..GpuAllocationStatus::default()
    });
    let read = Some(Observed::Known(account));
    let network = Observed::Known(Some(network()));
    World {
        parsed: Parsed::of(&lease, &network, &[], &[]),
        lease: Arc::new(lease),
        network,
        providers: Arc::from([]),
        candidates: Arc::from([]),
        allocations: vec![AllocationSeen {
            object: Arc::new(allocation),
            signed: true,
        }],
        wallet: Observed::Known(Wallet::NotAsked),
        balances: None,
        head: Observed::Known(Head {
            number: 1,
            hash: Hash::default(),
            time: NOW,
        }),
        account: read.clone(),
        second_account: read,
        prior: Observed::Known(None),
        unfunded_in_namespace: 0,
        unanswered: BTreeMap::new(),
    }
}

/// The world with its lease parsed anew, as the next reconcile reads it.
fn parsed(world: &World) -> World {
    let mut world = world.clone();
    world.parsed = Parsed::of(&world.lease, &world.network, &world.providers, &world.candidates);
    world
}

fn check(world: &World) -> Checked {
    super::check(&parsed(world))
}

fn decide(world: &World, checked: &Checked, now: Timestamp) -> Plan {
    super::decide(&parsed(world), checked, now)
}

fn needs_wallet(world: &World) -> bool {
    super::needs_wallet(&parsed(world))
}

fn end_of(account: Account, provider: AllocationPhase) -> Option<CloseReason> {
    check(&world(AccountRead::Present(account), provider)).end
}

#[test]
fn a_provider_that_stops_with_paid_time_left_gave_up() {
    assert_eq!(end_of(account(600), AllocationPhase::Active), None);
    let gave_up = end_of(account(600), AllocationPhase::Stopping);
    assert_eq!(gave_up, Some(CloseReason::ProviderStopped));
}

#[test]
fn one_that_reads_the_end_of_the_funds_before_us_did_not() {
    assert_eq!(end_of(account(5), AllocationPhase::Stopped), None);
    let mut early = world(AccountRead::Present(exhausted()), AllocationPhase::Stopped);
    early.second_account = Some(Observed::Known(AccountRead::Present(account(1))));
    assert_eq!(check(&early).end, None, "one reading is none");
    assert_eq!(
        end_of(exhausted(), AllocationPhase::Stopped),
        Some(CloseReason::FundsSpent)
    );
}

#[test]
fn funds_that_come_after_their_end_were_too_late() {
    let mut late = world(AccountRead::Present(account(600)), AllocationPhase::Stopped);
    let allocation = Arc::make_mut(&mut late.allocations[0].object);
    allocation.status.as_mut().unwrap().stop_reason = Some(StopReason::FundsSpent);
    assert_eq!(check(&late).end, Some(CloseReason::FundsSpent));
}

/// What hangs on a chain that is gone has most often been deleted before.
#[test]
fn an_account_is_given_up_by_its_id_alone_also_by_who_tried_to_end_the_lease_before() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    world.account = Some(Observed::Unknown("the chain is gone".into()));
    world.second_account = None;
    let name = |world: &mut World, id: &str| {
        let lease = Arc::make_mut(&mut world.lease);
        let abandon = [(leasehold_crds::ANNOTATION_ABANDON.to_owned(), id.to_owned())];
        lease.metadata.annotations = Some(abandon.into());
    };
    let id = world
        .lease
        .status
        .as_ref()
        .unwrap()
        .escrow
        .as_ref()
        .unwrap()
        .terms
        .id
        .clone();
    for before in [None, Some(CloseReason::Deleted)] {
        Arc::make_mut(&mut world.lease)
            .status
            .as_mut()
            .unwrap()
            .close_reason = before;
        name(&mut world, "0x00");
        assert_eq!(check(&world).end, before, "another's id gives up nothing");
        name(&mut world, &id);
        assert_eq!(check(&world).end, Some(CloseReason::Abandoned));
        let plan = decide(&world, &check(&world), now());
        assert_eq!(plan.status.phase, Phase::Closed);
        assert!(
            matches!(plan.allocations.as_slice(), [AllocationWrite::Release { .. }]),
            "its providers are told to stop"
        );
    }
    let closed = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    (closed.phase, closed.close_reason) = (Phase::Closed, Some(CloseReason::TermOver));
    assert_eq!(
        check(&world).end,
        Some(CloseReason::TermOver),
        "what is closed stays"
    );
}

#[test]
fn time_beyond_what_a_pool_sells_is_told_once_its_provider_has_answered() {
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
    let told = |world: &mut World, answered: i64, stops_at: i64| {
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
        told(&mut world, 1, stops_at),
        said("Deposited", 0),
        "it may still be granted"
    );
    assert_eq!(told(&mut world, 2, stops_at), said("LongerThanSold", 1));
    assert_eq!(told(&mut world, 2, stops_at), said("LongerThanSold", 0), "once");
    assert_eq!(
        told(&mut world, 2, stops_at + 300),
        said("Deposited", 0),
        "all of it is served"
    );
}

#[test]
fn a_close_is_noted_before_it_is_sent() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Stopping);
    let first = decide(&world, &check(&world), now());
    assert_eq!(first.call, None);
    let intent = first.status.intent.clone().unwrap();
    assert_eq!(intent.action, IntentAction::Close);
    Arc::make_mut(&mut world.lease).status = Some(first.status);
    let second = decide(&world, &check(&world), now());
    assert_eq!(
        second.call,
        Some(ChainCall::Close {
            terms: terms(),
            payouts: 1
        })
    );
}

/// A lease whose providers have all accepted, and which is deleted before anything was intended.
#[test]
fn what_was_never_intended_ends_at_once_and_what_may_have_been_waits() {
    let mut accepted = world(AccountRead::Absent, AllocationPhase::Reserved);
    let lease = Arc::make_mut(&mut accepted.lease);
    let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now());
    lease.metadata.deletion_timestamp = Some(at);
    lease.status.as_mut().unwrap().phase = Phase::Matched;
    lease.status.as_mut().unwrap().escrow.as_mut().unwrap().open_by = i64::try_from(NOW).unwrap() + 50;
    assert_eq!(check(&accepted).account_state, AccountState::NeverOpened);
    assert_eq!(decide(&accepted, &check(&accepted), now()).finalizer, Some(false));

    let allocation = Arc::make_mut(&mut accepted.allocations[0].object);
    allocation.spec.open_by = i64::try_from(NOW).unwrap() + 50;
    // The same with its status lost: an open may be under way.
    let mut lost = accepted.clone();
    Arc::make_mut(&mut lost.lease).status = None;
    lost.account = None;
    lost.second_account = None;
    let plan = decide(&lost, &check(&lost), now());
    assert_eq!(plan.finalizer, None);
    assert_eq!(plan.status.intent.as_ref().unwrap().action, IntentAction::Open);
    let absent = Some(Observed::Known(AccountRead::Absent));
    (lost.account, lost.second_account) = (absent.clone(), absent);
    Arc::make_mut(&mut lost.lease).status = Some(plan.status);
    assert_eq!(check(&lost).account_state, AccountState::Absent);
    assert_eq!(decide(&lost, &check(&lost), now()).finalizer, None);
}

/// What a person reads stands until it is no longer true, and does not flap meanwhile.
#[test]
fn where_results_are_outlives_the_allocation_that_told_it() {
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
    let told = |world: &World| decide(world, &check(world), now()).status.results;
    let both = vec![at(0, "http://new"), at(1, "http://other")];
    assert_eq!(told(&world), both, "each node's latest word");
    let mut lease = GpuLease::clone(&world.lease);
    if let Some(status) = &mut lease.status {
        status.results.clone_from(&both);
    }
    world.lease = Arc::new(lease);
    world.allocations.clear();
    assert_eq!(told(&world), both);
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
    lease.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    deleted.lease = Arc::new(lease);
    assert_eq!(dropped(&deleted), Some(true));
    let given_up = world(AccountRead::Present(account(60)), AllocationPhase::Stopped);
    assert_eq!(dropped(&given_up), Some(false));
}

#[test]
fn a_failed_write_is_told_until_one_is_mined() {
    let short = PaymentError::InsufficientGas {
        address: Address([3; 20]),
    };
    let funding = ChainCall::Fund {
        terms: terms(),
        total: TokenAmount(2_000_000),
    };
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    status.intent = Some(Intent {
        action: IntentAction::Fund,
        total: Some("2000000".into()),
        written_at: now().to_string(),
    });
    chain_failure(status, &funding, &short, 1, now());
    let told = |world: &World| {
        let plan = decide(world, &check(world), now());
        let funded = find(&plan.status.conditions, "Funded").cloned().unwrap();
        (funded.reason, plan.status)
    };
    let (reason, _) = told(&world);
    assert_eq!(reason, "InsufficientGas", "not True again before the next try");
    let mined = Account {
        deposited: TokenAmount(2_000_000),
        ..account(600)
    };
    world.account = Some(Observed::Known(AccountRead::Present(mined.clone())));
    let (reason, status) = told(&world);
    assert_eq!((reason.as_str(), status.intent), ("Deposited", None));

    let close = ChainCall::Close {
        terms: terms(),
        payouts: 1,
    };
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    (status.intent, status.close_reason) = (None, Some(CloseReason::Deleted));
    chain_failure(status, &close, &short, 1, now());
    let closed = Some(Observed::Known(AccountRead::Present(Account {
        closed: true,
        ..mined
    })));
    (world.account, world.second_account) = (closed.clone(), closed);
    let (_, status) = told(&world);
    assert_eq!(status.phase, Phase::Closed);
    assert!(is_true(&status.conditions, "Settled"));
}

fn reads() -> impl Strategy<Value = Option<Observed<AccountRead>>> {
    let present = (any::<bool>(), 0u64..700, any::<bool>(), 0u16..2, 0u16..2).prop_map(
        |(closed, left, spent, running, ended)| {
            let base = if spent { exhausted() } else { account(left) };
            AccountRead::Present(Account {
                closed,
                running: if spent { 0 } else { running },
                ended,
                ..base
            })
        },
    );
    prop_oneof![
        Just(None),
        Just(Some(Observed::Unknown("no answer".to_owned()))),
        Just(Some(Observed::Known(AccountRead::Absent))),
        Just(Some(Observed::Known(AccountRead::Mismatch))),
        present.prop_map(|read| Some(Observed::Known(read))),
    ]
}

fn worlds() -> impl Strategy<Value = World> {
    let phase = prop::sample::select(vec![
        Phase::Pending,
        Phase::Matched,
        Phase::Funded,
        Phase::Provisioning,
        Phase::Active,
        Phase::Suspended,
        Phase::Settling,
        Phase::Closed,
    ]);
    let provider = prop::sample::select(vec![
        AllocationPhase::Requested,
        AllocationPhase::Declined,
        AllocationPhase::Reserved,
        AllocationPhase::Provisioning,
        AllocationPhase::Active,
        AllocationPhase::Suspended,
        AllocationPhase::Stopping,
        AllocationPhase::Stopped,
    ]);
    let intent = prop::option::of(prop::sample::select(vec![
        IntentAction::Open,
        IntentAction::Fund,
        IntentAction::Close,
    ]));
    (
        reads(),
        reads(),
        phase,
        provider,
        intent,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(first, second, phase, provider, intent, deleting, chain)| {
            let mut world = world(AccountRead::Absent, provider);
            world.account = first;
            world.second_account = second;
            if !chain {
                world.head = Observed::Unknown("no answer".into());
            }
            let lease = Arc::make_mut(&mut world.lease);
            if deleting {
                let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now());
                lease.metadata.deletion_timestamp = Some(at);
            }
            let status = lease.status.as_mut().unwrap();
            status.phase = phase;
            status.intent = intent.map(|action| Intent {
                action,
                total: (action != IntentAction::Close).then(|| "2000000".to_owned()),
                written_at: now().to_string(),
            });
            world
        })
}

proptest! {
    /// M2: what is sent was noted by an earlier pass.
    #[test]
    fn every_call_follows_a_stored_intent(world in worlds()) {
        let before = world.lease.status.clone().unwrap();
        let plan = decide(&world, &check(&world), now());
        let noted = before.intent.map(|i| i.action);
        match &plan.call {
            None => {}
            Some(ChainCall::Open { .. }) => prop_assert_eq!(noted, Some(IntentAction::Open)),
            Some(ChainCall::Fund { .. }) => prop_assert_eq!(noted, Some(IntentAction::Fund)),
            Some(ChainCall::Close { .. }) => prop_assert_eq!(noted, Some(IntentAction::Close)),
        }
    }

    /// U1: nothing ends on an unknown, nor on a single reading.
    #[test]
    fn nothing_ends_on_what_is_not_known(mut world in worlds()) {
        Arc::make_mut(&mut world.lease).metadata.deletion_timestamp = None;
        world.second_account = Some(Observed::Unknown("no answer".into()));
        let before = world.lease.status.clone().unwrap();
        let checked = check(&world);
        let by_chain = matches!(
            checked.end,
            Some(CloseReason::ClosedOnChain | CloseReason::FundsSpent | CloseReason::TermOver | CloseReason::NeverStarted)
        );
        prop_assert!(!by_chain || before.phase == Phase::Closed, "{:?}", checked.end);
    }

    #[test]
    fn there_is_no_way_out_of_closed(mut world in worlds()) {
        Arc::make_mut(&mut world.lease).status.as_mut().unwrap().phase = Phase::Closed;
        let plan = decide(&world, &check(&world), now());
        prop_assert_eq!(plan.status.phase, Phase::Closed);
    }

    /// A wake-up in the past would spin.
    #[test]
    fn every_wake_up_lies_ahead(world in worlds()) {
        let plan = decide(&world, &check(&world), now());
        let again = plan.must_persist_first(&world.lease.status.clone().unwrap());
        prop_assert!(plan.wake > now() || (again && plan.wake >= now()), "{:?}", plan.wake);
    }
}

/// A lease that nobody was asked for yet, a payer with money, and one provider whose offer fits.
fn unasked() -> World {
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
        root_allowed: false,
    };
    world.providers = Arc::from([provider]);
    world.candidates = Arc::from([row]);
    world
}

#[test]
fn a_provider_with_enough_to_answer_is_asked_later_and_no_key_is_read_meanwhile() {
    let mut world = unasked();
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
        "the same is asked once"
    );

    world.unanswered = [("p".to_owned(), UNANSWERED_PER_PROVIDER_MAX)].into();
    assert!(!needs_wallet(&world));
    world.wallet = Observed::Known(Wallet::NotAsked);
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

    // Others were answered while this pass read on: it reads again, and says nothing wrong of the wallet.
    world.unanswered.clear();
    let plan = decided(&world);
    assert_eq!((plan.status.phase, plan.wake), (Phase::Pending, now()));
    assert!(plan.queued_at.is_none() && find(&plan.status.conditions, "Funded").is_none());
}

/// A question that could not be taken back would be nobody's once its lease is closed.
#[test]
fn a_lease_is_not_closed_before_its_questions_are_taken_back() {
    let mut world = unasked();
    let lease = Arc::make_mut(&mut world.lease);
    let deleted = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now());
    lease.metadata.deletion_timestamp = Some(deleted);
    world.allocations = self::world(AccountRead::Absent, AllocationPhase::Reserved).allocations;
    let asked = GpuLeaseStatus {
        phase: Phase::Matched,
        round: 1,
        ..GpuLeaseStatus::default()
    };
    lease.status = Some(asked.clone());
    let plan = decide(&world, &check(&world), now());
    assert_eq!((plan.status.phase, plan.allocations.len()), (Phase::Closed, 1));
    assert_eq!(plan.status_if_incomplete(&asked), asked);
}
