//! The escrow as decisions see it: terms, accounts, ids. No chain library's types, no IO.
//!
//! The contract is `chain/contracts/src/escrow/Escrow.sol`; the names here are its names.

use std::{fmt, str::FromStr};

use leasehold_crds::payment::{
    escrow::{EscrowLeg, EscrowTerms},
    money::{RATE_SCALE, Rate},
};
use sha3::{Digest, Keccak256};

use crate::ports::SigningKey;

mod account;

pub use account::{Account, AccountAt, AccountRead, LegState, VIEW_LEAD_SECONDS_MAX};

/// Seconds by which `notAfter` is later than the end of the paid time and the pause: time to settle. A market leaves them, and a
/// provider does not ask for payment of them.
pub const SETTLE_SECONDS: u64 = 300;
/// The shortest term of a lease, and the shortest top-up, in seconds. Less is neither accepted nor served.
pub const TERM_SECONDS_MIN: u64 = 10;

/// An EVM address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(pub [u8; 20]);

/// 32 bytes: an account id, a salt, a transaction hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

/// A string that is no address or hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not 0x and {digits} hexadecimal digits")]
pub struct HexError {
    /// What was read.
    pub text: String,
    /// How many digits it should have.
    pub digits: usize,
}

fn unhex<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let wrong = || HexError {
        text: text.chars().take(80).collect(),
        digits: 2 * N,
    };
    let digits = text.strip_prefix("0x").ok_or_else(wrong)?;
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .map_err(|_| wrong())?;
    bytes.try_into().map_err(|_| wrong())
}

macro_rules! hex_type {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "0x{}", data_encoding::HEXLOWER.encode(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = HexError;
            fn from_str(text: &str) -> Result<Self, HexError> {
                unhex(text).map(Self)
            }
        }
    };
}
hex_type!(Address);
hex_type!(Hash);

/// Keccak-256 of the parts in a row.
#[must_use]
pub fn keccak(parts: &[&[u8]]) -> Hash {
    let mut hasher = Keccak256::new();
    for part in parts {
        hasher.update(part);
    }
    Hash(hasher.finalize().into())
}

/// What an account is opened for: the first half of `keccak256(market, lease uid, round)`, of the market's address, the
/// uid's text, and the round as 8 bytes. It is the first half of the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoundKey([u8; 16]);

impl RoundKey {
    /// The key of a round of a lease.
    #[must_use]
    pub fn new(market: Address, lease_uid: &str, round: u64) -> Self {
        Self(half(&keccak(&[
            &market.0,
            lease_uid.as_bytes(),
            &round.to_be_bytes(),
        ])))
    }

    /// The salt with this key whose second half is zero, so that no market recognizes it.
    #[must_use]
    pub fn unkeyed_salt(self) -> Hash {
        let mut salt = [0; 32];
        salt[..16].copy_from_slice(&self.0);
        Hash(salt)
    }

    /// The key in a salt.
    #[must_use]
    pub fn of(salt: Hash) -> Self {
        Self(half(&salt))
    }
}

fn half(hash: &Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.0[..16]);
    half
}

/// Secret of a market, by which it recognizes the accounts that it opened. It is derived from the closer's key and is
/// never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct MarketSecret(Hash);

impl fmt::Debug for MarketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MarketSecret(…)")
    }
}

impl MarketSecret {
    /// The secret of the market whose closer has that key.
    #[must_use]
    pub fn of(closer: &SigningKey) -> Self {
        Self(keccak(&[b"Leasehold market secret", &closer.0]))
    }

    /// Salt of the account of a round and a payer. Its second half is the first of `keccak256(secret, payer, round key)`:
    /// nobody without the secret can choose such a salt, and copied with another payer it is none.
    #[must_use]
    pub fn salt(&self, key: RoundKey, payer: Address) -> Hash {
        let Hash(mut salt) = key.unkeyed_salt();
        salt[16..].copy_from_slice(&half(&keccak(&[&self.0.0, &payer.0, &key.0])));
        Hash(salt)
    }

    /// Whether this market chose the salt for the payer.
    #[must_use]
    pub fn chose(&self, terms: &Terms) -> bool {
        terms.salt == self.salt(RoundKey::of(terms.salt), terms.payer)
    }
}

/// `id = keccak256(abi.encode(payer, salt))`: it binds the payer, so that nobody can squat it.
#[must_use]
pub fn account_id(payer: Address, salt: Hash) -> Hash {
    keccak(&[&[0; 12], &payer.0, &salt.0])
}

/// The name of everything made for a lease: `lease-` and the first 26 characters of the account id in
/// lower-case base32.
#[must_use]
pub fn lease_name(id: Hash) -> String {
    let mut text = data_encoding::BASE32_NOPAD.encode(&id.0).to_ascii_lowercase();
    text.truncate(26);
    format!("lease-{text}")
}

/// Name of the allocation of a leg, and of the reservation and the namespace that a provider makes for it: the lease's
/// name and the number of the leg.
#[must_use]
pub fn allocation_name(id: Hash, leg: usize) -> String {
    format!("{}-{leg}", lease_name(id))
}

/// One payee of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Cold address that is paid.
    pub payee: Address,
    /// Hot key that starts, pauses, credits and ends the leg.
    pub controller: Address,
    /// What a second costs.
    pub rate: Rate,
}

/// The terms of an account; the contract stores their hash alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who pays and gets the refund.
    pub payer: Address,
    /// Address that names the market.
    pub market: Address,
    /// ERC-20 token.
    pub token: Address,
    /// Key that may close with the refund to the payer.
    pub closer: Address,
    /// See [`MarketSecret::salt`].
    pub salt: Hash,
    /// Unix time in seconds after which anybody may close an account that never started.
    pub start_by: u64,
    /// Seconds that running legs are still paid when the payer closes.
    pub notice_seconds: u32,
    /// Seconds after exhaustion before anybody may close.
    pub pause_for: u32,
    /// 1 to 16 payees.
    pub legs: Vec<Leg>,
}

