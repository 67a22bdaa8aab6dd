//! Leases of several providers, of which not all start their legs, and what a provider may report before it has.

use jiff::SignedDuration;
use leasehold_crds::lease::OnFundsEnd;

use super::*;

const SERVED: LegState = LegState {
    served_seconds: 60,
    credited_seconds: 0,
    withdrawn: TokenAmount(0),
    owed: TokenAmount(30_000),
};

/// A lease of the providers "honest", which has served for a minute, and "staller", which has not started its leg; that many
/// seconds after `startBy`.
fn incomplete(after_start_by: i64, staller: AllocationPhase) -> World {
    let legs = vec![terms().legs[0]; 2];
    let terms = Terms { legs, ..terms() };
    let account = Account {
        block_time: (NOW + 900).checked_add_signed(after_start_by).unwrap(),
        paid_until: NOW + 4_000,
        deposited: TokenAmount(3_600_000),
        legs: vec![SERVED, LegState::default()],
        ..account(600)
    };
    let mut world = world(AccountRead::Present(account), AllocationPhase::Active);
    let wire = terms.to_wire(network().currency.chain_id, network().currency.escrow);
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    let escrow = status.escrow.as_mut().unwrap();
    escrow.terms = wire.clone();
    let leg = |provider: &str| LeaseLeg {
        provider: provider.into(),
        ..LeaseLeg::default()
    };
    escrow.legs = vec![leg("honest"), leg("staller")];
    let mut other = world.allocations[0].clone();
    for (index, allocation) in [&mut world.allocations[0], &mut other].into_iter().enumerate() {
        let object = Arc::make_mut(&mut allocation.object);
        object.spec.escrow = wire.clone();
        object.spec.leg = i64::try_from(index).unwrap();
        object.metadata.namespace = Some(["provider-honest", "provider-staller"][index].into());
        object.metadata.name = Some(crate::escrow::allocation_name(terms.id(), index));
    }
    world.allocations.push(other);
    report(&mut world, 1, |status| status.phase = staller);
    world
}

fn report(world: &mut World, leg: usize, change: impl FnOnce(&mut GpuAllocationStatus)) {
    let object = Arc::make_mut(&mut world.allocations[leg].object);
    change(object.status.as_mut().unwrap());
}

fn change_account(world: &mut World, change: impl Fn(&mut Account)) {
    for read in [&mut world.account, &mut world.second_account] {
        let Some(Observed::Known(AccountAt {
            read: AccountRead::Present(account),
            ..
        })) = read
        else {
            panic!("it is present");
        };
        change(account);
    }
}

fn planned(world: &World) -> Plan {
    decide(world, &check(world), now())
}

/// No reorganisation drops the newest block any more.
fn finish(world: &mut World) {
    let newest = world.account.clone().unwrap();
    world.final_reads = vec![newest; crate::ports::FINAL_READS];
}

/// The next reconcile reads what the last one stored.
fn store(world: &mut World, plan: Plan) {
    Arc::make_mut(&mut world.lease).status = Some(plan.status);
}

#[test]
fn a_lease_that_one_of_its_providers_does_not_start_is_not_charged_on() {
    let ends = |world: &World| {
        let checked = check(world);
        (checked.end, checked.ends_round)
    };
    // The provider says nothing, or says that it has stopped.
    for phase in [
        AllocationPhase::Provisioning,
        AllocationPhase::Active,
        AllocationPhase::Stopped,
    ] {
        let mut world = incomplete(1, phase);
        assert_eq!(ends(&world), (None, true), "{phase:?}");
        let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
        status.unstarted_rounds = 2;
        assert_eq!(
            ends(&world),
            (Some(CloseReason::NeverStarted), false),
            "{phase:?}"
        );
    }
    assert_eq!(ends(&incomplete(0, AllocationPhase::Provisioning)), (None, false));
    let mut world = incomplete(1, AllocationPhase::Stopped);
    world.second_account = Some(Observed::Unknown("no answer".into()));
    assert_eq!(ends(&world), (None, false), "one reading is none");
    let mut world = incomplete(1, AllocationPhase::Active);
    change_account(&mut world, |a| a.running = 3);
    assert_eq!(ends(&world), (None, false), "it was started late, and serves");
}

