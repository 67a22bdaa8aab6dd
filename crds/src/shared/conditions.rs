//! Conditions of all kinds, and the only function that sets one.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Status of a condition. A failed read is Unknown, never False.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl ConditionStatus {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition without a transition time, which [`set`] fills in.
#[must_use]
pub fn condition(
    kind: &str,
    truth: ConditionStatus,
    reason: &str,
    message: impl Into<String>,
    generation: i64,
) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: truth.as_str().to_owned(),
        reason: reason.to_owned(),
        message: bounded(message.into()),
        observed_generation: Some(generation),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// Sets `next` in `have`. The transition time changes only with the status, so that equal conditions stay equal.
pub fn set(have: &mut Vec<Condition>, mut next: Condition, now: Timestamp) {
    match have.iter_mut().find(|c| c.type_ == next.type_) {
        Some(old) if old.status == next.status => {
            next.last_transition_time = old.last_transition_time.clone();
            *old = next;
        }
        Some(old) => {
            *old = Condition {
                last_transition_time: Time(now),
                ..next
            }
        }
        None => have.push(Condition {
            last_transition_time: Time(now),
            ..next
        }),
    }
}

/// The condition of that type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Whether the condition of that type exists and is True.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}

/// Truncates a message to 1,024 bytes, which fits on a screen. The API permits 32,768 bytes.
fn bounded(mut message: String) -> String {
    const MAX: usize = 1024;
    if message.len() > MAX {
        let mut end = MAX;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}
