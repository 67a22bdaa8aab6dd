//! Pauses the sale of a pool whose cluster refuses the pods of leases: each further lease would be reserved, paid and refunded
//! without ever having run.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// Payers in a row whose pods were refused before a pool is paused. One tenant alone, whose workload a policy refuses, must not
/// take the capacity of a provider off the market.
const PAYERS: usize = 3;
/// How long a pool is paused, in seconds. Then refusals are counted from the beginning.
const PAUSE_SECONDS: i64 = 600;

/// A refusal of a pod or a volume by the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// When it was repeated last.
    pub at: Timestamp,
    /// What the cluster said.
    pub words: String,
}

/// What became of the pods of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// All of them exist. When the newest was created.
    Created(Timestamp),
    /// One is missing, and the cluster refused it.
    Refused(Refusal),
    /// One is missing, and no refusal is known.
    Pending,
}

/// What the cluster refused since it created the pods of a lease of the pool last, by pool.
#[derive(Clone, Debug, Default)]
pub struct Refusals(BTreeMap<String, InARow>);

#[derive(Clone, Debug)]
struct InARow {
    /// At most [`PAYERS`].
    payers: BTreeSet<String>,
    last: Refusal,
    /// Until when the pool is paused. What is refused in the pause is not counted.
    paused_until: Option<Timestamp>,
}

impl Refusals {
    /// Counts what became of the pods of a reservation in that pool, for that payer. Each reconcile may report the same again.
    pub fn observe(&mut self, pool: &str, payer: &str, creation: &Creation) {
        match creation {
            Creation::Refused(refusal) => self.refused(pool, payer, refusal),
            // What was created earlier does not show that the cluster creates pods now.
            Creation::Created(at) => {
                self.0.retain(|name, row| name != pool || row.last.at >= *at);
            }
            Creation::Pending => {}
        }
    }

    fn refused(&mut self, pool: &str, payer: &str, refusal: &Refusal) {
        let row = self.0.entry(pool.to_owned()).or_insert_with(|| InARow {
            payers: BTreeSet::new(),
            last: refusal.clone(),
            paused_until: None,
        });
        match row.paused_until {
            Some(until) if refusal.at < until => return,
            Some(_) => {
                row.payers.clear();
                row.paused_until = None;
            }
            None => {}
        }
        if refusal.at >= row.last.at {
            row.last.clone_from(refusal);
        }
        row.payers.insert(payer.to_owned());
        if row.payers.len() >= PAYERS {
            let end = row.last.at.as_second().saturating_add(PAUSE_SECONDS);
            row.paused_until = Timestamp::from_second(end).ok();
        }
    }

    /// Why the pool is not sold now, in the words of the last refusal; `None` if it is not paused.
    #[must_use]
    pub fn pause(&self, pool: &str, now: Timestamp) -> Option<&str> {
        let row = self.0.get(pool)?;
        let is_paused = row.paused_until.is_some_and(|until| now < until);
        is_paused.then_some(row.last.words.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn refused(words: &str, second: i64) -> Creation {
        Creation::Refused(Refusal {
            at: at(second),
            words: words.into(),
        })
    }

    /// Three payers were refused, the last of them at second 20.
    fn paused() -> Refusals {
        let mut refusals = Refusals::default();
        for _ in 0..5 {
            refusals.observe("h100", "0x1", &refused("exceeded quota", 0));
        }
        refusals.observe("h100", "0x2", &refused("exceeded quota", 10));
        assert_eq!(refusals.pause("h100", at(10)), None, "two payers");
        refusals.observe("h100", "0x3", &refused("images must be signed", 20));
        refusals
    }

    #[test]
    fn a_pool_is_paused_after_refusals_to_three_payers_in_a_row() {
        let mut refusals = paused();
        assert_eq!(refusals.pause("h100", at(20)), Some("images must be signed"));
        assert_eq!(refusals.pause("a100", at(20)), None, "another pool");
        assert!(refusals.pause("h100", at(619)).is_some());
        assert_eq!(refusals.pause("h100", at(620)), None);
        refusals.observe("h100", "0x4", &Creation::Pending);
        assert!(refusals.pause("h100", at(20)).is_some());
        refusals.observe("h100", "0x4", &Creation::Created(at(21)));
        assert_eq!(refusals.pause("h100", at(21)), None, "the cluster creates pods");
    }

    /// One tenant whose workload a policy refuses would otherwise keep the pool off the market for ever.
    #[test]
    fn after_a_pause_three_payers_are_needed_again() {
        let mut refusals = paused();
        refusals.observe("h100", "0x4", &refused("images must be signed", 700));
        assert_eq!(refusals.pause("h100", at(700)), None);
        for (payer, second) in [("0x4", 800), ("0x5", 800), ("0x6", 900)] {
            refusals.observe("h100", payer, &refused("images must be signed", second));
        }
        assert!(refusals.pause("h100", at(1_499)).is_some());
    }

    /// Each reconcile reports the same refusal again, until pods are created.
    #[test]
    fn an_old_refusal_counts_at_its_own_time() {
        let mut refusals = paused();
        for payer in ["0x1", "0x2", "0x3"] {
            refusals.observe("h100", payer, &refused("images must be signed", 20));
        }
        assert_eq!(refusals.pause("h100", at(620)), None);
    }

    /// A lease that still pulls its image had its pods created before.
    #[test]
    fn pods_that_were_created_before_do_not_show_that_the_cluster_creates_pods_now() {
        let mut refusals = paused();
        refusals.observe("h100", "0x9", &Creation::Created(at(5)));
        assert!(refusals.pause("h100", at(20)).is_some());
    }
}
