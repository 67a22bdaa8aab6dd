//! Digests that show whether something has changed without storing it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::Serialize;

/// What stands for something: the same makes the same digest in every process of a release. Against accidents alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn of(something: &impl Serialize) -> Self {
        let mut hasher = DefaultHasher::new();
        serde_json::to_string(something)
            .unwrap_or_default()
            .hash(&mut hasher);
        Self(hasher.finish())
    }

    /// As it is written on a namespace.
    pub(crate) fn mark(self) -> String {
        format!("{:016x}", self.0)
    }
}
