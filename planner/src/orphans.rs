//! Orphans: accounts without a lease, and namespaces without a reservation. An orphan that is still paid for is never
//! removed, because a restored etcd or a reinstalled CRD must not stop paid work. It is reported, and ends at its own
//! deadline.

mod sweep;

pub use sweep::{Agreed, Sweep, SweepPlan};

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use leasehold_crds::GpuLease;

use crate::{
    escrow::{Account, AccountAt, AccountRead, Address, Hash, RoundKey, Terms},
    market::lease::{ROUNDS_MAX, seeks_prior},
    ports::FINAL_READS,
};

/// What to do with an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It may still be paid for, or be paid in time: keep and report it.
    Leave,
    /// It is not paid for and cannot be any more: remove it.
    Clear,
    /// There is nothing to clear on the chain.
    Over,
}

/// Decides by the account, at the time of the block at which it was read. Only accounts that the contract lets anybody
/// close are cleared (`close` in Escrow.sol).
#[must_use]
pub fn assess(terms: &Terms, read: &AccountRead) -> Verdict {
    let Some(account) = read.present() else {
        return Verdict::Over;
    };
    if account.closed {
        Verdict::Over
    } else if is_left(terms, account) {
        Verdict::Clear
    } else {
        Verdict::Leave
    }
}

/// The ids of those of `accounts` of which nothing can come any more. Each of `reads` is an answer about all of them, in their
/// order, at the block level at which their end is final. [`FINAL_READS`] answers must agree: an account that is forgotten is
/// never closed again.
#[must_use]
pub fn over_for_good(accounts: &[Terms], reads: &[Vec<AccountAt>]) -> Vec<Hash> {
    if reads.len() < FINAL_READS {
        return Vec::new();
    }
    let agree = |(index, terms): &(usize, &Terms)| {
        let mut answers = reads.iter().map(|read| read.get(*index));
        answers.all(|at| at.is_some_and(|at| is_final(terms, at)))
    };
    let over = accounts.iter().enumerate().filter(agree);
    over.map(|(_, terms)| terms.id()).collect()
}

fn is_final(terms: &Terms, at: &AccountAt) -> bool {
    match &at.read {
        AccountRead::Present(account) => account.closed,
        AccountRead::Mismatch => true,
        AccountRead::Absent => at.block.time > terms.start_by,
    }
}

/// A namespace without a reservation is kept as long as the results of a job in it are, whatever its account.
#[must_use]
pub fn unless_kept(verdict: Verdict, until: Option<&str>, now: Timestamp) -> Verdict {
    let kept = until
        .and_then(|t| t.parse::<Timestamp>().ok())
        .is_some_and(|t| now < t);
    if kept { Verdict::Leave } else { verdict }
}

fn is_left(terms: &Terms, account: &Account) -> bool {
    let never_started = account.started_at == 0 && account.block_time > terms.start_by;
    let all_ended = u32::from(account.ended).count_ones() as usize >= terms.legs.len();
    let pause_over = account.exhausted_at != 0
        && account.block_time >= account.exhausted_at.saturating_add(u64::from(terms.pause_for));
    never_started || all_ended || pause_over
}

/// Accounts that leases name: by id, and by round those of leases whose status was lost and that may find theirs again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    ids: BTreeSet<String>,
    rounds: BTreeSet<RoundKey>,
}

impl Claims {
    /// What `leases` name.
    #[must_use]
    pub fn of<'a>(market: Address, leases: impl IntoIterator<Item = &'a GpuLease>) -> Self {
        let mut claims = Self::default();
        // A closed lease asks nothing more of its account: a person may have given it up.
        let live = |l: &&GpuLease| l.status.as_ref().is_none_or(|s| !s.phase.is_over());
        for lease in leases.into_iter().filter(live) {
            if let Some(escrow) = lease.status.as_ref().and_then(|s| s.escrow.as_ref()) {
                claims.ids.insert(escrow.terms.id.to_ascii_lowercase());
            } else if let (true, Some(uid)) = (seeks_prior(lease), &lease.metadata.uid) {
                claims
                    .rounds
                    .extend((1..=ROUNDS_MAX).map(|round| RoundKey::new(market, uid, round)));
            }
        }
        claims
    }

    /// Whether somebody names it.
    #[must_use]
    pub fn has(&self, terms: &Terms) -> bool {
        self.rounds.contains(&RoundKey::of(terms.salt)) || self.ids.contains(&terms.id().to_string())
    }
}

