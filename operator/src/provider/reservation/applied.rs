//! What was applied for each reservation, so that nothing is written twice: in this process's memory, and on the
//! lease's namespace for the process that comes after it.
//!
//! The mark on the namespace is written when all else is, and goes when something else begins to be applied, for then
//! the namespace is applied first, without one. Memory takes precedence, because a cached namespace may show an old
//! mark.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use leasehold_planner::provider::offer::refusals::Refusal;

use crate::provider::digest::Digest;

/// Objects that somebody deleted are made again after this long without pods.
const REAPPLY_SECONDS: i64 = 30;

/// What this process knows, by the reservation's name.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    states: Mutex<HashMap<String, State>>,
    /// How the cluster refused an object or a pod last.
    refusals: Mutex<HashMap<String, Refusal>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Some of it may be written.
    Begun,
    Done(Digest, Timestamp),
}

impl Applied {
    fn all(&self) -> MutexGuard<'_, HashMap<String, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, HashMap<String, Refusal>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the cluster refused an object or a pod of it last; `None` once it did not.
    pub(crate) fn refusal(&self, name: &str) -> Option<Refusal> {
        self.refusals().get(name).cloned()
    }

    /// The cluster refused an object or a pod of it, or refused nothing.
    pub(crate) fn refused(&self, name: &str, refusal: Option<Refusal>) {
        match refusal {
            Some(refusal) => self.refusals().insert(name.to_owned(), refusal),
            None => self.refusals().remove(name),
        };
    }

    /// Whether this is applied, and its pods are `there` or it is only a moment ago. `mark` is the namespace's.
    pub(crate) fn is(
        &self,
        name: &str,
        digest: Digest,
        there: bool,
        mark: Option<&str>,
        now: Timestamp,
    ) -> bool {
        match self.all().get(name) {
            Some(State::Begun) => false,
            Some(State::Done(was, at)) => {
                *was == digest && (there || now.as_second() - at.as_second() < REAPPLY_SECONDS)
            }
            None => there && mark == Some(digest.mark().as_str()),
        }
    }

    /// It begins to be written.
    pub(crate) fn begin(&self, name: &str) {
        self.all().insert(name.to_owned(), State::Begun);
    }

    /// All of it is written.
    pub(crate) fn done(&self, name: &str, digest: Digest, now: Timestamp) {
        self.all().insert(name.to_owned(), State::Done(digest, now));
    }

    /// It is gone, or goes.
    pub(crate) fn forget(&self, name: &str) {
        self.all().remove(name);
        self.refusals().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_done_is_not_done_again_while_its_pods_are_there() {
        let (applied, one, other) = (Applied::default(), Digest::of(&"one"), Digest::of(&"other"));
        assert!(!applied.is("a", one, true, None, at(0)));
        applied.begin("a");
        assert!(!applied.is("a", one, true, None, at(0)));
        applied.done("a", one, at(0));
        assert!(applied.is("a", one, true, None, at(1_000_000)));
        assert!(!applied.is("a", other, true, None, at(0)));
        // Pods take a moment to come; after that somebody deleted what makes them.
        assert!(applied.is("a", one, false, None, at(29)));
        assert!(!applied.is("a", one, false, None, at(30)));
        applied.forget("a");
        assert!(!applied.is("a", one, true, None, at(0)));
    }

    #[test]
    fn the_words_of_a_refusal_are_told_until_the_cluster_refuses_nothing() {
        let applied = Applied::default();
        assert_eq!(applied.refusal("a"), None);
        let refusal = || {
            Some(Refusal {
                at: at(7),
                words: "pods \"lease-0\" is forbidden: exceeded quota".into(),
            })
        };
        applied.refused("a", refusal());
        assert_eq!(applied.refusal("a"), refusal());
        assert_eq!(applied.refusal("b"), None);
        applied.refused("a", None);
        assert_eq!(applied.refusal("a"), None);
        applied.refused("a", refusal());
        applied.forget("a");
        assert_eq!(applied.refusal("a"), None);
    }

    #[test]
    fn a_process_trusts_the_mark_of_the_one_before_it_and_its_own_memory_more() {
        let (applied, one, other) = (Applied::default(), Digest::of(&"one"), Digest::of(&"other"));
        let mark = one.mark();
        assert!(applied.is("a", one, true, Some(&mark), at(0)));
        assert!(!applied.is("a", other, true, Some(&mark), at(0)));
        // Without pods something may be missing.
        assert!(!applied.is("a", one, false, Some(&mark), at(0)));
        // Another reading began to be applied, and failed half way; the cache still shows the mark of before.
        applied.begin("a");
        assert!(!applied.is("a", one, true, Some(&mark), at(0)));
        applied.done("a", other, at(0));
        assert!(!applied.is("a", one, true, Some(&mark), at(0)));
    }
}
