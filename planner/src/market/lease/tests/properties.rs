//! Properties of every plan.

use super::*;

fn reads() -> impl Strategy<Value = Option<Observed<AccountAt>>> {
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
        Just(Some(known(AccountRead::Absent))),
        Just(Some(known(AccountRead::Mismatch))),
        present.prop_map(|read| Some(known(read))),
    ]
}

fn worlds() -> impl Strategy<Value = World> {
    let phase = prop::sample::select(Phase::ALL);
    let provider = prop::sample::select(AllocationPhase::ALL);
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
                delete(lease);
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
    /// M2: what is sent was stored by an earlier reconcile.
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
        let again = plan.must_persist_first(world.lease.status.as_ref());
        prop_assert!(plan.wake > now() || (again && plan.wake >= now()), "{:?}", plan.wake);
    }
}
