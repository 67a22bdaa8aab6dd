//! Why a lease ends, and when the intent to close is stored.

use jiff::SignedDuration;

use super::*;

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
    early.second_account = Some(known(AccountRead::Present(account(1))));
    assert_eq!(check(&early).end, None, "one reading is none");
    assert_eq!(
        end_of(exhausted(), AllocationPhase::Stopped),
        Some(CloseReason::FundsSpent)
    );
}

/// The wallet is empty, so that the top-up or the extension is never paid.
#[test]
fn a_payment_that_is_not_made_keeps_a_lease_open_for_a_minute() {
    let ends = |waited: u64| {
        let mut world = world(
            AccountRead::Present(Account {
                exhausted_at: NOW - waited,
                ..exhausted()
            }),
            AllocationPhase::Suspended,
        );
        intend(&mut world, IntentAction::Fund, "2000000");
        check(&world).end
    };
    assert_eq!(ends(59), None);
    assert_eq!(ends(60), Some(CloseReason::FundsSpent));
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
            "its allocations are released"
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

/// A status that was lost, and the chain that would show the account is gone.
#[test]
fn a_lease_without_an_account_is_given_up_by_its_uid() {
    let mut world = world(AccountRead::Absent, AllocationPhase::Active);
    (world.account, world.second_account) = (None, None);
    world.prior = Observed::Unknown("the chain is gone".into());
    let lease = Arc::make_mut(&mut world.lease);
    lease.status = None;
    delete(lease);
    let plan = decide(&world, &check(&world), now());
    assert_eq!((plan.finalizer, plan.status.phase), (None, Phase::Pending));
    for (value, finalizer) in [("another", None), ("uid", Some(false))] {
        let abandon = [(leasehold_crds::ANNOTATION_ABANDON.to_owned(), value.to_owned())];
        Arc::make_mut(&mut world.lease).metadata.annotations = Some(abandon.into());
        let plan = decide(&world, &check(&world), now());
        assert_eq!(plan.finalizer, finalizer);
        assert_eq!(plan.must_persist_first(None), finalizer.is_none());
    }
    let plan = decide(&world, &check(&world), now());
    assert!(matches!(
        plan.allocations.as_slice(),
        [AllocationWrite::Release { .. }]
    ));
}

/// The market dies between its first two writes, or the chain is gone before anything was paid.
#[test]
fn a_lease_for_which_nothing_was_intended_ends_while_the_chain_is_unreachable() {
    let mut world = world(AccountRead::Absent, AllocationPhase::Reserved);
    let lease = Arc::make_mut(&mut world.lease);
    (lease.status, lease.metadata.finalizers) = (None, None);
    world.allocations.clear();
    let first = decide(&world, &check(&world), now());
    assert!(first.must_persist_first(None));
    assert_eq!(first.finalizer, None, "the finalizer follows the status");

    let lease = Arc::make_mut(&mut world.lease);
    lease.status = Some(first.status);
    let second = decide(&world, &check(&world), now());
    assert_eq!(second.finalizer, Some(true));

    let lease = Arc::make_mut(&mut world.lease);
    lease.metadata.finalizers = Some(vec![FINALIZER_MARKET.into()]);
    delete(lease);
    assert!(!seeks_prior(&world.lease));
    assert_eq!(decide(&world, &check(&world), now()).finalizer, Some(false));

    let mut matched = self::world(AccountRead::Absent, AllocationPhase::Reserved);
    (matched.account, matched.second_account) = (Some(Observed::Unknown("no answer".into())), None);
    matched.head = Observed::Unknown("no answer".into());
    let lease = Arc::make_mut(&mut matched.lease);
    lease.metadata.deletion_timestamp = world.lease.metadata.deletion_timestamp.clone();
    lease.status.as_mut().unwrap().phase = Phase::Matched;
    let plan = decide(&matched, &check(&matched), now());
    assert_eq!(plan.finalizer, Some(false));
    assert!(matches!(
        plan.allocations.as_slice(),
        [AllocationWrite::Delete { .. }]
    ));
    intend(&mut matched, IntentAction::Open, "1");
    assert_eq!(decide(&matched, &check(&matched), now()).finalizer, None);
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
    delete(lease);
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
    let absent = Some(known(AccountRead::Absent));
    (lost.account, lost.second_account) = (absent.clone(), absent);
    Arc::make_mut(&mut lost.lease).status = Some(plan.status);
    assert_eq!(check(&lost).account_state, AccountState::Absent);
    assert_eq!(decide(&lost, &check(&lost), now()).finalizer, None);
}

/// A backend that is stuck at an old block answers twice, and another one has the newest block.
#[test]
fn an_absence_tells_nothing_of_blocks_after_its_own() {
    let open_by = NOW - 100;
    let absent_at = |time: u64| {
        Some(Observed::Known(AccountAt {
            block: Head { time, ..head() },
            read: AccountRead::Absent,
        }))
    };
    for phase in [Phase::Matched, Phase::Active] {
        let mut stuck = world(AccountRead::Absent, AllocationPhase::Active);
        let status = Arc::make_mut(&mut stuck.lease).status.as_mut().unwrap();
        status.phase = phase;
        status.intent = phase.is_unpaid().then(|| Intent {
            action: IntentAction::Open,
            total: Some("1000000".into()),
            written_at: now().to_string(),
        });
        let old = open_by + 15;
        for (one, other) in [(old, old), (old, NOW), (NOW, old)] {
            (stuck.account, stuck.second_account) = (absent_at(one), absent_at(other));
            let checked = check(&stuck);
            assert_eq!((checked.account_state, checked.end), (AccountState::Absent, None));
            let plan = decide(&stuck, &checked, now());
            assert!(plan.status.escrow.is_some(), "no second account may be opened");
            assert!(plan.allocations.is_empty());
        }
        (stuck.account, stuck.second_account) = (absent_at(old + 1), absent_at(NOW));
        assert_eq!(check(&stuck).account_state, AccountState::NeverOpened);
    }
}

#[test]
fn a_paid_lease_that_is_deleted_with_its_crd_is_served_on() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    delete(Arc::make_mut(&mut world.lease));
    assert!(needs_deletion_cause(&world.lease));
    let of = |crd: Observed<bool>| Deletion::of(&world.lease, Some(crd));
    for (crd, end) in [
        (Observed::Known(false), Some(CloseReason::Deleted)),
        (Observed::Known(true), None),
        (Observed::Unknown("no answer".into()), None),
    ] {
        let world = World {
            deletion: of(crd.clone()),
            ..world.clone()
        };
        let checked = super::super::check(&world);
        let plan = super::super::decide(&world, &checked, now());
        assert_eq!(checked.end, end, "{crd:?}");
        assert_eq!(world.deletion.note().is_none(), end.is_some(), "{crd:?}");
        assert!(plan.wake <= now() + jiff::SignedDuration::from_secs(5), "{crd:?}");
    }
}