/// What a provider says of itself can only cost it the lease.
#[test]
fn a_provider_that_gives_up_before_its_start_is_not_waited_for() {
    for phase in [AllocationPhase::Stopping, AllocationPhase::Declined] {
        let checked = check(&incomplete(-600, phase));
        assert_eq!((checked.end, checked.ends_round), (None, true), "{phase:?}");
    }
    let mut spent = incomplete(-600, AllocationPhase::Stopped);
    change_account(&mut spent, |a| {
        (a.running, a.exhausted_at, a.balance_scaled) = (0, a.block_time, 0);
    });
    let end = check(&spent).end;
    assert_eq!(end, Some(CloseReason::FundsSpent), "it had no time to start");
    let mut nobody = incomplete(-600, AllocationPhase::Stopped);
    change_account(&mut nobody, |a| {
        (a.running, a.started_at, a.paid_seconds, a.legs) = (0, 0, 0, vec![LegState::default(); 2]);
    });
    assert!(check(&nobody).ends_round);
    // A provider that served and gives up ends the lease, as ever.
    let mut given_up = incomplete(-600, AllocationPhase::Provisioning);
    report(&mut given_up, 0, |s| s.phase = AllocationPhase::Stopping);
    assert_eq!(check(&given_up).end, Some(CloseReason::ProviderStopped));
}

#[test]
fn the_round_that_was_not_started_by_all_ends_before_the_next_one_begins() {
    let mut world = incomplete(1, AllocationPhase::Provisioning);
    let plan = planned(&world);
    assert_eq!(plan.status.intent.as_ref().unwrap().action, IntentAction::Close);
    store(&mut world, plan);
    let plan = planned(&world);
    assert!(matches!(plan.call, Some(ChainCall::Close { .. })));
    assert_eq!(plan.allocations.len(), 2, "both are released");
    store(&mut world, plan);
    for allocation in &mut world.allocations {
        Arc::make_mut(&mut allocation.object).spec.release = true;
    }
    // A read that fails meanwhile, and a job that ends because its pods are stopped, change nothing.
    let second = world.second_account.clone();
    world.second_account = Some(Observed::Unknown("no answer".into()));
    let plan = planned(&world);
    assert!(plan.status.intends(IntentAction::Close));
    store(&mut world, plan);
    world.second_account = second;

    change_account(&mut world, |a| (a.closed, a.running) = (true, 0));
    report(&mut world, 0, |s| s.phase = AllocationPhase::Stopping);
    let plan = planned(&world);
    assert!(
        plan.status.escrow.is_some(),
        "the containers of the other leg may run"
    );
    assert_eq!((plan.status.close_reason, plan.call), (None, None));
    report(&mut world, 0, |s| {
        (s.phase, s.stopped_at) = (AllocationPhase::Stopped, Some(now().to_string()));
    });
    let plan = planned(&world);
    assert!(
        plan.status.escrow.is_some(),
        "a reorganisation may drop the close"
    );
    finish(&mut world);
    let plan = planned(&world);
    let status = &plan.status;
    assert_eq!(
        (status.phase, &status.escrow, &status.intent),
        (Phase::Pending, &None, &None)
    );
    assert_eq!(status.excluded_providers, ["staller"]);
    assert_eq!((status.unstarted_rounds, &status.money), (1, &None));
    assert_eq!(status.spent_earlier.as_deref(), Some("0.03"));
    assert_eq!(plan.starts, [("staller".to_owned(), Start::Missed)]);
    let matched = find(&status.conditions, LeaseCondition::Matched).unwrap();
    assert!(
        matched.message.starts_with("staller did not start its part") && matched.message.contains("0.03"),
        "{}",
        matched.message
    );
    assert!(!matched.message.contains("honest"), "{}", matched.message);
}

/// A provider that cannot report has stopped by `notAfter` of its allocation, and twice the skew of the clocks.
#[test]
fn the_next_round_waits_for_a_provider_that_does_not_report_its_stop() {
    let mut world = incomplete(1, AllocationPhase::Stopped);
    change_account(&mut world, |a| (a.closed, a.running) = (true, 0));
    let status = intend(&mut world, IntentAction::Close, "0");
    status.escrow.as_mut().unwrap().legs[0].started = true;
    for allocation in &mut world.allocations {
        Arc::make_mut(&mut allocation.object).spec.release = true;
    }
    finish(&mut world);
    let at = |seconds: i64| {
        let plan = decide(&world, &check(&world), now() + SignedDuration::from_secs(seconds));
        plan.status.escrow.is_none()
    };
    assert_eq!((at(7_320), at(7_321)), (false, true));
}