/// What the last look found: nothing is cleared on one reading alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects<K: Ord>(BTreeMap<K, Verdict>);

impl<K: Ord + Clone> Suspects<K> {
    /// Takes what this look found in place of the last one's; gives back what both say, but for what is to be left.
    pub fn agreed(&mut self, found: BTreeMap<K, Verdict>) -> BTreeMap<K, Verdict> {
        let same = |(key, verdict): (&K, &Verdict)| {
            (*verdict != Verdict::Leave && self.0.get(key) == Some(verdict)).then(|| (key.clone(), *verdict))
        };
        let agreed = found.iter().filter_map(same).collect();
        self.0 = found;
        agreed
    }

    /// How many are left alone.
    #[must_use]
    pub fn left(&self) -> usize {
        self.0.values().filter(|v| **v == Verdict::Leave).count()
    }
}

#[cfg(test)]
mod tests {
    use leasehold_crds::{
        lease::{GpuLeaseSpec, GpuLeaseStatus, LeaseEscrow, Phase},
        payment::{
            escrow::EscrowTerms,
            money::{Rate, TokenAmount},
        },
    };

    use super::*;
    use crate::{
        escrow::{Leg, MarketSecret},
        ports::{Head, SigningKey},
    };

    fn terms() -> Terms {
        let leg = Leg {
            payee: Address([1; 20]),
            controller: Address([2; 20]),
            rate: Rate(1_000_000),
        };
        let key = RoundKey::new(Address([4; 20]), "uid", 1);
        Terms {
            payer: Address([3; 20]),
            market: Address([4; 20]),
            token: Address([5; 20]),
            closer: Address([6; 20]),
            salt: MarketSecret::of(&SigningKey([7; 32])).salt(key, Address([3; 20])),
            start_by: 1_000,
            notice_seconds: 0,
            pause_for: 600,
            legs: vec![leg, leg],
        }
    }

    fn account(change: impl FnOnce(&mut Account)) -> AccountRead {
        let mut account = Account {
            closed: false,
            deposited: TokenAmount(100),
            balance_scaled: 100,
            block_time: 2_000,
            paid_until: 3_000,
            exhausted_at: 0,
            started_at: 900,
            paid_seconds: 1_100,
            running: 3,
            ended: 0,
            legs: vec![],
        };
        change(&mut account);
        AccountRead::Present(account)
    }

    #[test]
    fn paid_work_is_left_alone_and_the_rest_cleared_when_anybody_may_close() {
        let assess = |change: fn(&mut Account)| assess(&terms(), &account(change));
        assert_eq!(assess(|_| ()), Verdict::Leave, "it runs and is paid");
        assert_eq!(assess(|a| a.closed = true), Verdict::Over);
        assert_eq!(
            assess(|a| (a.started_at, a.block_time) = (0, 1_000)),
            Verdict::Leave
        );
        assert_eq!(
            assess(|a| (a.started_at, a.block_time) = (0, 1_001)),
            Verdict::Clear
        );
        assert_eq!(assess(|a| a.ended = 0b01), Verdict::Leave);
        assert_eq!(assess(|a| a.ended = 0b11), Verdict::Clear);
        assert_eq!(
            assess(|a| (a.exhausted_at, a.block_time) = (1_500, 2_099)),
            Verdict::Leave
        );
        assert_eq!(
            assess(|a| (a.exhausted_at, a.block_time) = (1_500, 2_100)),
            Verdict::Clear
        );
        assert_eq!(super::assess(&terms(), &AccountRead::Absent), Verdict::Over);
    }

    #[test]
    fn an_account_is_forgotten_only_when_its_end_is_final() {
        let at = |time, read| AccountAt {
            block: Head {
                number: 1,
                hash: Hash::default(),
                time,
            },
            read,
        };
        assert!(!is_final(&terms(), &at(2_000, account(|_| ()))));
        assert!(is_final(&terms(), &at(2_000, account(|a| a.closed = true))));
        assert!(is_final(&terms(), &at(1, AccountRead::Mismatch)));
        assert!(
            !is_final(&terms(), &at(1_000, AccountRead::Absent)),
            "it may still be opened"
        );
        assert!(is_final(&terms(), &at(1_001, AccountRead::Absent)));
    }

