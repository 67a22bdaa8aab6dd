//! Conditions of all kinds, and the only function that sets one. The types and reasons of a kind's conditions are enums beside the kind.
//!
//! Conditions are output: no decision reads them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{text, words::Word};

/// Status of a condition. A failed read is Unknown, never False.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// What the type names is so.
    True,
    /// It is not so.
    False,
    /// It could not be read.
    Unknown,
}

impl ConditionStatus {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The types of one kind's conditions.
pub trait ConditionType: Word {
    /// The reasons of that kind's conditions.
    type Reason: Word;
}

/// A condition without a transition time, which [`set`] fills in.
#[must_use]
pub fn condition<T: ConditionType>(
    type_: T,
    status: ConditionStatus,
    reason: T::Reason,
    message: impl Into<String>,
    generation: i64,
) -> Condition {
    Condition {
        type_: type_.as_str().to_owned(),
        status: status.as_str().to_owned(),
        reason: reason.as_str().to_owned(),
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
pub fn find(conditions: &[Condition], type_: impl AsRef<str>) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == type_.as_ref())
}

/// Whether the condition of that type exists and is True.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: impl AsRef<str>) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == ConditionStatus::True.as_str())
}

/// Makes a message printable and truncates it to 1,024 bytes, which fits on a screen. The API permits 32,768 bytes.
fn bounded(message: String) -> String {
    let mut message = text::printable(&message).into_owned();
    text::truncate(&mut message, 1024);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_holds_no_control_characters_and_is_short() {
        assert_eq!(
            bounded("a\0b\u{1b}[31m\u{85}c\n".into()),
            "a\u{FFFD}b\u{FFFD}[31m\u{FFFD}c\n"
        );
        let long = bounded("\u{1}".repeat(5000));
        assert!(
            long.len() <= 1024 + '…'.len_utf8() && long.ends_with('…'),
            "{}",
            long.len()
        );
    }
}