/// The account is exhausted while it is being closed because a leg was not started.
#[test]
fn a_round_that_is_being_ended_ends_although_its_funds_are_spent() {
    let mut world = incomplete(1, AllocationPhase::Provisioning);
    Arc::make_mut(&mut world.lease).spec.payment.on_funds_end = OnFundsEnd::Pause;
    change_account(&mut world, |a| {
        (a.running, a.exhausted_at, a.balance_scaled) = (0, a.block_time, 0);
    });
    assert!(!check(&world).ends_round, "it ended before all could start");
    intend(&mut world, IntentAction::Close, "0");
    assert!(check(&world).ends_round);
}

/// A backup of etcd shows an earlier round, whose account was closed because a leg was not started. The account of the next
/// round is charged.
#[test]
fn the_account_of_a_later_round_is_adopted_when_that_of_a_restored_status_is_closed() {
    let mut world = incomplete(1, AllocationPhase::Provisioning);
    change_account(&mut world, |a| (a.closed, a.running) = (true, 0));
    assert!(super::super::needs_prior(&world));
    world.prior = Observed::Unknown("the index is behind".into());
    assert_eq!(planned(&world).status.close_reason, None, "it is searched first");
    let salt = network()
        .secret
        .salt(RoundKey::new(MARKET, "uid", 3), terms().payer);
    let later = Terms { salt, ..terms() };
    world.prior = Observed::Known(Some(RecoveredAccount {
        round: 3,
        terms: later.clone(),
    }));
    let status = planned(&world).status;
    assert_eq!((status.close_reason, status.round), (None, 3));
    assert_eq!(status.escrow.unwrap().terms.id, later.id().to_string());
    world.prior = Observed::Known(None);
    assert_eq!(
        planned(&world).status.close_reason,
        Some(CloseReason::ClosedOnChain)
    );
}

/// The payer ended the lease, and wants no other round.
#[test]
fn an_account_that_was_started_and_that_its_payer_closes_ends_the_lease() {
    let mut world = incomplete(1, AllocationPhase::Provisioning);
    change_account(&mut world, |a| (a.closed, a.running) = (true, 0));
    let checked = check(&world);
    assert_eq!(
        (checked.end, checked.ends_round),
        (Some(CloseReason::ClosedOnChain), false)
    );
}

#[test]
fn the_end_names_the_provider_that_did_not_start_and_counts_against_it_alone() {
    let mut world = incomplete(1, AllocationPhase::Provisioning);
    Arc::make_mut(&mut world.lease)
        .status
        .as_mut()
        .unwrap()
        .unstarted_rounds = 2;
    let plan = planned(&world);
    assert_eq!(plan.status.close_reason, Some(CloseReason::NeverStarted));
    let started = [
        ("honest".to_owned(), Start::InTime),
        ("staller".to_owned(), Start::Missed),
    ];
    assert_eq!(plan.starts, started);
    store(&mut world, plan);
    assert_eq!(planned(&world).starts, [], "once");
    change_account(&mut world, |a| (a.closed, a.running) = (true, 0));
    let plan = planned(&world);
    let ready = find(&plan.status.conditions, LeaseCondition::Ready).unwrap();
    assert!(
        ready.message.starts_with("staller did not start"),
        "{}",
        ready.message
    );
    let events = events(world.lease.status.as_ref(), &plan.status);
    let closed = events.iter().find(|e| e.reason == LeaseEvent::Closed).unwrap();
    assert!(
        closed.note.starts_with("NeverStarted: staller did not start") && closed.note.contains("spent 0.03"),
        "{}",
        closed.note
    );
}

/// Each provider's start counts when its own leg starts, and a miss counts once, in whichever round it was.
#[test]
fn a_provider_that_starts_after_another_one_has_started_too() {
    let mut world = incomplete(-600, AllocationPhase::Provisioning);
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    status.excluded_providers = vec!["counted".into(), "nobody".into()];
    status.suspected_providers = vec!["nobody".into()];
    let plan = planned(&world);
    let expected = [
        ("honest".to_owned(), Start::InTime),
        ("nobody".to_owned(), Start::Missed),
    ];
    assert_eq!(plan.starts, expected);
    store(&mut world, plan);
    assert_eq!(planned(&world).starts, []);
    change_account(&mut world, |a| a.running = 3);
    let plan = planned(&world);
    assert_eq!(plan.starts, [("staller".to_owned(), Start::InTime)]);
    store(&mut world, plan);
    assert_eq!(planned(&world).starts, []);
}

