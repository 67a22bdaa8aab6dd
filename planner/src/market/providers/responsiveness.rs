//! Whether a provider answers its allocations in time, and starts what it accepts. Without this, a provider that has the
//! lowest price and never answers would delay every lease that fits its offer by a minute, and one that never starts by
//! `startWithin`.

use jiff::{SignedDuration, Timestamp};
use leasehold_crds::{
    GpuAllocation,
    market::{
        allocation::{AllocationPhase, GpuAllocationStatus},
        provider::GpuProviderStatus,
    },
};

use crate::market::lease::{OPEN_MARGIN_SECONDS, Start};

/// After this many consecutive timeouts a provider is skipped.
const TIMEOUTS_MAX: u32 = 3;
/// After so many leases in a row that others started and it did not, a provider is skipped.
const MISSED_MAX: u32 = 3;
/// Each further one doubles the time for which it is skipped, so often at most: to five hours and twenty minutes.
const DOUBLINGS_MAX: u32 = 6;
/// How long a provider is skipped; afterwards it receives allocations again.
const SKIPPED_FOR: SignedDuration = SignedDuration::from_mins(5);
/// An allocation that is deleted at most this long before its deadline counts as timed out.
const DEADLINE_SLACK_SECONDS: i64 = 5;
/// A provider that had less time than this to answer did not time out: the market created the allocation late.
const ANSWER_SECONDS_MIN: i64 = 30;

/// A provider's most recent responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseRecord {
    /// Consecutive allocations that timed out.
    timeouts: u32,
    /// Time of the last of them.
    last: Option<Timestamp>,
    /// Consecutive leases that another provider started and this one did not.
    missed: u32,
    /// Time of the last of them.
    last_missed: Option<Timestamp>,
}

impl ResponseRecord {
    /// Records that the provider accepted or declined an allocation.
    pub fn record_response(&mut self) {
        (self.timeouts, self.last) = (0, None);
    }

    /// Records what became of what the provider had accepted. Accepting alone proves nothing, and one start makes up for one
    /// miss alone: a provider can lease its own GPUs for some seconds.
    pub fn record_start(&mut self, start: Start, now: Timestamp) {
        (self.missed, self.last_missed) = match start {
            Start::InTime if self.missed <= 1 => (0, None),
            Start::InTime => (self.missed - 1, self.last_missed),
            Start::Missed => ((self.missed + 1).min(MISSED_MAX + DOUBLINGS_MAX), Some(now)),
        };
    }

    /// Whether the provider starts what it accepts, so that new allocations may be created.
    #[must_use]
    pub fn starts(&self, now: Timestamp) -> bool {
        let doublings = self.missed.saturating_sub(MISSED_MAX).min(DOUBLINGS_MAX);
        let skipped_for = SKIPPED_FOR * (1 << doublings);
        let over = |at: Timestamp| now.duration_since(at) >= skipped_for;
        self.missed < MISSED_MAX || self.last_missed.is_none_or(over)
    }

    /// What was stored of the starts, by a process that ran before. What this process has seen already counts in addition.
    pub fn restore(&mut self, stored: &GpuProviderStatus) {
        let last = stored.last_missed_at.as_ref().and_then(|at| at.parse().ok());
        if let (Ok(missed), Some(last)) = (u32::try_from(stored.missed_starts), last) {
            self.missed = self.missed.saturating_add(missed).min(MISSED_MAX + DOUBLINGS_MAX);
            self.last_missed = Some(self.last_missed.map_or(last, |own| own.max(last)));
        }
    }

    /// Stores what counts against the provider's starts.
    pub fn store(&self, status: &mut GpuProviderStatus) {
        status.missed_starts = i64::from(self.missed);
        status.last_missed_at = self.last_missed.map(|at| at.to_string());
    }

    /// Records that an allocation timed out.
    pub fn record_timeout(&mut self, now: Timestamp) {
        self.timeouts = self.timeouts.saturating_add(1);
        self.last = Some(now);
    }

    /// Whether new allocations may be created at the provider.
    #[must_use]
    pub fn is_responsive(&self, now: Timestamp) -> bool {
        let over = |at: Timestamp| now.duration_since(at) >= SKIPPED_FOR;
        self.timeouts < TIMEOUTS_MAX || self.last.is_none_or(over)
    }
}

/// A provider's response to an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Not received yet.
    Awaited,
    /// The allocation was accepted or declined.
    Received,
    /// It was not received in time.
    TimedOut,
    /// The market withdrew the allocation before its deadline.
    NotWanted,
}