/// Why terms on an object are no terms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// A malformed address, hash, or number.
    #[error("escrow terms: {0}")]
    Malformed(String),
    /// The id is not the one of payer and salt.
    #[error("escrow terms: id {found} is not keccak256(payer, salt) = {expected}")]
    IdMismatch {
        /// The id on the object.
        found: Hash,
        /// The id that payer and salt make.
        expected: Hash,
    },
}

impl Terms {
    /// The account's id.
    #[must_use]
    pub fn id(&self) -> Hash {
        account_id(self.payer, self.salt)
    }

    /// What a second of all legs that are not in `ended` costs.
    #[must_use]
    pub fn burn_rate(&self, ended: u16) -> Rate {
        Rate(
            self.legs
                .iter()
                .enumerate()
                .filter(|(i, _)| ended & (1 << i) == 0)
                .map(|(_, leg)| leg.rate.0)
                .sum(),
        )
    }

    /// What a second of all legs costs.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.burn_rate(0)
    }

    /// Bitmap of all legs.
    #[must_use]
    pub fn all_legs(&self) -> u16 {
        u16::try_from((1u32 << self.legs.len()) - 1).unwrap_or(u16::MAX)
    }

    /// Bitmap of the legs of `controller`.
    #[must_use]
    pub fn legs_of(&self, controller: Address) -> u16 {
        self.legs
            .iter()
            .enumerate()
            .filter(|(_, l)| l.controller == controller)
            .fold(0, |map, (i, _)| map | (1 << i))
    }

    /// Reads terms off an object; the id must be the one of payer and salt.
    pub fn from_wire(wire: &EscrowTerms) -> Result<Self, TermsError> {
        fn malformed(e: impl fmt::Display) -> TermsError {
            TermsError::Malformed(e.to_string())
        }
        if wire.legs.is_empty() || wire.legs.len() > 16 {
            return Err(malformed("an account has 1 to 16 legs"));
        }
        let legs = wire
            .legs
            .iter()
            .map(|leg| {
                Ok(Leg {
                    payee: leg.payee.parse().map_err(malformed)?,
                    controller: leg.controller.parse().map_err(malformed)?,
                    rate: Rate::parse(&leg.rate).map_err(malformed)?,
                })
            })
            .collect::<Result<Vec<_>, TermsError>>()?;
        let total = legs
            .iter()
            .try_fold(0u128, |sum, leg| sum.checked_add(leg.rate.0));
        if total.is_none_or(|t| t == 0 || t > u128::from(u64::MAX) * RATE_SCALE) {
            return Err(malformed("the rates of all legs add up to nothing or too much"));
        }
        let terms = Self {
            payer: wire.payer.parse().map_err(malformed)?,
            market: wire.market.parse().map_err(malformed)?,
            token: wire.token.parse().map_err(malformed)?,
            closer: wire.closer.parse().map_err(malformed)?,
            salt: wire.salt.parse().map_err(malformed)?,
            start_by: u64::try_from(wire.start_by).map_err(malformed)?,
            notice_seconds: u32::try_from(wire.notice_seconds).map_err(malformed)?,
            pause_for: u32::try_from(wire.pause_for).map_err(malformed)?,
            legs,
        };
        let found: Hash = wire.id.parse().map_err(malformed)?;
        if found == terms.id() {
            Ok(terms)
        } else {
            Err(TermsError::IdMismatch {
                found,
                expected: terms.id(),
            })
        }
    }

    /// Writes terms onto an object.
    #[must_use]
    pub fn to_wire(&self, chain_id: u64, contract: Address) -> EscrowTerms {
        EscrowTerms {
            chain_id: i64::try_from(chain_id).unwrap_or(i64::MAX),
            contract: contract.to_string(),
            id: self.id().to_string(),
            payer: self.payer.to_string(),
            market: self.market.to_string(),
            token: self.token.to_string(),
            closer: self.closer.to_string(),
            salt: self.salt.to_string(),
            start_by: i64::try_from(self.start_by).unwrap_or(i64::MAX),
            notice_seconds: self.notice_seconds.into(),
            pause_for: self.pause_for.into(),
            legs: self
                .legs
                .iter()
                .map(|leg| EscrowLeg {
                    payee: leg.payee.to_string(),
                    controller: leg.controller.to_string(),
                    rate: leg.rate.to_string(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_bind_the_payer_and_names_are_labels() {
        let s = Hash([7; 32]);
        assert_ne!(account_id(Address([2; 20]), s), account_id(Address([3; 20]), s));
        let name = lease_name(account_id(Address([2; 20]), s));
        assert_eq!(name.len(), 32);
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        );
    }

    #[test]
    fn terms_survive_the_wire_and_a_forged_id_does_not() {
        let terms = Terms {
            payer: Address([1; 20]),
            market: Address([2; 20]),
            token: Address([3; 20]),
            closer: Address([4; 20]),
            salt: Hash([5; 32]),
            start_by: 6,
            notice_seconds: 7,
            pause_for: 8,
            legs: vec![Leg {
                payee: Address([9; 20]),
                controller: Address([10; 20]),
                rate: Rate(11),
            }],
        };
        let mut wire = terms.to_wire(31337, Address([12; 20]));
        assert_eq!(Terms::from_wire(&wire), Ok(terms));
        wire.payer = Address([13; 20]).to_string();
        assert!(matches!(
            Terms::from_wire(&wire),
            Err(TermsError::IdMismatch { .. })
        ));
    }
}
