//! What the market's operator saw on one pass.

use std::{collections::BTreeMap, sync::Arc};

use leasehold_crds::{GpuAllocation, GpuLease};

use crate::{
    escrow::{AccountRead, Address, Terms},
    observed::Observed,
    placement::{Candidate, Currency, Provider},
    ports::{Balances, Head},
};

/// A PaymentNetwork in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Chain, contract, token.
    pub currency: Currency,
    /// Address that names this market.
    pub market_id: Address,
    /// The market's key that may close.
    pub closer: Address,
    /// Symbol of the token.
    pub symbol: String,
    /// Decimals of the token.
    pub decimals: u32,
}

/// What became of reading the payer's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wallet {
    /// It was not needed on this pass.
    NotAsked,
    /// It holds the key of this address.
    Ready(Address),
    /// The namespace has not opted in, or there is no such Secret.
    NotReadable(String),
    /// The Secret holds no key.
    Malformed(String),
}

/// An allocation of the lease.
#[derive(Clone, Debug)]
pub struct AllocationSeen {
    /// The object, or what [`super::trim_allocation`] leaves of it.
    pub object: Arc<GpuAllocation>,
    /// Whether its acceptance carries the signature of its leg's controller over what was asked.
    pub signed: bool,
}

/// An account this lease had before its status was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredAccount {
    /// Number of the round.
    pub round: u64,
    /// Its terms.
    pub terms: Terms,
}

/// Everything that was seen. Only the lease itself must be readable.
#[derive(Clone, Debug)]
pub struct World {
    /// The lease, or what [`super::trim_lease`] leaves of it.
    pub lease: Arc<GpuLease>,
    /// Its PaymentNetwork; `Known(None)` when there is none of that name.
    pub network: Observed<Option<Network>>,
    /// Providers of this market.
    pub providers: Arc<[Provider]>,
    /// Rows of their offers.
    pub candidates: Arc<[Candidate]>,
    /// Its allocations.
    pub allocations: Vec<AllocationSeen>,
    /// The payer's key.
    pub wallet: Observed<Wallet>,
    /// What the payer holds; asked when a round is to begin.
    pub balances: Option<Observed<Balances>>,
    /// The newest block.
    pub head: Observed<Head>,
    /// The account in status, at the newest block.
    pub account: Option<Observed<AccountRead>>,
    /// The same once more: what destroys needs two reads.
    pub second_account: Option<Observed<AccountRead>>,
    /// An account of an earlier life, sought when status names none.
    pub prior: Observed<Option<RecoveredAccount>>,
    /// Other leases of the namespace that are matched and unfunded.
    pub unfunded_in_namespace: usize,
    /// Questions that wait for an answer, by provider; none where it is not named.
    pub unanswered: BTreeMap<String, usize>,
}
