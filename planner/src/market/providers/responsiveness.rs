//! Whether a provider answers what it is asked. One that offers the lowest price and never answers would else be asked by
//! every lease that it fits, a minute each.

use jiff::{SignedDuration, Timestamp};
use leasehold_crds::{GpuAllocation, market::allocation::GpuAllocationStatus};

use crate::market::lease::OPEN_MARGIN_SECONDS;

/// After so many questions in a row that lapsed a provider is passed over.
const LAPSES_MAX: u32 = 3;
/// For so long; then it may show that it answers.
const PASSED_OVER: SignedDuration = SignedDuration::from_mins(5);
/// What is taken back so shortly before the end was waited for.
const NEARLY_SECONDS: i64 = 5;
/// Who had less time than this to answer let nothing lapse: the market asked late.
const ASKED_SECONDS_MIN: i64 = 30;

/// How a provider has answered of late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answering {
    /// Questions in a row that lapsed.
    lapses: u32,
    /// When the last of them did.
    last: Option<Timestamp>,
}

impl Answering {
    /// It has answered, with yes or no.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// It has let a question lapse.
    pub fn let_lapse(&mut self, now: Timestamp) {
        self.lapses = self.lapses.saturating_add(1);
        self.last = Some(now);
    }

    /// Whether it is to be asked.
    #[must_use]
    pub fn is_asked(&self, now: Timestamp) -> bool {
        let over = |at: Timestamp| now.duration_since(at) >= PASSED_OVER;
        self.lapses < LAPSES_MAX || self.last.is_none_or(over)
    }
}

/// What became of a question to a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is waited for.
    Awaited,
    /// It is there, yes or no.
    There,
    /// It did not come in time.
    Lapsed,
    /// It is not wanted any more.
    NotWanted,
}

impl Answer {
    /// To this question.
    #[must_use]
    pub fn to(allocation: &GpuAllocation) -> Self {
        let answer = |s: &GpuAllocationStatus| {
            s.acceptance.is_some() || s.declined.is_some() || s.stopped_at.is_some()
        };
        if allocation.status.as_ref().is_some_and(answer) {
            return Self::There;
        }
        let taken_back = allocation.metadata.deletion_timestamp.as_ref();
        let Some(taken_back) = taken_back.map(|at| at.0.as_second()) else {
            return if allocation.spec.release {
                Self::NotWanted
            } else {
                Self::Awaited
            };
        };
        let margin = i64::try_from(OPEN_MARGIN_SECONDS).unwrap_or(0) + NEARLY_SECONDS;
        let to_the_end = taken_back.saturating_add(margin) >= allocation.spec.open_by;
        let asked = allocation.metadata.creation_timestamp.as_ref();
        let long = asked.is_some_and(|at| taken_back - at.0.as_second() >= ASKED_SECONDS_MIN);
        if to_the_end && long && !allocation.spec.release {
            Self::Lapsed
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
    fn who_lets_three_questions_lapse_is_passed_over_for_a_while() {
        let mut record = Answering::default();
        for _ in 0..2 {
            record.let_lapse(at(1000));
        }
        assert!(record.is_asked(at(1000)));
        record.let_lapse(at(1000));
        assert!(!record.is_asked(at(1299)));
        assert!(record.is_asked(at(1300)), "it may show that it answers");
        record.let_lapse(at(1360));
        assert!(!record.is_asked(at(1400)), "it does not");
        record.answered();
        assert!(record.is_asked(at(1400)));
    }

    #[test]
    fn only_what_was_waited_for_to_the_end_has_lapsed() {
        let spec = GpuAllocationSpec {
            open_by: 1060,
            ..GpuAllocationSpec::default()
        };
        let mut question = GpuAllocation::new("q", spec);
        question.metadata.creation_timestamp = Some(Time(at(1001)));
        assert_eq!(Answer::to(&question), Answer::Awaited);
        question.metadata.deletion_timestamp = Some(Time(at(1010)));
        assert_eq!(Answer::to(&question), Answer::NotWanted, "the tenant went");
        question.metadata.deletion_timestamp = Some(Time(at(1050)));
        assert_eq!(Answer::to(&question), Answer::Lapsed);
        question.metadata.creation_timestamp = Some(Time(at(1040)));
        assert_eq!(Answer::to(&question), Answer::NotWanted, "it was asked late");
        question.status = Some(GpuAllocationStatus {
            declined: Some(Declined::default()),
            ..GpuAllocationStatus::default()
        });
        assert_eq!(Answer::to(&question), Answer::There);
    }
}
