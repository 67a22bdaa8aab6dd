//! Accounts that this market opened, as its `Opened` events show them: how a lease whose status was lost finds its account
//! again, and how an account whose lease is gone is found at all.
//!
//! Anybody can open an account that names this market, its token and its closer. An account counts only if its salt shows
//! that this market chose it for the payer. What strangers open is not stored, so it costs neither memory nor gas.

use std::{collections::BTreeMap, ops::RangeInclusive};

use crate::{
    escrow::{Address, Hash, MarketSecret, RoundKey, Terms},
    market::lease::RecoveredAccount,
    orphans::Claims,
};

/// Accounts of a market, by the lease and the round that they were opened for. A payer is part of the key because the
/// wallet of a lease can change between rounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts(BTreeMap<(RoundKey, Address), Terms>);

impl Accounts {
    /// Stores those of `opened` that the market with that secret opened.
    pub fn extend(&mut self, secret: &MarketSecret, opened: impl IntoIterator<Item = Terms>) {
        let own = opened.into_iter().filter(|terms| secret.chose(terms));
        self.0
            .extend(own.map(|terms| ((RoundKey::of(terms.salt), terms.payer), terms)));
    }

    /// The account of the latest of these rounds of a lease.
    #[must_use]
    pub fn latest(
        &self,
        market: Address,
        lease_uid: &str,
        rounds: RangeInclusive<u64>,
    ) -> Option<RecoveredAccount> {
        rounds.rev().find_map(|round| {
            let key = RoundKey::new(market, lease_uid, round);
            let (_, terms) = self
                .0
                .range((key, Address([0; 20]))..=(key, Address([0xff; 20])))
                .next()?;
            Some(RecoveredAccount {
                round,
                terms: terms.clone(),
            })
        })
    }

    /// Accounts that no lease claims, in an order that does not change.
    pub fn unclaimed(&self, claims: &Claims) -> impl Iterator<Item = &Terms> {
        self.0.values().filter(|terms| !claims.has(terms))
    }

    /// Drops the accounts with these ids.
    pub fn forget(&mut self, ids: &[Hash]) {
        self.0.retain(|_, terms| !ids.contains(&terms.id()));
    }
}

#[cfg(test)]
mod tests {
    use leasehold_crds::payment::money::Rate;

    use super::*;
    use crate::{escrow::Leg, ports::SigningKey};

    const MARKET: Address = Address([4; 20]);

    fn secret() -> MarketSecret {
        MarketSecret::of(&SigningKey([7; 32]))
    }

    fn terms(payer: u8, round: u64) -> Terms {
        let payer = Address([payer; 20]);
        let leg = Leg {
            payee: Address([1; 20]),
            controller: Address([2; 20]),
            rate: Rate(1_000_000),
        };
        Terms {
            payer,
            market: MARKET,
            token: Address([5; 20]),
            closer: Address([6; 20]),
            salt: secret().salt(RoundKey::new(MARKET, "uid", round), payer),
            start_by: 1_000,
            notice_seconds: 0,
            pause_for: 0,
            legs: vec![leg],
        }
    }

    #[test]
    fn the_account_of_the_latest_round_is_found() {
        let mut accounts = Accounts::default();
        accounts.extend(&secret(), [terms(3, 1), terms(3, 4)]);
        let latest = |uid, rounds| accounts.latest(MARKET, uid, rounds).map(|found| found.round);
        assert_eq!(latest("uid", 1..=64), Some(4));
        assert_eq!(latest("uid", 1..=3), Some(1));
        assert_eq!(latest("uid", 5..=64), None);
        assert_eq!(latest("another", 1..=64), None);
    }

    /// A stranger reads the salt, the token and the closer from the chain, and the UID from the API server.
    #[test]
    fn what_a_stranger_opens_is_not_stored() {
        let mut accounts = Accounts::default();
        let copied = Terms {
            payer: Address([9; 20]),
            ..terms(3, 1)
        };
        let guessed = Terms {
            salt: MarketSecret::of(&SigningKey([8; 32]))
                .salt(RoundKey::new(MARKET, "uid", 64), Address([9; 20])),
            ..copied.clone()
        };
        accounts.extend(&secret(), [copied, guessed]);
        assert_eq!(accounts, Accounts::default());
    }

    #[test]
    fn claimed_and_forgotten_accounts_are_not_listed() {
        let mut accounts = Accounts::default();
        accounts.extend(&secret(), [terms(3, 1), terms(3, 2)]);
        assert_eq!(accounts.unclaimed(&Claims::default()).count(), 2);
        accounts.forget(&[terms(3, 1).id()]);
        let left: Vec<_> = accounts.unclaimed(&Claims::default()).collect();
        assert_eq!(left, [&terms(3, 2)]);
    }
}
