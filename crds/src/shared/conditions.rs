//! The condition types and reasons of every kind, and the one way a condition is set.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// True, False or Unknown; a failed read is Unknown, never False.
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

/// A condition before it has a time.
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

/// Sets `next` in `have`. Its time moves only with its status, so that equal conditions stay equal.
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

/// Whether the condition of that type is there and True.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}

/// The API allows 32,768 bytes in a message; a screen wants far less.
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