/// A job of both providers whose leg `leg` reports that exit code.
fn job(world: &mut World, leg: usize, exit_code: i64, finished_at: Timestamp) {
    Arc::make_mut(&mut world.lease).spec.workload.job = Some(Box::default());
    report(world, leg, |status| {
        status.job = Some(JobResult {
            exit_code,
            finished_at: finished_at.to_string(),
            ..JobResult::default()
        });
    });
}

#[test]
fn the_result_of_a_leg_that_was_not_started_ends_nothing() {
    for exit_code in [0, 1] {
        let mut world = incomplete(-600, AllocationPhase::Provisioning);
        let block = now() + SignedDuration::from_secs(300);
        job(&mut world, 1, exit_code, block);
        let plan = planned(&world);
        assert_eq!((plan.status.close_reason, &plan.status.job), (None, &None));
        assert_eq!(plan.status.intent, None);
        // The chain cannot be read, and the status shows which legs were started.
        store(&mut world, plan);
        let account = world.account.replace(Observed::Unknown("no answer".into()));
        assert_eq!(check(&world).job, None);
        job(&mut world, 0, 1, block);
        assert_eq!(check(&world).end, Some(CloseReason::JobFailed));
        world.account = account;
    }
    // Its leg starts some seconds after its job has failed, or it never does. The clock of its provider tells nothing.
    let mut world = incomplete(-600, AllocationPhase::Provisioning);
    job(&mut world, 1, 127, Timestamp::UNIX_EPOCH);
    let plan = planned(&world);
    let failed_since = |plan: &Plan| plan.status.escrow.as_ref().unwrap().legs[1].failed_since;
    assert_eq!(failed_since(&plan), i64::try_from(NOW + 300).ok());
    store(&mut world, plan);
    let after = |seconds: u64| {
        let mut world = world.clone();
        change_account(&mut world, |a| a.block_time += seconds);
        world
    };
    let ends = |seconds| check(&after(seconds)).ends_round;
    assert_eq!((ends(0), ends(60), ends(61)), (false, false, true));
    let mut started = after(60);
    change_account(&mut started, |a| a.running = 3);
    assert_eq!(check(&started).end, Some(CloseReason::JobFailed));
    assert_eq!(failed_since(&planned(&started)), None);
}

/// A provider says that it serves, and its leg stands.
#[test]
fn a_lease_is_not_ready_before_every_leg_was_started() {
    let mut world = incomplete(-600, AllocationPhase::Active);
    let ready = |world: &World| {
        let status = planned(world).status;
        let provisioned = is_true(&status.conditions, "Provisioned");
        (provisioned, is_true(&status.conditions, "Ready"))
    };
    assert_eq!(ready(&world), (false, false));
    change_account(&mut world, |a| a.running = 3);
    assert_eq!(ready(&world), (true, true));
}

/// An allocation that was lost says nothing of its leg.
#[test]
fn a_job_has_not_succeeded_while_the_allocation_of_a_leg_is_missing() {
    let mut world = incomplete(-600, AllocationPhase::Active);
    change_account(&mut world, |a| a.running = 3);
    job(&mut world, 0, 0, now());
    world.allocations.truncate(1);
    assert_eq!(check(&world).job, None);
}

/// `totalAtMost` is that of the lease.
#[test]
fn what_earlier_rounds_have_cost_is_not_topped_up_again() {
    let topped_up = |earlier: Option<&str>| {
        let mut world = incomplete(-600, AllocationPhase::Active);
        change_account(&mut world, |a| (a.running, a.paid_until) = (3, NOW + 310));
        let lease = Arc::make_mut(&mut world.lease);
        lease.spec.payment.top_up = serde_json::from_value(json!({
            "whenRunwayBelow": "1m", "extendBy": "10m", "totalAtMost": "5",
        }))
        .unwrap();
        lease.status.as_mut().unwrap().spent_earlier = earlier.map(str::to_owned);
        let world = parsed(&world);
        planned(&world).status.intends(IntentAction::Fund)
    };
    assert!(topped_up(None));
    assert!(topped_up(Some("0.5")));
    assert!(!topped_up(Some("4")));
}
