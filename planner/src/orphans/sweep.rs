//! The search for accounts that have no lease: which are read, and which are closed.
//!
//! It considers only accounts that this market opened ([`crate::market::accounts`]), with the token and the closer of their
//! PaymentNetwork, and closes only those that return something. Its work in one pass is bounded, it continues where the
//! last pass ended, and an account that cannot be closed delays no other.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{Claims, Verdict, assess};
use crate::escrow::{Account, AccountRead, Address, Hash, Terms};

/// Accounts of a network that are read in one pass.
const READS_MAX: usize = 500;
/// Accounts of a network that are closed in one pass.
const CLOSES_MAX: usize = 20;
/// An account that holds less than this part of a token is not closed: its gas costs more.
const WORTH_DIGITS: u32 = 3;
/// Time after the first failure to close an account; it doubles with every further one.
const BACKOFF_SECONDS: i64 = 60;
/// Longest time between two attempts.
const BACKOFF_SECONDS_MAX: i64 = 3_600;

/// What is known of the accounts of one network that have no lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    suspects: BTreeMap<Hash, Suspect>,
    /// The last account that was read; the next pass continues after it.
    after: Option<Hash>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    verdict: Verdict,
    failures: u32,
    not_before: Timestamp,
}

/// What is to be done about accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepPlan {
    /// Accounts to be closed, with a bitmap of the legs to be paid out, in this order.
    pub close: Vec<(Terms, u16)>,
    /// Accounts on which nothing can be closed any more, to be forgotten when that is [final](super::is_final).
    pub forget: Vec<Terms>,
}

/// An account on which two readings agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed(Terms, Verdict);

impl Sweep {
    /// The accounts to be read in this pass, of those that nobody claims.
    pub fn next<'a>(
        &mut self,
        unclaimed: impl IntoIterator<Item = &'a Terms>,
        (token, closer): (Address, Address),
    ) -> Vec<Terms> {
        let own = |terms: &&Terms| terms.token == token && terms.closer == closer;
        let all: BTreeMap<Hash, &Terms> = unclaimed
            .into_iter()
            .filter(own)
            .map(|terms| (terms.id(), terms))
            .collect();
        self.suspects.retain(|id, _| all.contains_key(id));
        let begin = self.after;
        let is_later = |id: &Hash| begin.is_none_or(|after| *id > after);
        let later = all.iter().filter(|(id, _)| is_later(id));
        let earlier = all.iter().filter(|(id, _)| !is_later(id));
        let next: Vec<Terms> = later
            .chain(earlier)
            .take(READS_MAX)
            .map(|(_, terms)| (*terms).clone())
            .collect();
        self.after = next.last().map(Terms::id);
        next
    }

    /// Stores what was read, and gives back the accounts on which the last two readings agree. `decimals` are those of the
    /// token.
    pub fn agreed(
        &mut self,
        read: impl IntoIterator<Item = (Terms, AccountRead)>,
        decimals: u32,
        now: Timestamp,
    ) -> Vec<Agreed> {
        let mut agreed = Vec::new();
        for (terms, account) in read {
            let verdict = match account.present() {
                Some(account) if !account.closed && !is_worth_closing(account, decimals) => Verdict::Leave,
                _ => assess(&terms, &account),
            };
            let before = self.suspects.get(&terms.id()).copied();
            let suspect = Suspect {
                verdict,
                failures: before.map_or(0, |b| b.failures),
                not_before: before.map_or(now, |b| b.not_before),
            };
            self.suspects.insert(terms.id(), suspect);
            let repeats = before.is_some_and(|b| b.verdict == verdict);
            if repeats && verdict != Verdict::Leave && suspect.not_before <= now {
                agreed.push(Agreed(terms, verdict));
            }
        }
        agreed
    }

    /// What is to be done about these accounts. `claims` are those of the leases that the API server has now: a cache may
    /// lag behind a lease that was just created.
    #[must_use]
    pub fn plan(&self, agreed: Vec<Agreed>, claims: &Claims) -> SweepPlan {
        let mut plan = SweepPlan::default();
        for Agreed(terms, verdict) in agreed {
            match verdict {
                _ if claims.has(&terms) => {}
                Verdict::Over => plan.forget.push(terms),
                Verdict::Clear if plan.close.len() < CLOSES_MAX => {
                    let payouts = terms.all_legs();
                    plan.close.push((terms, payouts));
                }
                Verdict::Clear | Verdict::Leave => {}
            }
        }
        plan
    }

    /// An account could not be closed: it is tried again after a while.
    pub fn failed(&mut self, id: Hash, now: Timestamp) {
        if let Some(suspect) = self.suspects.get_mut(&id) {
            let seconds = (BACKOFF_SECONDS << suspect.failures.min(6)).min(BACKOFF_SECONDS_MAX);
            suspect.failures += 1;
            suspect.not_before = now
                .saturating_add(SignedDuration::from_secs(seconds))
                .unwrap_or(now);
        }
    }

    /// How many are left alone.
    #[must_use]
    pub fn left(&self) -> usize {
        let left = self.suspects.values().filter(|s| s.verdict == Verdict::Leave);
        left.count()
    }
}

/// Whether closing an account returns more than a trifle to its payer and its payees.
fn is_worth_closing(account: &Account, decimals: u32) -> bool {
    let withdrawn = account.legs.iter().map(|leg| leg.withdrawn.0);
    let held = withdrawn.fold(account.deposited.0, u128::saturating_sub);
    held >= 10u128.pow(decimals.saturating_sub(WORTH_DIGITS).min(30))
}

#[cfg(test)]
mod tests;
