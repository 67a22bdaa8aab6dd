//! Which answers of a chain are recent enough to be acted upon. An endpoint may be stuck at an old block, and of several
//! behind one address some may be: an answer that is too old counts as *unknown*, like a read that failed.

use std::{cmp::Ordering, collections::BTreeMap};

use jiff::Timestamp;

use crate::{
    escrow::{AccountAt, Hash},
    observed::Observed,
    ports::{Head, PaymentError},
};

/// Largest difference, in seconds, between the clocks of this machine and of the chain with which the chain is still used.
/// Within it, blocks that keep coming show that the chain is live and that a clock is wrong; beyond it, the answers may be
/// those of a node that follows the chain from far behind.
const CLOCK_OFFSET_SECONDS_MAX: u64 = 900;

/// Of two nodes of an endpoint, one may be so many seconds behind the other. It is also how old the first answer of a process
/// may be by its clock, because no newer one shows yet that there is a node that is further.
pub(crate) const LAG_SECONDS_MAX: u64 = 15;

/// Why an answer is not acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outdated {
    /// Its block is in the future, by seconds.
    #[error("the newest block is {0} s ahead of this machine's clock: check both")]
    Ahead(u64),
    /// No newer block was seen for so many seconds.
    #[error("no new block for {0} s: the chain has stopped, or its RPC endpoint does not follow it")]
    Stopped(u64),
    /// Another answer was newer, by seconds.
    #[error(
        "the RPC endpoint answered from a block that is {0} s older than one that it answered from before"
    )]
    Behind(u64),
    /// Its block is old by this machine's clock, by seconds.
    #[error("the newest block is {0} s old: the RPC endpoint does not follow the chain, or a clock is wrong")]
    Old(u64),
}

/// So many blocks after a first one, over at least [`LAG_SECONDS_MAX`], each as much later than the first one as the local
/// clock says, show that the chain is live. Of backends that are stuck, each contributes one block at most, at any distance.
const FOLLOWING_BLOCKS_MIN: u32 = 3;

/// The answers of one chain that one process has received so far. Ages are measured in three ways, because no single one is
/// enough: by the clock of the chain against the newest block of any answer, by the local clock since a new block was last
/// seen, and by the local clock against the time of the block.
#[derive(Clone, Debug, Default)]
pub struct Recency {
    newest: Option<Seen>,
    /// Whether blocks have followed one another as fast as the local clock went, since the newest block last stopped being
    /// confirmed.
    is_live: bool,
    run: Option<Run>,
    /// Block of the newest answer about each account, as far as it is younger than the largest age.
    accounts: BTreeMap<Hash, Head>,
}

/// A block, and when it was first seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    head: Head,
    at: Timestamp,
}

/// Blocks that followed one another as fast as the local clock went.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Seen,
    last: Head,
    /// Number of blocks after the first one.
    following: u32,
}

impl Run {
    const fn begin(head: Head, at: Timestamp) -> Self {
        Self {
            first: Seen { head, at },
            last: head,
            following: 0,
        }
    }

    const fn is_live(&self) -> bool {
        let progress = self.last.time.saturating_sub(self.first.head.time);
        self.following >= FOLLOWING_BLOCKS_MIN && progress >= LAG_SECONDS_MAX
    }

    /// Takes an answer from that block. One that is not later than the last one tells nothing; one that is later by another
    /// time than has passed begins another run.
    fn take(&mut self, head: Head, now: Timestamp) {
        if !is_after(&head, &self.last) {
            return;
        }
        let passed = u64::try_from(now.duration_since(self.first.at).as_secs()).unwrap_or_default();
        let progress = head.time.saturating_sub(self.first.head.time);
        if passed.abs_diff(progress) > LAG_SECONDS_MAX {
            *self = Self::begin(head, now);
        } else {
            self.last = head;
            self.following = self.following.saturating_add(1);
        }
    }
}

impl Recency {
    /// Takes an answer about an account. It is unknown when no new block was seen for `max_age` seconds, when its block is
    /// behind that of another answer, or older than that of an earlier answer about the same account.
    pub fn account(
        &mut self,
        id: Hash,
        answer: Result<AccountAt, PaymentError>,
        max_age: u64,
        now: Timestamp,
    ) -> Observed<AccountAt> {
        match answer {
            Ok(answer) => {
                let accepted = self.accept_account(id, answer.block, max_age, now);
                Observed::from_result(accepted.map(|()| answer))
            }
            Err(error) => Observed::Unknown(error.to_string()),
        }
    }

    /// Takes an answer about the newest block.
    pub fn head(
        &mut self,
        answer: Result<Head, PaymentError>,
        max_age: u64,
        now: Timestamp,
    ) -> Observed<Head> {
        match answer {
            Ok(head) => Observed::from_result(self.accept(head, max_age, now).map(|()| head)),
            Err(error) => Observed::Unknown(error.to_string()),
        }
    }

