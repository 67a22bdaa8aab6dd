//! What the market's operator has read of a lease and around it, and its spec and terms as numbers.

use std::{collections::BTreeMap, sync::Arc};

use leasehold_crds::{GpuAllocation, GpuLease, lease::Blocker};

use super::access_token::AccessToken;
use crate::{
    escrow::{AccountAt, Address, MarketSecret, Terms, TermsError},
    observed::Observed,
    placement::{Candidate, Currency, Placement, Provider, place},
    ports::{Balances, Head},
    request::{Request, SpecError},
    urls::GatewayAddress,
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
    /// Secret by which this market recognizes its accounts.
    pub secret: MarketSecret,
    /// Symbol of the token.
    pub symbol: String,
    /// Decimals of the token.
    pub decimals: u32,
    /// Why no lease may begin on it; a lease that has an account goes on.
    pub refusal: Option<(Blocker, String)>,
}

/// What became of reading the payer's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wallet {
    /// It was not needed for this reconcile.
    NotRead,
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
    /// Whether its acceptance carries the signature of its leg's controller over the allocation.
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

/// Whether a lease is being deleted, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is not.
    None,
    /// Its tenant deleted it.
    ByTenant,
    /// Its CRD is being deleted, which no tenant asked for: what is paid is served to its end (U5).
    ByCrd,
    /// It is being deleted, and whether its tenant or the deletion of its CRD is the cause could not be read.
    Unknown(String),
}

impl Deletion {
    /// The deletion of `lease`. `crd_is_deleted` is read where [`super::needs_deletion_cause`] says so.
    #[must_use]
    pub fn of(lease: &GpuLease, crd_is_deleted: Option<Observed<bool>>) -> Self {
        if lease.metadata.deletion_timestamp.is_none() {
            return Self::None;
        }
        match crd_is_deleted {
            None | Some(Observed::Known(false)) => Self::ByTenant,
            Some(Observed::Known(true)) => Self::ByCrd,
            Some(Observed::Unknown(why)) => Self::Unknown(why),
        }
    }

    /// Whether it ends the lease.
    #[must_use]
    pub const fn ends_lease(&self) -> bool {
        match self {
            Self::ByTenant => true,
            Self::None | Self::ByCrd | Self::Unknown(_) => false,
        }
    }

    /// Why the lease is served on though it is being deleted, for a person.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        match self {
            Self::None | Self::ByTenant => None,
            Self::ByCrd => Some(
                "gpuleases.leasehold.dev is being deleted; this lease is paid for, so it is served to its end".into(),
            ),
            Self::Unknown(why) => Some(why.clone()),
        }
    }
}

/// A lease in numbers, parsed once for a reconcile.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The spec.
    pub request: Result<Request, SpecError>,
    /// The terms of the account in status.
    pub terms: Option<Result<Terms, TermsError>>,
    /// Where it can be placed; only for a lease that could begin a round.
    pub placement: Option<Placement>,
}

impl Parsed {
    /// Parses `lease`, and matches it if it could begin a round.
    #[must_use]
    pub fn of(
        lease: &GpuLease,
        deletion: &Deletion,
        network: &Observed<Option<Network>>,
        gateway: Option<&GatewayAddress>,
        providers: &[Provider],
        candidates: &[Candidate],
    ) -> Self {
        let status = lease.status.as_ref();
        let request = Request::from_spec(&lease.spec).map(|mut request| {
            let excluded = status.iter().flat_map(|s| s.excluded_providers.iter().cloned());
            request.excluded_providers.extend(excluded);
            request
        });
        let escrow = status.and_then(|s| s.escrow.as_ref());
        let ends =
            deletion.ends_lease() || status.is_some_and(|s| s.close_reason.is_some() || s.phase.is_over());
        let placement = match (&request, network) {
            (Ok(request), Observed::Known(Some(network))) if escrow.is_none() && !ends => Some(place(
                request,
                network.currency,
                network.decimals,
                gateway,
                providers,
                candidates,
            )),
            _ => None,
        };
        Self {
            request,
            terms: escrow.map(|e| Terms::from_wire(&e.terms)),
            placement,
        }
    }
}

/// Everything that was read. Only the lease itself must be readable.
#[derive(Clone, Debug)]
pub struct World {
    /// The lease, or what [`super::trim_lease`] leaves of it.
    pub lease: Arc<GpuLease>,
    /// Its deletion.
    pub deletion: Deletion,
    /// Its spec, terms and placement.
    pub parsed: Parsed,
    /// Its PaymentNetwork; `Known(None)` when there is none of that name.
    pub network: Observed<Option<Network>>,
    /// The gateway of this market; `None` if it has none.
    pub gateway: Option<GatewayAddress>,
    /// The token for its ports; read where [`super::needs_access_token`] says so.
    pub access_token: Observed<AccessToken>,
    /// Providers of this market.
    pub providers: Arc<[Provider]>,
    /// Rows of their offers.
    pub candidates: Arc<[Candidate]>,
    /// Its allocations.
    pub allocations: Vec<AllocationSeen>,
    /// The payer's key.
    pub wallet: Observed<Wallet>,
    /// The payer's balances; read when a round is to begin.
    pub balances: Option<Observed<Balances>>,
    /// The newest block; that of the first read of the account, where one is read.
    pub head: Observed<Head>,
    /// The account in status, at the newest block.
    pub account: Option<Observed<AccountAt>>,
    /// The same once more: what destroys needs two reads.
    pub second_account: Option<Observed<AccountAt>>,
    /// [`FINAL_READS`](crate::ports::FINAL_READS) reads of the account at the block level at which its end is final; read
    /// when it is closed.
    pub final_reads: Vec<Observed<AccountAt>>,
    /// The account of a later round than the status shows; searched where [`super::needs_prior`] says so.
    pub prior: Observed<Option<RecoveredAccount>>,
    /// Other leases of the namespace that are matched and unfunded.
    pub unfunded_in_namespace: usize,
    /// Unanswered allocations by provider; zero for a provider that is not listed.
    pub unanswered: BTreeMap<String, usize>,
}

impl World {
    /// The network, or why the lease has to wait for it.
    pub(super) fn network(&self) -> Result<&Network, (Blocker, String)> {
        match &self.network {
            Observed::Known(Some(network)) => Ok(network),
            Observed::Known(None) => Err((
                Blocker::NetworkNotFound,
                format!(
                    "there is no usable PaymentNetwork {:?} on this market: `kubectl get paymentnetworks` lists them",
                    self.lease.spec.payment.network
                ),
            )),
            Observed::Unknown(why) => Err((Blocker::NetworkUnknown, why.clone())),
        }
    }
}