/// A provider that reports a success before its leg has served a second has run nothing.
#[test]
fn a_job_succeeds_only_where_something_has_run() {
    let end = |exit_code: i64, running: u16, leg: LegState| {
        let account = Account {
            running,
            legs: vec![leg],
            ..account(600)
        };
        let mut world = world(AccountRead::Present(account), AllocationPhase::Provisioning);
        let lease = Arc::make_mut(&mut world.lease);
        lease.spec.workload.job = Some(Box::default());
        let allocation = Arc::make_mut(&mut world.allocations[0].object);
        allocation.status.as_mut().unwrap().job = Some(JobResult {
            exit_code,
            ..JobResult::default()
        });
        check(&world).end
    };
    let served = LegState {
        served_seconds: 1,
        ..LegState::default()
    };
    assert_eq!(end(0, 0, LegState::default()), None);
    assert_eq!(end(0, 1, LegState::default()), Some(CloseReason::JobSucceeded));
    assert_eq!(end(0, 0, served), Some(CloseReason::JobSucceeded));
    assert_eq!(
        end(1, 0, LegState::default()),
        None,
        "its leg may be about to start"
    );
    assert_eq!(end(1, 0, served), Some(CloseReason::JobFailed));
}

/// A lease whose account is closed in the newest block.
fn closed() -> (World, Observed<AccountAt>) {
    let closed = known(AccountRead::Present(Account {
        closed: true,
        ..account(600)
    }));
    let mut world = world(AccountRead::Absent, AllocationPhase::Stopped);
    (world.account, world.second_account) = (Some(closed.clone()), Some(closed.clone()));
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    (status.phase, status.close_reason) = (Phase::Closed, Some(CloseReason::TermOver));
    (world, closed)
}

#[test]
fn a_closed_lease_is_kept_until_the_end_of_its_account_is_final() {
    let (mut world, closed) = closed();
    let open = known(AccountRead::Present(account(600)));
    let unknown = Observed::Unknown("no such level".to_owned());
    for not_final in [
        vec![],
        vec![closed.clone()],
        vec![open.clone(), closed.clone()],
        vec![closed.clone(), unknown],
        vec![known(AccountRead::Absent); 2],
    ] {
        world.final_reads = not_final;
        let plan = decide(&world, &check(&world), now());
        assert_eq!(
            (plan.finalizer, plan.call),
            (None, None),
            "{:?}",
            world.final_reads
        );
        assert!(plan.wake <= now() + jiff::SignedDuration::from_secs(60));
    }
    // The same while it is being deleted, in the reconcile that sees the close.
    let mut deleted = world.clone();
    let lease = Arc::make_mut(&mut deleted.lease);
    delete(lease);
    lease.status.as_mut().unwrap().phase = Phase::Settling;
    let plan = decide(&deleted, &check(&deleted), now());
    assert_eq!((plan.status.phase, plan.finalizer), (Phase::Closed, None));

    let is_final = vec![closed; 2];
    (world.final_reads, deleted.final_reads) = (is_final.clone(), is_final);
    assert_eq!(decide(&world, &check(&world), now()).finalizer, Some(false));
    assert_eq!(decide(&deleted, &check(&deleted), now()).finalizer, Some(false));
}