    fn accept_account(
        &mut self,
        id: Hash,
        block: Head,
        max_age: u64,
        now: Timestamp,
    ) -> Result<(), Outdated> {
        self.accept(block, max_age, now)?;
        let newest = self.accounts.entry(id).or_insert(block);
        if is_after(newest, &block) {
            return Err(Outdated::Behind(newest.time - block.time));
        }
        *newest = block;
        Ok(())
    }

    /// Whether an answer from that block is recent.
    ///
    /// # Errors
    /// Why it is not.
    pub fn accept(&mut self, head: Head, max_age: u64, now: Timestamp) -> Result<(), Outdated> {
        let clock = u64::try_from(now.as_second()).unwrap_or_default();
        if head.time > clock.saturating_add(CLOCK_OFFSET_SECONDS_MAX) {
            return Err(Outdated::Ahead(head.time - clock));
        }
        let Some(newest) = self.newest else {
            self.run = Some(Run::begin(head, now));
            self.advance(head, max_age, now);
            return self.by_clock(head, max_age, clock);
        };
        let unconfirmed = u64::try_from(now.duration_since(newest.at).as_secs()).unwrap_or_default();
        let is_stopped = unconfirmed > max_age;
        if is_stopped && (self.is_live || self.run.is_some_and(|run| run.last == newest.head)) {
            (self.is_live, self.run) = (false, None);
        }
        if head != newest.head {
            self.run
                .get_or_insert_with(|| Run::begin(head, now))
                .take(head, now);
        }
        self.is_live |= self.run.is_some_and(|run| run.is_live());
        if is_after(&head, &newest.head) {
            self.advance(head, max_age, now);
        } else if is_stopped {
            // The newest block may have been an answer of another chain, or of one that was set back since. Older blocks
            // that follow one another are the chain; old ones alone are backends that are stuck.
            if !self.is_live {
                return Err(Outdated::Stopped(unconfirmed));
            }
            self.accounts.clear();
            self.advance(head, max_age, now);
        } else if newest.head.time > head.time.saturating_add(LAG_SECONDS_MAX.min(max_age)) {
            return Err(Outdated::Behind(newest.head.time - head.time));
        }
        self.by_clock(head, max_age, clock)
    }

    fn advance(&mut self, head: Head, max_age: u64, now: Timestamp) {
        self.newest = Some(Seen { head, at: now });
        // What is older than this is refused by the newest block already.
        self.accounts
            .retain(|_, block| block.time.saturating_add(max_age) >= head.time);
    }

    fn by_clock(&self, head: Head, max_age: u64, clock: u64) -> Result<(), Outdated> {
        let age = clock.saturating_sub(head.time);
        let most = if self.is_live {
            max_age.max(CLOCK_OFFSET_SECONDS_MAX)
        } else {
            LAG_SECONDS_MAX.min(max_age)
        };
        if age > most {
            Err(Outdated::Old(age))
        } else {
            Ok(())
        }
    }
}

