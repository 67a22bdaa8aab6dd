//! The summary of a lease's account, in whole tokens. It holds no running total: who shows it computes that from the rate.

use jiff::Timestamp;
use leasehold_crds::{
    lease::{AccountSummary, GpuLeaseStatus},
    payment::money::TokenAmount,
};

use super::world::Network;
use crate::escrow::{Account, Terms};

/// What the legs of an account have earned, in base units.
pub(super) fn earned(account: &Account) -> TokenAmount {
    TokenAmount(account.legs.iter().map(|l| l.withdrawn.0 + l.owed.0).sum())
}

/// Writes the summary of `account`.
pub(super) fn set(status: &mut GpuLeaseStatus, account: &Account, terms: &Terms, network: &Network) {
    let time = |seconds: u64| {
        i64::try_from(seconds)
            .ok()
            .filter(|s| *s > 0)
            .and_then(|s| Timestamp::from_second(s).ok())
            .map(|t| t.to_string())
    };
    let tokens = |amount: TokenAmount| amount.to_tokens(network.decimals);
    let earned = earned(account);
    let refunded = TokenAmount(account.deposited.0.saturating_sub(earned.0));
    let before = status.money.take();
    let (started_at, paid_until) = before.map_or((None, None), |b| (b.started_at, b.paid_until));
    status.money = Some(AccountSummary {
        rate: format!(
            "{} {}/h",
            terms.rate().tokens_per_hour_nearest(network.decimals),
            network.symbol
        ),
        rate_per_second: terms.rate().to_string(),
        deposited: tokens(account.deposited),
        // Known from the first read on; the chain keeps no record of it, and after a gap the sum would move it.
        started_at: started_at.or_else(|| time(account.started_at)),
        paid_until: if account.closed {
            paid_until
        } else {
            time(account.paid_until)
        },
        spent: account.closed.then(|| tokens(earned)),
        refunded: account.closed.then(|| tokens(refunded)),
    });
}
