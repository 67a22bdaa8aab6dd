//! Pauses the sale of a pool whose cluster refuses the pods of leases: each further lease would be reserved, paid and refunded
//! without ever having run.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// Payers in a row whose pods were refused before a pool is paused. One tenant alone, whose workload a policy refuses, must not
/// take the capacity of a provider off the market.
const PAYERS: usize = 3;
/// How long a pool is paused after the last refusal, in seconds. Then one lease tries again.
const PAUSE_SECONDS: i64 = 600;

/// What the cluster refused since a lease of the pool had its pods last, by pool.
#[derive(Clone, Debug, Default)]
pub struct Refusals(BTreeMap<String, InARow>);

#[derive(Clone, Debug)]
struct InARow {
    /// At most [`PAYERS`].
    payers: BTreeSet<String>,
    last: Timestamp,
    words: String,
}

impl Refusals {
    /// The cluster refused pods of a lease of this payer.
    pub fn refused(&mut self, pool: &str, payer: &str, words: &str, now: Timestamp) {
        let row = self.0.entry(pool.to_owned()).or_insert_with(|| InARow {
            payers: BTreeSet::new(),
            last: now,
            words: String::new(),
        });
        if row.payers.len() < PAYERS {
            row.payers.insert(payer.to_owned());
        }
        row.last = now;
        words.clone_into(&mut row.words);
    }

    /// A lease of the pool has its pods.
    pub fn created(&mut self, pool: &str) {
        self.0.remove(pool);
    }

    /// Why the pool is not sold now, in the words of the last refusal; `None` if it is not paused.
    #[must_use]
    pub fn pause(&self, pool: &str, now: Timestamp) -> Option<&str> {
        let row = self.0.get(pool)?;
        let is_recent = now.as_second() - row.last.as_second() < PAUSE_SECONDS;
        (row.payers.len() >= PAYERS && is_recent).then_some(row.words.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_pool_is_paused_after_refusals_to_three_payers_in_a_row() {
        let mut refusals = Refusals::default();
        for _ in 0..5 {
            refusals.refused("h100", "0x1", "exceeded quota", at(0));
        }
        refusals.refused("h100", "0x2", "exceeded quota", at(10));
        assert_eq!(refusals.pause("h100", at(10)), None, "two payers");
        refusals.refused("h100", "0x3", "images must be signed", at(20));
        assert_eq!(refusals.pause("h100", at(20)), Some("images must be signed"));
        assert_eq!(refusals.pause("a100", at(20)), None, "another pool");
        assert!(refusals.pause("h100", at(619)).is_some());
        assert_eq!(refusals.pause("h100", at(620)), None, "one lease tries again");
        refusals.refused("h100", "0x4", "images must be signed", at(700));
        assert!(refusals.pause("h100", at(700)).is_some(), "and was refused");
        refusals.created("h100");
        assert_eq!(refusals.pause("h100", at(700)), None);
    }
}
