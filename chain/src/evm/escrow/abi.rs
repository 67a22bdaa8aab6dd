//! Rust types generated from the contracts' ABI, and conversions between them and the types of the payment port.

use alloy::{
    primitives::{Address as EvmAddress, B256, U256, aliases::U40},
    sol,
};
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::{
    escrow::{Account, AccountRead, Address, Hash, Leg, LegState, Terms},
    ports::PaymentError,
};

/// Generated code, in a module of its own so that its lint exceptions apply to nothing else.
#[allow(
    missing_docs,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "generated from the ABI"
)]
mod generated {
    super::sol!(Escrow, "contracts/abi/Escrow.json");
    super::sol!(TestToken, "contracts/abi/TestToken.json");

    // Any ERC-20 token, with the optional functions of EIP-2612.
    super::sol! {
        interface Token {
            function name() external view returns (string);
            function symbol() external view returns (string);
            function decimals() external view returns (uint8);
            function version() external view returns (string);
            function balanceOf(address owner) external view returns (uint256);
            function allowance(address owner, address spender) external view returns (uint256);
            function approve(address spender, uint256 value) external returns (bool);
            function nonces(address owner) external view returns (uint256);
            function DOMAIN_SEPARATOR() external view returns (bytes32);

            error ERC20InsufficientAllowance(address spender, uint256 allowance, uint256 needed);
            error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);
            error ERC20InvalidReceiver(address receiver);
            error ERC20InvalidSender(address sender);
            error ERC20InvalidSpender(address spender);
        }

        struct Acceptance {
            bytes32 escrowId;
            uint16 leg;
            uint128 rate;
            uint64 notAfter;
            uint64 deadline;
        }
    }

    /// In a module of its own because the escrow has a `Permit` too, and the name of the type is part of the signed
    /// data.
    pub(crate) mod eip2612 {
        alloy::sol! {
            struct Permit {
                address owner;
                address spender;
                uint256 value;
                uint256 nonce;
                uint256 deadline;
            }
        }
    }
}
pub(crate) use generated::{Acceptance, Escrow, TestToken, Token, eip2612};

pub(crate) const fn to_evm(address: Address) -> EvmAddress {
    EvmAddress::new(address.0)
}

pub(crate) const fn from_evm(address: EvmAddress) -> Address {
    Address(address.into_array())
}

pub(crate) const fn to_b256(hash: Hash) -> B256 {
    B256::new(hash.0)
}

pub(crate) const fn from_b256(hash: B256) -> Hash {
    Hash(hash.0)
}

/// Seconds in the contract's 40 bits. Later times are saturated.
pub(crate) fn to_u40(seconds: u64) -> U40 {
    U40::saturating_from(seconds)
}

impl From<&Terms> for Escrow::Terms {
    fn from(terms: &Terms) -> Self {
        Self {
            payer: to_evm(terms.payer),
            market: to_evm(terms.market),
            token: to_evm(terms.token),
            closer: to_evm(terms.closer),
            salt: to_b256(terms.salt),
            startBy: to_u40(terms.start_by),
            noticeSeconds: terms.notice_seconds,
            pauseFor: terms.pause_for,
            legs: terms.legs.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Leg> for Escrow::Leg {
    fn from(leg: &Leg) -> Self {
        Self {
            payee: to_evm(leg.payee),
            controller: to_evm(leg.controller),
            rate: leg.rate.0,
        }
    }
}

impl From<&Escrow::Terms> for Terms {
    fn from(terms: &Escrow::Terms) -> Self {
        Self {
            payer: from_evm(terms.payer),
            market: from_evm(terms.market),
            token: from_evm(terms.token),
            closer: from_evm(terms.closer),
            salt: from_b256(terms.salt),
            start_by: terms.startBy.to(),
            notice_seconds: terms.noticeSeconds,
            pause_for: terms.pauseFor,
            legs: terms
                .legs
                .iter()
                .map(|leg| Leg {
                    payee: from_evm(leg.payee),
                    controller: from_evm(leg.controller),
                    rate: Rate(leg.rate),
                })
                .collect(),
        }
    }
}

/// Values of the contract's `Phase`: an ABI encodes enums as numbers.
mod phase {
    pub(super) const RUNNING: u8 = 1;
    pub(super) const EXHAUSTED: u8 = 2;
    pub(super) const ENDED: u8 = 3;
    pub(super) const CLOSED: u8 = 4;
}

/// Whether the snapshot alone does not show when the account was first started.
pub(crate) const fn hides_its_start(s: &Escrow::Snapshot) -> bool {
    s.matches && matches!(s.phase, phase::ENDED | phase::CLOSED)
}

/// Converts a snapshot. `stored` is the stored clock of an account that [hides its start](hides_its_start).
///
/// # Errors
/// `Unreachable` when that clock is of another state than the snapshot: a node that receives a block between two calls can
/// answer both for the block before, and one of them from the new one.
pub(crate) fn account_read(
    s: &Escrow::Snapshot,
    stored: Option<&Escrow::Clock>,
) -> Result<AccountRead, PaymentError> {
    if !s.exists {
        return Ok(AccountRead::Absent);
    }
    if !s.matches {
        return Ok(AccountRead::Mismatch);
    }
    if stored.is_some_and(|clock| clock.phase != s.phase || clock.paidSeconds != s.paidSeconds) {
        let what = "the RPC endpoint answered two calls for one block from two states";
        return Err(PaymentError::Unreachable(what.into()));
    }
    let paid_seconds: u64 = s.paidSeconds.to();
    let counted_to = match s.phase {
        phase::RUNNING => Some(s.blockTime.to()),
        phase::EXHAUSTED => Some(s.exhaustedAt.to()),
        phase::ENDED | phase::CLOSED => stored
            .filter(|_| paid_seconds > 0)
            .map(|clock| clock.settledAt.to()),
        _ => None,
    };
    Ok(AccountRead::Present(Account {
        closed: s.closed,
        deposited: TokenAmount(s.deposited),
        balance_scaled: narrow(s.balanceScaled)?,
        block_time: s.blockTime.to(),
        paid_until: s.paidUntil.to(),
        exhausted_at: s.exhaustedAt.to(),
        started_at: counted_to.map_or(0, |time: u64| time.saturating_sub(paid_seconds)),
        paid_seconds,
        running: s.running,
        ended: s.ended,
        legs: s
            .legs
            .iter()
            .map(|leg| LegState {
                served_seconds: leg.servedSeconds.to(),
                credited_seconds: leg.creditedSeconds.to(),
                withdrawn: TokenAmount(leg.withdrawn),
                owed: TokenAmount(leg.owed),
            })
            .collect(),
    }))
}

/// Narrows a number of the chain to 128 bits.
pub(crate) fn narrow(number: U256) -> Result<u128, PaymentError> {
    number
        .try_into()
        .map_err(|_| PaymentError::Malformed(format!("{number} does not fit 128 bits")))
}
