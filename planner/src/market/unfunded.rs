//! Which leases of a namespace may begin a round while others wait for their deposit. The cache shows a round only after its
//! status was written and watched, so the leases that are reconciled at the same time count each other here.

use std::collections::{BTreeMap, BTreeSet};

/// Leases that begin a round or have begun one, by namespace and UID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfunded(BTreeMap<String, BTreeSet<String>>);

impl Unfunded {
    /// The number of other leases of the namespace that are matched and unfunded, or were admitted here before this one.
    /// This one is admitted until it is [settled](Self::settle). `leases` are all of the namespace that exist, each with
    /// whether the cache shows it as matched and unfunded.
    pub fn admit<'a>(
        &mut self,
        namespace: &str,
        uid: &str,
        leases: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> usize {
        let admitted = self.0.entry(namespace.to_owned()).or_default();
        let (mut exist, mut others) = (BTreeSet::new(), BTreeSet::new());
        for (other, is_unfunded) in leases {
            exist.insert(other);
            if other != uid && (is_unfunded || admitted.contains(other)) {
                others.insert(other);
            }
        }
        let count = others.len();
        admitted.retain(|other| exist.contains(other.as_str()));
        admitted.insert(uid.to_owned());
        count
    }

    /// The lease began no round, or its round is over: it counts no more than the cache says.
    pub fn settle(&mut self, namespace: &str, uid: &str) {
        if let Some(admitted) = self.0.get_mut(namespace) {
            admitted.remove(uid);
            if admitted.is_empty() {
                self.0.remove(namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_that_are_reconciled_at_once_count_each_other() {
        let mut unfunded = Unfunded::default();
        let names: Vec<String> = (0..30).map(|n| format!("uid-{n}")).collect();
        // The cache shows none of them as matched.
        let cache = || names.iter().map(|name| (name.as_str(), false));
        let counts: Vec<usize> = names
            .iter()
            .map(|uid| unfunded.admit("tenant", uid, cache()))
            .collect();
        assert_eq!(counts, (0..30).collect::<Vec<_>>());
        assert_eq!(unfunded.admit("another", "uid", [("uid", false)]), 0);
        // Those that began no round make room, and the others still count.
        for uid in &names[20..] {
            unfunded.settle("tenant", uid);
        }
        assert_eq!(unfunded.admit("tenant", "uid-25", cache()), 20);
        unfunded.settle("tenant", "uid-0");
        assert_eq!(unfunded.admit("tenant", "uid-25", cache()), 19);
    }

    #[test]
    fn a_lease_that_the_cache_shows_counts_once_and_one_that_is_gone_not_at_all() {
        let mut unfunded = Unfunded::default();
        unfunded.admit("tenant", "a", [("a", false), ("b", false)]);
        let count = |unfunded: &mut Unfunded, leases: &[(&str, bool)]| {
            unfunded.admit("tenant", "b", leases.iter().copied())
        };
        assert_eq!(count(&mut unfunded, &[("a", true), ("b", false)]), 1);
        assert_eq!(count(&mut unfunded, &[("b", false)]), 0);
        unfunded.settle("tenant", "b");
        assert_eq!(unfunded, Unfunded::default());
    }
}
