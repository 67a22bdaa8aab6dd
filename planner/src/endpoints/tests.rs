use leasehold_crds::payment::money::TokenAmount;

use super::*;
use crate::escrow::Account;

const NOW: i64 = 1_800_000_000;
const NOW_U: u64 = 1_800_000_000;
const MAX_AGE: u64 = 120;
/// Until when the account can start and be opened.
const BY: (u64, u64) = (NOW_U + 100, NOW_U + 50);

fn now(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

/// The block of that second.
fn block(seconds: u64) -> Head {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&seconds.to_be_bytes());
    Head {
        number: 1_000 + seconds,
        hash: Hash(hash),
        time: NOW_U + seconds,
    }
}

fn at(seconds: u64, read: AccountRead) -> AccountAt {
    AccountAt {
        block: block(seconds),
        read,
    }
}

/// An account that serves.
fn account(seconds: u64) -> Account {
    Account {
        closed: false,
        deposited: TokenAmount(1_000),
        balance_scaled: 1,
        block_time: NOW_U + seconds,
        paid_until: NOW_U + 3_600,
        exhausted_at: 0,
        started_at: NOW_U,
        paid_seconds: seconds,
        running: 1,
        ended: 0,
        legs: Vec::new(),
    }
}

/// Every answer by which something ends.
fn endings(seconds: u64) -> Vec<AccountRead> {
    let of = |change: fn(&mut Account)| {
        let mut account = account(seconds);
        change(&mut account);
        AccountRead::Present(account)
    };
    vec![
        AccountRead::Absent,
        AccountRead::Mismatch,
        of(|a| a.closed = true),
        of(|a| (a.running, a.exhausted_at) = (0, NOW_U + 10)),
        of(|a| (a.running, a.started_at) = (0, 0)),
    ]
}

fn unreachable<T>() -> Result<T, PaymentError> {
    Err(PaymentError::Unreachable("no answer".into()))
}

/// What is believed of an answer when the other endpoint gives that one about the same block.
fn believed(leading: &AccountAt, newest: &Observed<Head>, other: Result<AccountAt, PaymentError>) -> Belief {
    let confirmation = Endpoints::two().confirm(leading, newest, other, now(0));
    belief(leading, &confirmation, BY)
}

#[test]
fn an_end_is_believed_only_if_both_endpoints_say_so_of_one_block() {
    let seconds = 200;
    let newest = Observed::Known(block(seconds + 1));
    for ending in endings(seconds) {
        let leading = at(seconds, ending.clone());
        assert_eq!(
            believed(&leading, &newest, Ok(leading.clone())),
            Belief::Confirmed
        );
        // One of them lies, whichever it is.
        let open = at(seconds, AccountRead::Present(account(seconds)));
        assert!(matches!(
            believed(&leading, &newest, Ok(open.clone())),
            Belief::Unknown(_)
        ));
        // What ends nothing goes on.
        assert_eq!(believed(&open, &newest, Ok(leading.clone())), Belief::Alone);
        // The other one is down, or has another block.
        assert!(matches!(
            believed(&leading, &newest, unreachable()),
            Belief::Unknown(_)
        ));
        let another = at(seconds + 1, ending.clone());
        assert!(matches!(
            believed(&leading, &newest, Ok(another)),
            Belief::Unknown(_)
        ));
        let down = Observed::Unknown("no answer".into());
        assert!(matches!(
            believed(&leading, &down, Ok(leading.clone())),
            Belief::Unknown(_)
        ));
        // The leading one is stuck.
        let newest = Observed::Known(block(seconds + 16));
        assert!(matches!(
            believed(&leading, &newest, Ok(leading.clone())),
            Belief::Unknown(_)
        ));
    }
}

#[test]
fn what_ends_nothing_goes_on_with_one_endpoint() {
    let newest = Observed::Known(block(20));
    let mut unstarted = account(20);
    (unstarted.started_at, unstarted.running) = (0, 0);
    for read in [
        AccountRead::Absent,
        AccountRead::Present(unstarted),
        AccountRead::Present(account(20)),
    ] {
        let leading = at(20, read);
        assert_eq!(believed(&leading, &newest, unreachable()), Belief::Alone);
    }
}

#[test]
fn the_second_endpoint_leads_while_the_first_one_fails() {
    let mut one = Endpoints::default();
    one.head(Endpoint::First, unreachable(), MAX_AGE, now(0));
    assert_eq!((one.leading(), one.confirming()), (Endpoint::First, None));
    assert_eq!(one.agreement(now(0)), Agreement::Single);

    let mut two = Endpoints::two();
    assert_eq!(
        (two.leading(), two.confirming()),
        (Endpoint::First, Some(Endpoint::Second))
    );
    two.head(Endpoint::First, unreachable(), MAX_AGE, now(0));
    two.head(Endpoint::Second, Ok(block(0)), MAX_AGE, now(0));
    assert_eq!(
        (two.leading(), two.confirming()),
        (Endpoint::Second, Some(Endpoint::First))
    );
    assert!(matches!(two.agreement(now(0)), Agreement::OneFails(why) if why.contains("first")));
    // Where both fail, none is better.
    two.head(Endpoint::Second, unreachable(), MAX_AGE, now(1));
    assert_eq!(two.leading(), Endpoint::First);
    two.head(Endpoint::First, Ok(block(2)), MAX_AGE, now(2));
    two.head(Endpoint::Second, Ok(block(2)), MAX_AGE, now(2));
    assert_eq!(two.agreement(now(2)), Agreement::Agree);
}

#[test]
fn a_stuck_endpoint_does_not_hide_the_other_one() {
    let mut two = Endpoints::two();
    for second in 0..200 {
        let newest = block(u64::try_from(second).unwrap());
        two.head(Endpoint::First, Ok(block(0)), MAX_AGE, now(second));
        let other = two.head(Endpoint::Second, Ok(newest), MAX_AGE, now(second));
        assert!(other.known().is_some());
    }
    assert_eq!(two.leading(), Endpoint::Second);
}

#[test]
fn a_disagreement_is_reported_for_ten_minutes() {
    let mut two = Endpoints::two();
    let newest = Observed::Known(block(20));
    let closed = endings(20).remove(2);
    let leading = at(20, closed);
    let other = at(20, AccountRead::Present(account(20)));
    two.confirm(&leading, &newest, Ok(other), now(0));
    let told = two.agreement(now(599));
    assert!(
        matches!(&told, Agreement::Disagree(what) if what.contains("closed, the other open")),
        "{told:?}"
    );
    assert_eq!(two.agreement(now(600)), Agreement::Agree);
}

#[test]
fn events_count_only_if_both_endpoints_have_the_same() {
    let known = |n: Option<u8>| Observed::Known(n);
    let unknown = || Observed::Unknown("no answer".into());
    assert_eq!(agreed(known(None), known(None)), known(None));
    assert_eq!(agreed(known(Some(1)), known(Some(1))), known(Some(1)));
    for (one, other) in [
        (known(None), known(Some(1))),
        (known(Some(2)), known(Some(1))),
        (known(None), unknown()),
        (unknown(), known(Some(1))),
    ] {
        assert!(agreed(one, other).known().is_none());
    }
}