impl Response {
    /// The response to this allocation.
    #[must_use]
    pub fn of(allocation: &GpuAllocation) -> Self {
        let answer = |s: &GpuAllocationStatus| {
            // One that was created again is answered by a report.
            let reports = s.phase != AllocationPhase::Requested;
            reports || s.acceptance.is_some() || s.declined.is_some() || s.stopped_at.is_some()
        };
        if allocation.status.as_ref().is_some_and(answer) {
            return Self::Received;
        }
        let taken_back = allocation.metadata.deletion_timestamp.as_ref();
        let Some(taken_back) = taken_back.map(|at| at.0.as_second()) else {
            return if allocation.spec.release {
                Self::NotWanted
            } else {
                Self::Awaited
            };
        };
        let margin = i64::try_from(OPEN_MARGIN_SECONDS).unwrap_or(0) + DEADLINE_SLACK_SECONDS;
        let to_the_end = taken_back.saturating_add(margin) >= allocation.spec.open_by;
        let created = allocation.metadata.creation_timestamp.as_ref();
        let until = taken_back.min(allocation.spec.open_by);
        let long = created.is_some_and(|at| until - at.0.as_second() >= ANSWER_SECONDS_MIN);
        if to_the_end && long && !allocation.spec.release {
            Self::TimedOut
        } else {
            Self::NotWanted
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use leasehold_crds::market::allocation::{Declined, GpuAllocationSpec};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_provider_with_three_timeouts_is_skipped_for_a_while() {
        let mut record = ResponseRecord::default();
        for _ in 0..2 {
            record.record_timeout(at(1000));
        }
        assert!(record.is_responsive(at(1000)));
        record.record_timeout(at(1000));
        assert!(!record.is_responsive(at(1299)));
        assert!(record.is_responsive(at(1300)), "it receives allocations again");
        record.record_timeout(at(1360));
        assert!(!record.is_responsive(at(1400)), "it timed out again");
        record.record_response();
        assert!(record.is_responsive(at(1400)));
    }

    /// It accepts in time, which tells nothing of whether it starts.
    #[test]
    fn a_provider_that_accepts_and_does_not_start_is_skipped_ever_longer() {
        let mut record = ResponseRecord::default();
        for n in 1..=3 {
            assert!(record.starts(at(1000)));
            record.record_response();
            record.record_start(Start::Missed, at(1000));
            assert_eq!(record.starts(at(1000)), n < 3);
        }
        assert!(record.is_responsive(at(1000)));
        assert!(!record.starts(at(1299)) && record.starts(at(1300)));
        record.record_start(Start::Missed, at(2000));
        assert!(
            !record.starts(at(2599)) && record.starts(at(2600)),
            "twice as long"
        );
        for _ in 0..100 {
            record.record_start(Start::Missed, at(3000));
        }
        assert!(record.starts(at(3000 + 64 * 300)), "never for ever");
        let mut stored = GpuProviderStatus::default();
        record.store(&mut stored);
        let mut restarted = ResponseRecord::default();
        restarted.restore(&stored);
        assert_eq!(restarted, record, "a restart of the market forgets nothing");
        restarted.restore(&GpuProviderStatus::default());
        assert_eq!(restarted, record);
        for _ in 0..7 {
            assert!(!record.starts(at(3001)), "one start makes up for one miss");
            record.record_start(Start::InTime, at(3001));
        }
        assert!(record.starts(at(3001)));
        for _ in 0..2 {
            record.record_start(Start::InTime, at(3001));
        }
        record.store(&mut stored);
        assert_eq!(stored, GpuProviderStatus::default());
    }

    #[test]
    fn only_an_allocation_that_is_deleted_at_its_deadline_timed_out() {
        let spec = GpuAllocationSpec {
            open_by: 1060,
            ..GpuAllocationSpec::default()
        };
        let mut allocation = GpuAllocation::new("a", spec);
        allocation.metadata.creation_timestamp = Some(Time(at(1001)));
        assert_eq!(Response::of(&allocation), Response::Awaited);
        allocation.metadata.deletion_timestamp = Some(Time(at(1010)));
        assert_eq!(
            Response::of(&allocation),
            Response::NotWanted,
            "the tenant deleted the lease"
        );
        allocation.metadata.deletion_timestamp = Some(Time(at(1050)));
        assert_eq!(Response::of(&allocation), Response::TimedOut);
        allocation.metadata.creation_timestamp = Some(Time(at(1040)));
        assert_eq!(
            Response::of(&allocation),
            Response::NotWanted,
            "it was created late"
        );
        allocation.metadata.creation_timestamp = Some(Time(at(1100)));
        allocation.metadata.deletion_timestamp = Some(Time(at(1200)));
        assert_eq!(
            Response::of(&allocation),
            Response::NotWanted,
            "it was created again, when it could not be accepted any more"
        );
        allocation.status = Some(GpuAllocationStatus {
            phase: AllocationPhase::Active,
            ..GpuAllocationStatus::default()
        });
        assert_eq!(Response::of(&allocation), Response::Received);
        allocation.status = Some(GpuAllocationStatus {
            declined: Some(Declined::default()),
            ..GpuAllocationStatus::default()
        });
        assert_eq!(Response::of(&allocation), Response::Received);
    }
}
