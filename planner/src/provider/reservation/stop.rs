//! The one stop rule (U2): when a provider stops a reservation, and when it must not.
//!
//! It stops at the earlier of `notAfter`, which the market sets and never lowers, and the end of the paid time by
//! its own reads. A chain that can't be read never stops paid work early: it is served on to `paidUntil + grace`,
//! once per lease.

/// The account as last read, with both clocks, all in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Until when the deposit pays, by the chain's clock.
    pub paid_until: u64,
    /// The block's time.
    pub block_time: u64,
    /// The reader's own clock at that read.
    pub read_at: u64,
}

impl Snapshot {
    /// When the paid time ends by the reader's own clock: seconds left at the read, added to the clock then.
    #[must_use]
    pub const fn paid_until_local(self) -> u64 {
        self.read_at
            .saturating_add(self.paid_until.saturating_sub(self.block_time))
    }

    /// How far the two clocks are apart.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.read_at.abs_diff(self.block_time)
    }
}

/// An offset beyond this is a condition.
pub const OFFSET_MAX_SECONDS: u64 = 60;

/// The chain's state as read in this reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreshReads {
    /// Two reads agree that the funds are spent, at a block at or after the end.
    Spent,
    /// At least one read shows paid time left.
    Paid,
    /// The chain can't be read.
    Unreadable {
        /// Since when, local Unix seconds.
        since: u64,
    },
}

/// A single failed read is not an outage: the chain must have been unreadable for this long before its state is a reason
/// to stop a reservation, or counts towards the grace period.
pub const CHAIN_OUTAGE_SECONDS_MIN: u64 = 15;

/// Why the rule stops a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// `notAfter` is here.
    NotAfter,
    /// The funds are spent.
    FundsSpent,
    /// The chain could not be read, and `paidUntil + grace` is past.
    FundsUnknown,
}

/// What the rule says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve, and ask again at that local Unix second.
    ServeUntil(u64),
    /// Serve on the grace for an unreadable chain, until that local Unix second. It is now used up.
    ServeOnGrace(u64),
    /// Stop.
    Stop(StopCause),
}

/// The rule. `now` and `not_after` are local Unix seconds, `grace` is in seconds, `grace_used` says whether the one
/// grace of this lease was used in an earlier outage.
#[must_use]
pub const fn verdict(
    now: u64,
    not_after: u64,
    snapshot: Snapshot,
    reads: FreshReads,
    grace: u64,
    grace_used: bool,
) -> Verdict {
    if now >= not_after {
        return Verdict::Stop(StopCause::NotAfter);
    }
    let end = snapshot.paid_until_local();
    if now < end {
        // The last snapshot still pays: one strange read does not cut it short.
        return Verdict::ServeUntil(min(end, not_after));
    }
    match reads {
        FreshReads::Spent => Verdict::Stop(StopCause::FundsSpent),
        FreshReads::Paid => Verdict::ServeUntil(min(now + 1, not_after)),
        FreshReads::Unreadable { since } => {
            // Read after that end and not spent, the account waits for its legs to start again.
            let last = if grace_used {
                max(end, since.saturating_add(CHAIN_OUTAGE_SECONDS_MIN))
            } else {
                max(end, since).saturating_add(grace)
            };
            if now >= last {
                Verdict::Stop(StopCause::FundsUnknown)
            } else {
                Verdict::ServeOnGrace(min(last, not_after))
            }
        }
    }
}

const fn max(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

const fn min(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SNAPSHOT: Snapshot = Snapshot {
        paid_until: 1_100,
        block_time: 1_000,
        read_at: 1_005,
    };

    #[test]
    fn paid_time_is_carried_to_the_local_clock() {
        assert_eq!(SNAPSHOT.paid_until_local(), 1_105);
        assert_eq!(SNAPSHOT.offset(), 5);
    }

    #[test]
    fn readable_chain() {
        assert_eq!(
            verdict(1_104, 9_999, SNAPSHOT, FreshReads::Spent, 600, false),
            Verdict::ServeUntil(1_105)
        );
        assert_eq!(
            verdict(1_105, 9_999, SNAPSHOT, FreshReads::Spent, 600, false),
            Verdict::Stop(StopCause::FundsSpent)
        );
        assert_eq!(
            verdict(1_105, 9_999, SNAPSHOT, FreshReads::Paid, 600, false),
            Verdict::ServeUntil(1_106)
        );
        assert_eq!(
            verdict(1_050, 1_050, SNAPSHOT, FreshReads::Paid, 600, false),
            Verdict::Stop(StopCause::NotAfter)
        );
    }

    #[test]
    fn unreadable_chain_is_served_through_once() {
        let silent = FreshReads::Unreadable { since: 1_050 };
        let at = |now, used| verdict(now, 9_999, SNAPSHOT, silent, 600, used);
        assert_eq!(at(1_105, false), Verdict::ServeOnGrace(1_705));
        assert_eq!(at(1_704, false), Verdict::ServeOnGrace(1_705));
        assert_eq!(at(1_705, false), Verdict::Stop(StopCause::FundsUnknown));
        assert_eq!(at(1_105, true), Verdict::Stop(StopCause::FundsUnknown));
    }

    #[test]
    fn one_failed_read_stops_nothing_that_was_funded_a_moment_ago() {
        let silent = FreshReads::Unreadable { since: 5_000 };
        let at = |now, used| verdict(now, 9_999, SNAPSHOT, silent, 600, used);
        assert_eq!(at(5_000, false), Verdict::ServeOnGrace(5_600));
        assert_eq!(at(5_000, true), Verdict::ServeOnGrace(5_015));
        assert_eq!(at(5_015, true), Verdict::Stop(StopCause::FundsUnknown));
    }

    proptest! {
        #[test]
        fn never_stops_paid_work_and_always_wakes_in_the_future(
            now in 0u64..10_000, not_after in 0u64..10_000, paid in 0u64..10_000, block in 0u64..10_000,
            read_at in 0u64..10_000, grace in 0u64..1_000, used: bool, kind in 0usize..3
        ) {
            let s = Snapshot { paid_until: paid, block_time: block, read_at };
            let silent = FreshReads::Unreadable { since: now.saturating_sub(grace / 2) };
            let reads = [FreshReads::Spent, FreshReads::Paid, silent][kind];
            match verdict(now, not_after, s, reads, grace, used) {
                Verdict::ServeUntil(t) | Verdict::ServeOnGrace(t) => prop_assert!(t > now && t <= not_after),
                Verdict::Stop(StopCause::NotAfter) => prop_assert!(now >= not_after),
                Verdict::Stop(StopCause::FundsSpent) => prop_assert!(now >= s.paid_until_local() && reads == FreshReads::Spent),
                Verdict::Stop(StopCause::FundsUnknown) => prop_assert!(reads == silent && now >= s.paid_until_local()),
            }
        }
    }
}
