//! A read that failed is *unknown*, a value of its own type: no destructive act comes from it.

/// What was read from a source, or why it could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed<T> {
    /// It answered.
    Known(T),
    /// It could not be read; the text says why, for a condition's message.
    Unknown(String),
}

impl<T> Observed<T> {
    /// From a result, keeping the error's text.
    pub fn from_result<E: std::fmt::Display>(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Unknown(error.to_string()),
        }
    }

    /// What follows from the value, if it is known.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Observed<U> {
        match self {
            Self::Known(value) => Observed::Known(f(value)),
            Self::Unknown(why) => Observed::Unknown(why),
        }
    }

    /// The value, if it is known.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why it is not known.
    pub fn why_unknown(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(why) => Some(why),
        }
    }
}
