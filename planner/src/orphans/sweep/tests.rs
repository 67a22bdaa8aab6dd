use leasehold_crds::{
    GpuLease,
    lease::{GpuLeaseSpec, GpuLeaseStatus, LeaseEscrow},
    payment::money::{Rate, TokenAmount},
};

use super::*;
use crate::escrow::Leg;

const TOKEN: Address = Address([5; 20]);
const CLOSER: Address = Address([6; 20]);
const OWN: (Address, Address) = (TOKEN, CLOSER);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn terms(n: u32) -> Terms {
    let mut salt = [0; 32];
    salt[..4].copy_from_slice(&n.to_be_bytes());
    let leg = Leg {
        payee: Address([1; 20]),
        controller: Address([2; 20]),
        rate: Rate(1_000_000_000_000),
    };
    Terms {
        payer: Address([3; 20]),
        market: Address([4; 20]),
        token: TOKEN,
        closer: CLOSER,
        salt: Hash(salt),
        start_by: 1_000,
        notice_seconds: 0,
        pause_for: 0,
        legs: vec![leg, leg],
    }
}

/// An account that never started, and that anybody may close.
fn unstarted(deposited: u128) -> AccountRead {
    AccountRead::Present(Account {
        closed: false,
        deposited: TokenAmount(deposited),
        balance_scaled: deposited * 1_000_000_000_000,
        block_time: 2_000,
        paid_until: 0,
        exhausted_at: 0,
        started_at: 0,
        paid_seconds: 0,
        running: 0,
        ended: 0,
        legs: vec![],
    })
}

/// One pass over these accounts, all with such a deposit.
fn pass(sweep: &mut Sweep, accounts: &[Terms], deposited: u128, now: i64) -> SweepPlan {
    let read = sweep.next(accounts, OWN);
    let read = read.into_iter().map(|terms| (terms, unstarted(deposited)));
    let agreed = sweep.agreed(read, 6, at(now));
    sweep.plan(agreed, &Claims::default())
}

#[test]
fn an_orphan_is_closed_when_two_readings_agree_and_no_lease_has_appeared() {
    let mut sweep = Sweep::default();
    assert_eq!(pass(&mut sweep, &[terms(1)], 5_000, 0), SweepPlan::default());
    assert_eq!(pass(&mut sweep, &[terms(1)], 5_000, 30).close, [(terms(1), 0b11)]);
    let mut lease = GpuLease::new("l", GpuLeaseSpec::default());
    let mut escrow = LeaseEscrow::default();
    escrow.terms.id = terms(1).id().to_string();
    lease.status = Some(GpuLeaseStatus {
        escrow: Some(escrow),
        ..GpuLeaseStatus::default()
    });
    let claims = Claims::of(Address([4; 20]), [&lease]);
    let agreed = sweep.agreed([(terms(1), unstarted(5_000))], 6, at(60));
    assert_eq!(sweep.plan(agreed, &claims), SweepPlan::default());
}

#[test]
fn an_account_with_another_token_or_closer_is_not_even_read() {
    let other = Address([9; 20]);
    let token = Terms {
        token: other,
        ..terms(1)
    };
    let closer = Terms {
        closer: other,
        ..terms(2)
    };
    let mut sweep = Sweep::default();
    assert_eq!(sweep.next(&[token, terms(3), closer], OWN), [terms(3)]);
}

#[test]
fn an_account_that_returns_nothing_is_not_closed() {
    let mut sweep = Sweep::default();
    for now in [0, 30, 60] {
        assert_eq!(pass(&mut sweep, &[terms(1)], 999, now), SweepPlan::default());
    }
    assert_eq!(sweep.left(), 1);
}

#[test]
fn an_account_that_cannot_be_closed_delays_no_other() {
    let both = [terms(1), terms(2)];
    let mut sweep = Sweep::default();
    pass(&mut sweep, &both, 5_000, 0);
    assert_eq!(pass(&mut sweep, &both, 5_000, 30).close.len(), 2);
    sweep.failed(terms(1).id(), at(30));
    assert_eq!(pass(&mut sweep, &both, 5_000, 60).close, [(terms(2), 0b11)]);
    assert_eq!(pass(&mut sweep, &both, 5_000, 90).close.len(), 2);
    for _ in 0..9 {
        sweep.failed(terms(1).id(), at(90));
    }
    assert_eq!(pass(&mut sweep, &both, 5_000, 3_600).close.len(), 1);
    assert_eq!(pass(&mut sweep, &both, 5_000, 3_690).close.len(), 2);
}

#[test]
fn every_account_is_read_in_turn_however_many_there_are() {
    let accounts: Vec<Terms> = (0..1_200).map(terms).collect();
    let mut sweep = Sweep::default();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let next = sweep.next(&accounts, OWN);
        assert!(next.len() <= READS_MAX);
        seen.extend(next.iter().map(Terms::id));
    }
    assert_eq!(seen.len(), accounts.len());
    let mut sweep = Sweep::default();
    let closed: usize = (0..9)
        .map(|n| pass(&mut sweep, &accounts, 5_000, n * 30).close.len())
        .sum();
    assert!(closed > CLOSES_MAX && closed <= 9 * CLOSES_MAX, "{closed}");
}

#[test]
fn what_is_closed_or_gone_is_forgotten() {
    let mut sweep = Sweep::default();
    let mut forgotten = Vec::new();
    for now in [0, 30] {
        let read = sweep.next(&[terms(1)], OWN);
        let read = read.into_iter().map(|terms| (terms, AccountRead::Absent));
        let agreed = sweep.agreed(read, 6, at(now));
        forgotten.extend(sweep.plan(agreed, &Claims::default()).forget);
    }
    assert_eq!(forgotten, [terms(1)]);
}