#[test]
fn a_close_that_a_reorganisation_drops_is_sent_again() {
    let (mut world, closed) = closed();
    let open = Some(known(AccountRead::Present(account(600))));
    world.account.clone_from(&open);
    assert_eq!(
        decide(&world, &check(&world), now()).status.intent,
        None,
        "one read is none"
    );
    world.second_account.clone_from(&open);
    let first = decide(&world, &check(&world), now());
    assert_eq!((first.status.phase, first.call), (Phase::Closed, None));
    assert_eq!(first.status.intent.as_ref().unwrap().action, IntentAction::Close);
    Arc::make_mut(&mut world.lease).status = Some(first.status);
    let second = decide(&world, &check(&world), now());
    assert!(
        matches!(second.call, Some(ChainCall::Close { .. })),
        "{:?}",
        second.call
    );
    assert_eq!(second.finalizer, None);
    // Nobody waits for an account that was given up.
    let mut given_up = world.clone();
    Arc::make_mut(&mut given_up.lease)
        .status
        .as_mut()
        .unwrap()
        .close_reason = Some(CloseReason::Abandoned);
    let plan = decide(&given_up, &check(&given_up), now());
    assert_eq!((plan.finalizer, plan.call), (Some(false), None));
    (world.account, world.second_account) = (Some(closed.clone()), Some(closed));
    assert_eq!(decide(&world, &check(&world), now()).status.intent, None);
}

/// A status that was lost and found again says nothing of what was paid. If the lease is deleted while the chain cannot be read,
/// it does not count as one for which nothing was intended.
#[test]
fn a_recovered_lease_whose_legs_are_paused_does_not_end_without_its_account() {
    let mut paused = account(600);
    paused.running = 0;
    let mut world = world(AccountRead::Present(paused), AllocationPhase::Active);
    intend(&mut world, IntentAction::Open, "1000000").phase = Phase::Pending;
    let mut status = decide(&world, &check(&world), now()).status;
    assert_eq!(status.phase, Phase::Funded);
    status.intent = None;

    let lease = Arc::make_mut(&mut world.lease);
    lease.status = Some(status);
    lease.metadata.deletion_timestamp = Some(Time(now()));
    let unknown = || Observed::Unknown("no answer".into());
    (world.account, world.second_account) = (Some(unknown()), None);
    let checked = check(&world);
    assert_eq!(checked.account_state, AccountState::Unknown);
    assert_eq!(decide(&world, &checked, now()).finalizer, None);
}

/// A reorganisation dropped the account of a round for good, after its provider had seen it. The next round begins when the
/// provider has stopped, or cannot start any more.
#[test]
fn a_round_whose_account_is_gone_ends_before_the_next_one_begins() {
    let with = |phase: AllocationPhase, released: bool, at: Timestamp| {
        let mut world = world(AccountRead::Absent, phase);
        let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
        (status.phase, status.escrow, status.intent) = (Phase::Pending, None, None);
        (world.account, world.second_account) = (None, None);
        world.parsed.terms = None;
        let object = Arc::make_mut(&mut world.allocations[0].object);
        object.spec.escrow = terms().to_wire(31_337, Address([9; 20]));
        object.spec.release = released;
        world
            .allocations
            .retain(|seen| concerns(&world.lease, &seen.object, at));
        let plan = decide(&world, &check(&world), at);
        assert_eq!((plan.status.phase, plan.status.round), (Phase::Pending, 1));
        (world.allocations.len(), plan.allocations)
    };
    let late = now() + SignedDuration::from_secs(901);
    for at in [now(), late] {
        let (_, writes) = with(AllocationPhase::Provisioning, false, at);
        assert!(matches!(writes.as_slice(), [AllocationWrite::Release { .. }]));
        let (_, writes) = with(AllocationPhase::Reserved, false, at);
        assert!(matches!(writes.as_slice(), [AllocationWrite::Delete { .. }]));
    }
    for phase in [AllocationPhase::Provisioning, AllocationPhase::Stopping] {
        assert_eq!(with(phase, true, now()), (1, vec![]), "{phase:?} is waited for");
        assert_eq!(
            with(phase, true, late),
            (0, vec![]),
            "{phase:?} cannot start any more"
        );
    }
    assert_eq!(with(AllocationPhase::Stopped, true, now()), (0, vec![]));
}

#[test]
fn an_account_that_one_of_two_reads_shows_as_closed_is_not_closed() {
    let mut world = world(AccountRead::Present(account(600)), AllocationPhase::Active);
    let closed = Account {
        closed: true,
        ..account(600)
    };
    let closed = Some(known(AccountRead::Present(closed)));
    let open = world.account.clone();
    for (first, second) in [(&closed, &open), (&open, &closed), (&closed, &None)] {
        (world.account, world.second_account) = (first.clone(), second.clone());
        assert_eq!(check(&world).account_state, AccountState::Present);
        assert_eq!(check(&world).end, None);
    }
    (world.account, world.second_account) = (closed.clone(), closed);
    assert_eq!(check(&world).account_state, AccountState::Closed);
}