/// Whether one block is later than another. The time comes first: after a reorganisation a later block may have a smaller
/// number. Blocks of some chains share a second.
fn is_after(one: &Head, other: &Head) -> bool {
    (one.time, one.number).cmp(&(other.time, other.number)) == Ordering::Greater
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::AccountRead;

    const NOW: i64 = 1_800_000_000;
    const MAX_AGE: u64 = 60;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    /// The block of that second; there is one each second.
    fn block(seconds: i64) -> Head {
        let number = u64::try_from(1_000_000 + seconds).unwrap();
        Head {
            number,
            hash: Hash::default(),
            time: u64::try_from(NOW + seconds).unwrap(),
        }
    }

    fn accept(recency: &mut Recency, head: i64, now: i64) -> Result<(), Outdated> {
        recency.accept(block(head), MAX_AGE, at(now))
    }

    #[test]
    fn a_stuck_backend_beside_fresh_ones_is_not_believed() {
        let mut recency = Recency::default();
        for second in 0..300 {
            assert_eq!(accept(&mut recency, second, second), Ok(()));
            let stuck = accept(&mut recency, 0, second);
            let age = u64::try_from(second).unwrap();
            let expected = if age > LAG_SECONDS_MAX {
                Err(Outdated::Behind(age))
            } else {
                Ok(())
            };
            assert_eq!(stuck, expected, "{second}");
        }
    }

    #[test]
    fn a_chain_that_stands_still_is_unknown_until_it_moves() {
        // Whatever the local clock says.
        for offset in [-800, -300, 0] {
            let mut recency = Recency::default();
            for second in -20..=0 {
                assert_eq!(accept(&mut recency, second, second + offset), Ok(()));
            }
            assert_eq!(accept(&mut recency, 0, offset + 60), Ok(()));
            assert_eq!(accept(&mut recency, 0, offset + 61), Err(Outdated::Stopped(61)));
            assert_eq!(accept(&mut recency, 0, offset + 500), Err(Outdated::Stopped(500)));
            assert_eq!(accept(&mut recency, 500, offset + 501), Ok(()));
        }
    }

    #[test]
    fn a_process_that_starts_on_a_frozen_endpoint_trusts_its_clock() {
        let mut recency = Recency::default();
        assert_eq!(accept(&mut recency, 0, 16), Err(Outdated::Old(16)));
        assert_eq!(accept(&mut recency, 0, 61), Err(Outdated::Old(61)));
        assert_eq!(accept(&mut recency, 0, 76), Err(Outdated::Old(76)));
        assert_eq!(accept(&mut recency, 0, 77), Err(Outdated::Stopped(61)));
        assert_eq!(accept(&mut recency, 78, 78), Ok(()));
    }

    #[test]
    fn a_clock_that_is_minutes_off_stops_nothing_while_blocks_come() {
        for offset in [-800, -300, 300, 800] {
            let mut recency = Recency::default();
            let first = accept(&mut recency, 0, offset);
            assert_eq!(first.is_ok(), offset <= 15, "{offset}");
            for second in 1..200 {
                let next = accept(&mut recency, second, second + offset);
                assert_eq!(next.is_ok(), offset <= 15 || second >= 15, "{offset}: {next:?}");
            }
        }
    }

    #[test]
    fn a_node_that_follows_from_far_behind_is_not_believed() {
        let mut recency = Recency::default();
        for second in 0..100 {
            // A node that catches up delivers blocks faster than the chain makes them.
            let old = accept(&mut recency, 5 * second - 3_600, second);
            assert!(matches!(old, Err(Outdated::Old(_))), "{old:?}");
        }
    }

    #[test]
    fn a_false_block_from_the_future_delays_the_chain_and_does_not_hide_it() {
        let mut recency = Recency::default();
        assert_eq!(accept(&mut recency, 0, 0), Ok(()));
        assert_eq!(accept(&mut recency, 1_000_000, 1), Err(Outdated::Ahead(999_999)));
        assert_eq!(accept(&mut recency, 2, 2), Ok(()), "that one is not remembered");
        assert_eq!(accept(&mut recency, 800, 3), Ok(()));
        let first = (4..200).find(|second| accept(&mut recency, *second, *second).is_ok());
        assert_eq!(first, Some(79));
    }

    #[test]
    fn two_stuck_blocks_are_no_chain() {
        let mut recency = Recency::default();
        assert_eq!(accept(&mut recency, 0, 0), Ok(()));
        for second in 61..200 {
            let stuck = accept(&mut recency, -200, second);
            assert_eq!(stuck, Err(Outdated::Stopped(u64::try_from(second).unwrap())));
        }
    }

    #[test]
    fn backends_that_are_stuck_at_different_blocks_are_no_chain() {
        // When the process starts, and after it has followed the chain.
        for followed in [0, 10] {
            let mut recency = Recency::default();
            for second in 0..followed {
                assert_eq!(accept(&mut recency, second, second), Ok(()));
            }
            for second in 300..900 {
                // One behind the newest block, and two after it that are long over.
                let stuck = [-500, 20, 130][usize::try_from(second % 3).unwrap()];
                let answer = accept(&mut recency, stuck, second);
                assert!(answer.is_err(), "{followed}: {stuck} at {second}");
            }
            assert_eq!(accept(&mut recency, 900, 900), Ok(()), "the chain itself");
        }
    }

    /// Whoever stops a chain and continues it does not need to correct the clocks of all machines first.
    #[test]
    fn a_chain_that_continues_is_live_after_some_blocks_whatever_the_clock_says() {
        let mut recency = Recency::default();
        let offset = 300;
        for second in 0..100 {
            let _ = accept(&mut recency, second, second + offset);
        }
        let again = (200..300).map(|second| accept(&mut recency, second, second + offset));
        let first = again.into_iter().position(|answer| answer.is_ok());
        assert_eq!(first, Some(15));
    }

    #[test]
    fn an_answer_about_an_account_is_never_older_than_the_last_one() {
        let mut recency = Recency::default();
        let (one, other) = (Hash([1; 32]), Hash([2; 32]));
        let mut read = |id, second: i64| {
            let answer = AccountAt {
                block: block(second),
                read: AccountRead::Absent,
            };
            recency.account(id, Ok(answer), MAX_AGE, at(20)).known().is_some()
        };
        assert!(read(one, 10));
        assert!(read(other, 9), "the last answer about this account was not newer");
        assert!(!read(one, 9));
        assert!(read(one, 10));
        assert!(read(one, 11));
        assert!(!read(one, 10));
        assert!(read(one, 80));
    }
}
