//! What the contract says of an account, and at which block it is true.

use leasehold_crds::payment::money::TokenAmount;

use crate::ports::{Head, PaymentError};

/// What the contract says of an account at a block, computed at that block's time (`Snapshot` in Escrow.sol).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whether it is closed.
    pub closed: bool,
    /// Total deposited.
    pub deposited: TokenAmount,
    /// What is not burned yet, in 10⁻¹² base units.
    pub balance_scaled: u128,
    /// Time of the block, Unix seconds.
    pub block_time: u64,
    /// Until when the deposit pays, Unix seconds; `exhausted_at` when exhausted; 0 while the clock stands.
    pub paid_until: u64,
    /// When the funds ended, Unix seconds; 0 when they have not.
    pub exhausted_at: u64,
    /// When the first leg first started, Unix seconds; 0 before. Not stored on the chain but reckoned back from
    /// `paid_seconds`: for people. Time that the account stood exhausted, and notice paid at the close, shift it.
    pub started_at: u64,
    /// Seconds burned since then.
    pub paid_seconds: u64,
    /// Bitmap of the legs that serve.
    pub running: u16,
    /// Bitmap of the legs that ended for good.
    pub ended: u16,
    /// The legs, in the order of the terms.
    pub legs: Vec<LegState>,
}

/// What the contract says of one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LegState {
    /// Seconds that it served and that were not credited.
    pub served_seconds: u64,
    /// Served seconds that were credited to the payer, in total. Only credits raise it.
    pub credited_seconds: u64,
    /// Base units paid out so far.
    pub withdrawn: TokenAmount,
    /// Base units that could be withdrawn now.
    pub owed: TokenAmount,
}

/// What is at an account's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountRead {
    /// Nothing yet.
    Absent,
    /// An account of other terms: nothing of ours, never adopted.
    Mismatch,
    /// Our account.
    Present(Account),
}

impl AccountRead {
    /// Our account, if it is there.
    #[must_use]
    pub const fn present(&self) -> Option<&Account> {
        match self {
            Self::Present(account) => Some(account),
            Self::Absent | Self::Mismatch => None,
        }
    }
}

/// By how many seconds the time that the contract sees may be after that of the block asked for: some chains execute views
/// at the time of the next block. It shifts no decision, as blocks may be that far apart anyway.
pub const VIEW_LEAD_SECONDS_MAX: u64 = 15;

/// An answer about an account, with the block at which it is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountAt {
    /// The block.
    pub block: Head,
    /// What is at the account's id in it.
    pub read: AccountRead,
}

impl AccountAt {
    /// The answer of the contract, computed at `view_time` (Unix seconds), to a read at `block`.
    ///
    /// # Errors
    /// `Unreachable` when that time is not that of the block, so that the answer belongs to another state.
    pub fn computed(block: Head, view_time: u64, read: AccountRead) -> Result<Self, PaymentError> {
        let number = block.number;
        if view_time < block.time {
            return Err(PaymentError::Unreachable(format!(
                "the RPC endpoint answered from a block older than {number}, which it was asked for"
            )));
        }
        if view_time - block.time > VIEW_LEAD_SECONDS_MAX {
            return Err(PaymentError::Unreachable(format!(
                "the RPC endpoint answered from a time {} s after that of block {number}, which it was asked for",
                view_time - block.time
            )));
        }
        Ok(Self { block, read })
    }

    /// Our account, if it is there.
    #[must_use]
    pub const fn present(&self) -> Option<&Account> {
        self.read.present()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::Hash;

    #[test]
    fn an_answer_from_another_time_than_that_of_its_block_is_none() {
        let block = Head {
            number: 9,
            hash: Hash::default(),
            time: 1_000,
        };
        for (time, is_accepted) in [
            (999, false),
            (1_000, true),
            (1_015, true),
            (1_016, false),
            (1_001_000, false),
            (u64::MAX, false),
        ] {
            let answer = AccountAt::computed(block, time, AccountRead::Absent);
            assert_eq!(answer.is_ok(), is_accepted, "{time}");
        }
    }
}
