//! Providers and the rows of their offers, in numbers.

use leasehold_crds::{
    market::offer::{OfferRow, PaymentIdentity},
    payment::money::Price,
    provider::pool::Exposure,
    shared::{architecture::Architecture, duration, quantity},
};

use crate::{
    escrow::Address,
    request::{PerGpu, Shape, Version},
};

/// Chain, contract and token: two currencies are the same if these are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Currency {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Escrow contract.
    pub escrow: Address,
    /// ERC-20 token.
    pub token: Address,
}

impl Currency {
    /// Reads the wire's form; `None` when an address is none.
    #[must_use]
    pub fn from_wire(wire: &PaymentIdentity) -> Option<Self> {
        Some(Self {
            chain_id: u64::try_from(wire.chain_id).ok()?,
            escrow: wire.escrow.parse().ok()?,
            token: wire.token.parse().ok()?,
        })
    }
}

/// A provider as the market knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Name of the GpuProvider.
    pub name: String,
    /// Region.
    pub region: String,
    /// Cold address that is paid.
    pub payee: Address,
    /// Hot key that controls its leg.
    pub controller: Address,
    /// Whether it was heard of lately.
    pub alive: bool,
    /// Whether it answers its allocations in time; see [`crate::market::providers::responsiveness::ResponseRecord`].
    pub answers: bool,
    /// Whether it starts what it accepts; see the same.
    pub starts: bool,
}

/// One row of an offer, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Index into the providers.
    pub provider: usize,
    /// Pool.
    pub pool: String,
    /// GPU class.
    pub class: String,
    /// Nodes with at least this room.
    pub nodes_free: u64,
    /// Free room of each.
    pub room: Shape,
    /// Largest volume, bytes.
    pub storage: u64,
    /// Nominal memory of one GPU, bytes.
    pub gpu_memory: u64,
    /// Compute capability.
    pub compute_capability: Version,
    /// CUDA version.
    pub cuda: Version,
    /// Price of a GPU-hour.
    pub price: Price,
    /// What it is paid in.
    pub currency: Currency,
    /// Longest term, seconds.
    pub max_term: u64,
    /// Longest pause, seconds.
    pub max_pause: u64,
    /// Longest that results are kept, seconds.
    pub max_keep_results: u64,
    /// What a lease can have with each of its GPUs.
    pub max_per_gpu: PerGpu,
    /// Architecture, if it is known.
    pub architecture: Option<Architecture>,
    /// Longest time within which a lease can require to start, seconds.
    pub max_start_within: u64,
    /// Whether a workload may be root.
    pub root_allowed: bool,
    /// How ports and results are exposed.
    pub exposure: Exposure,
}

impl Candidate {
    /// Reads a row; `None` when a stranger wrote what is no row. Such a row is not considered.
    #[must_use]
    pub fn from_wire(provider: usize, row: &OfferRow) -> Option<Self> {
        Some(Self {
            provider,
            pool: row.pool.clone(),
            class: row.class.clone(),
            nodes_free: u64::try_from(row.nodes_free).ok()?,
            room: Shape {
                gpus: u64::try_from(row.gpus).ok()?,
                millicores: quantity::millicores(&row.cpu).ok()?,
                memory: quantity::bytes(&row.memory).ok()?,
                scratch: quantity::bytes(&row.ephemeral_storage).ok()?,
            },
            storage: row
                .storage
                .as_deref()
                .map_or(Some(0), |t| quantity::bytes(t).ok())?,
            gpu_memory: quantity::bytes(&row.gpu_memory).ok()?,
            compute_capability: Version::parse(&row.compute_capability)?,
            cuda: Version::parse(&row.cuda)?,
            price: Price::parse(&row.price_per_gpu_hour).ok().filter(|p| p.0 > 0)?,
            currency: Currency::from_wire(&row.payment)?,
            max_term: duration::seconds(&row.max_duration).ok()?,
            max_pause: duration::seconds(&row.max_pause).ok()?,
            max_keep_results: duration::seconds(&row.max_keep_results_for).ok()?,
            max_per_gpu: PerGpu::from_wire(&row.max_per_gpu, &PerGpu::UNBOUNDED).ok()?,
            architecture: row.architecture,
            max_start_within: duration::seconds(&row.max_start_within).ok()?,
            root_allowed: row.root_allowed,
            exposure: row.exposure,
        })
    }
}