    /// One backend of an endpoint answers what is not so.
    #[test]
    fn an_account_is_forgotten_only_when_two_final_reads_agree() {
        let at = |read| AccountAt {
            block: Head {
                number: 1,
                hash: Hash::default(),
                time: 2_000,
            },
            read,
        };
        let (open, over) = (|| at(account(|_| ())), || at(AccountRead::Absent));
        let accounts = [terms(), terms()];
        let forgotten = |reads: &[Vec<AccountAt>]| over_for_good(&accounts, reads).len();
        assert_eq!(forgotten(&[]), 0);
        assert_eq!(forgotten(&[vec![over(), over()]]), 0, "one read");
        assert_eq!(forgotten(&[vec![over(), over()], vec![over(), open()]]), 1);
        assert_eq!(
            forgotten(&[vec![over(), over()], vec![over()]]),
            1,
            "an answer is missing"
        );
        assert_eq!(forgotten(&[vec![over(), over()], vec![over(), over()]]), 2);
    }

    #[test]
    fn a_lease_names_its_account_or_all_it_might_have_opened() {
        let market = Address([4; 20]);
        let mut lease = GpuLease::new("l", GpuLeaseSpec::default());
        lease.metadata.uid = Some("uid".into());
        lease.metadata.annotations =
            Some([(leasehold_crds::ANNOTATION_KNOWN.to_owned(), "true".to_owned())].into());
        assert!(Claims::of(market, [&lease]).has(&terms()), "its status was lost");
        let escrow = LeaseEscrow {
            terms: EscrowTerms {
                id: "0x01".into(),
                ..EscrowTerms::default()
            },
            ..LeaseEscrow::default()
        };
        lease.status = Some(GpuLeaseStatus {
            escrow: Some(escrow),
            ..GpuLeaseStatus::default()
        });
        assert!(!Claims::of(market, [&lease]).has(&terms()), "it names another");
        let status = lease.status.as_mut().unwrap();
        status.escrow.as_mut().unwrap().terms.id = terms().id().to_string();
        assert!(Claims::of(market, [&lease]).has(&terms()));
        lease.status.as_mut().unwrap().phase = Phase::Closed;
        assert!(!Claims::of(market, [&lease]).has(&terms()), "it is over");
        assert!(!Claims::of(market, []).has(&terms()));
    }

    #[test]
    fn nothing_is_cleared_on_one_reading() {
        let mut suspects = Suspects::default();
        let found = |verdict| BTreeMap::from([("a", verdict)]);
        assert!(suspects.agreed(found(Verdict::Clear)).is_empty());
        assert_eq!(suspects.agreed(found(Verdict::Clear)), found(Verdict::Clear));
        assert!(suspects.agreed(found(Verdict::Over)).is_empty(), "they differ");
        assert!(suspects.agreed(found(Verdict::Leave)).is_empty());
        assert!(suspects.agreed(found(Verdict::Leave)).is_empty());
        assert_eq!(suspects.left(), 1);
        assert!(suspects.agreed(BTreeMap::new()).is_empty());
        assert!(suspects.agreed(found(Verdict::Clear)).is_empty(), "not in a row");
    }

    #[test]
    fn a_namespace_with_results_is_left_to_their_time_and_then_cleared() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |seconds: i64| {
            Timestamp::from_second(1_800_000_000 + seconds)
                .unwrap()
                .to_string()
        };
        for verdict in [Verdict::Over, Verdict::Clear] {
            assert_eq!(unless_kept(verdict, Some(&at(1)), now), Verdict::Leave);
            assert_eq!(unless_kept(verdict, Some(&at(0)), now), verdict);
            assert_eq!(unless_kept(verdict, Some("for ever"), now), verdict);
            assert_eq!(unless_kept(verdict, None, now), verdict);
        }
        assert_eq!(unless_kept(Verdict::Leave, None, now), Verdict::Leave);
    }
}
