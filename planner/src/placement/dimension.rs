//! The dimensions in which an offer row can fail a request.

use leasehold_crds::provider::pool::Exposure;

use super::candidate::{Candidate, Currency, Provider};
use crate::{request::Request, urls::GatewayAddress};

/// A property of an offer row that a request compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Dimension {
    ProviderSilent,
    ProviderNotAnswering,
    ProviderNotStarting,
    ProviderExcluded,
    Provider,
    Region,
    Payment,
    Class,
    GpuMemory,
    ComputeCapability,
    Cuda,
    Gpus,
    Cpu,
    Memory,
    EphemeralStorage,
    Storage,
    CpuPerGpu,
    MemoryPerGpu,
    EphemeralStoragePerGpu,
    StoragePerGpu,
    Architecture,
    RootNotAllowed,
    Exposure,
    StartWithin,
    Duration,
    Pause,
    KeepResults,
    Price,
    NodesFree,
}

/// Every dimension, in the order of [`Dimension`].
pub const DIMENSIONS: [Dimension; 29] = [
    Dimension::ProviderSilent,
    Dimension::ProviderNotAnswering,
    Dimension::ProviderNotStarting,
    Dimension::ProviderExcluded,
    Dimension::Provider,
    Dimension::Region,
    Dimension::Payment,
    Dimension::Class,
    Dimension::GpuMemory,
    Dimension::ComputeCapability,
    Dimension::Cuda,
    Dimension::Gpus,
    Dimension::Cpu,
    Dimension::Memory,
    Dimension::EphemeralStorage,
    Dimension::Storage,
    Dimension::CpuPerGpu,
    Dimension::MemoryPerGpu,
    Dimension::EphemeralStoragePerGpu,
    Dimension::StoragePerGpu,
    Dimension::Architecture,
    Dimension::RootNotAllowed,
    Dimension::Exposure,
    Dimension::StartWithin,
    Dimension::Duration,
    Dimension::Pause,
    Dimension::KeepResults,
    Dimension::Price,
    Dimension::NodesFree,
];

impl Dimension {
    /// Its name in a quote.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProviderSilent => "providerSilent",
            Self::ProviderNotAnswering => "providerNotAnswering",
            Self::ProviderNotStarting => "providerNotStarting",
            Self::ProviderExcluded => "providerExcluded",
            Self::Provider => "provider",
            Self::Region => "region",
            Self::Payment => "payment",
            Self::Class => "class",
            Self::GpuMemory => "gpuMemory",
            Self::ComputeCapability => "computeCapability",
            Self::Cuda => "cuda",
            Self::Gpus => "gpus",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::EphemeralStorage => "ephemeralStorage",
            Self::Storage => "storage",
            Self::CpuPerGpu => "cpuPerGpu",
            Self::MemoryPerGpu => "memoryPerGpu",
            Self::EphemeralStoragePerGpu => "ephemeralStoragePerGpu",
            Self::StoragePerGpu => "storagePerGpu",
            Self::Architecture => "architecture",
            Self::RootNotAllowed => "rootNotAllowed",
            Self::Exposure => "exposure",
            Self::StartWithin => "startWithin",
            Self::Duration => "duration",
            Self::Pause => "pause",
            Self::KeepResults => "keepResultsFor",
            Self::Price => "price",
            Self::NodesFree => "nodesFree",
        }
    }
}

/// The dimensions in which every row of a provider fails, as a bitmap by [`Dimension`].
pub(super) fn provider_failures(request: &Request, provider: &Provider) -> u32 {
    bitmap([
        (Dimension::ProviderSilent, provider.alive),
        (Dimension::ProviderNotAnswering, provider.answers),
        (Dimension::ProviderNotStarting, provider.starts),
        (
            Dimension::ProviderExcluded,
            !request.excluded_providers.contains(&provider.name),
        ),
        (
            Dimension::Provider,
            contains_or_empty(&request.providers, &provider.name),
        ),
        (
            Dimension::Region,
            contains_or_empty(&request.regions, &provider.region),
        ),
    ])
}

/// The dimensions in which a row fails whoever its provider is, as a bitmap by [`Dimension`].
#[inline]
pub(super) fn row_failures(
    request: &Request,
    currency: Currency,
    gateway: Option<&GatewayAddress>,
    row: &Candidate,
) -> u32 {
    let (shape, most) = (&request.shape, row.max_per_gpu.times(request.shape.gpus));
    let architecture = row.architecture;
    bitmap([
        (Dimension::Payment, row.currency == currency),
        (Dimension::Class, contains_or_empty(&request.classes, &row.class)),
        (Dimension::GpuMemory, request.gpu_memory <= row.gpu_memory),
        (
            Dimension::ComputeCapability,
            request.compute_capability <= row.compute_capability,
        ),
        (Dimension::Cuda, request.cuda <= row.cuda),
        (Dimension::Gpus, shape.gpus <= row.room.gpus),
        (Dimension::Cpu, shape.millicores <= row.room.millicores),
        (Dimension::Memory, shape.memory <= row.room.memory),
        (Dimension::EphemeralStorage, shape.scratch <= row.room.scratch),
        (Dimension::Storage, request.storage <= row.storage),
        (Dimension::CpuPerGpu, shape.millicores <= most.millicores),
        (Dimension::MemoryPerGpu, shape.memory <= most.memory),
        (Dimension::EphemeralStoragePerGpu, shape.scratch <= most.scratch),
        (Dimension::StoragePerGpu, request.storage <= most.storage),
        (
            Dimension::Architecture,
            request.architectures.is_empty()
                || architecture.is_some_and(|a| request.architectures.contains(&a)),
        ),
        (Dimension::RootNotAllowed, !request.root || row.root_allowed),
        (
            Dimension::Exposure,
            !request.exposes || row.exposure != Exposure::Tunnel || gateway.is_some(),
        ),
        (
            Dimension::StartWithin,
            request.start_within_seconds <= row.max_start_within,
        ),
        (Dimension::Duration, request.term_seconds <= row.max_term),
        (Dimension::Pause, request.pause_seconds <= row.max_pause),
        (
            Dimension::KeepResults,
            request.keep_results_seconds <= row.max_keep_results,
        ),
        (Dimension::Price, row.price <= request.price_cap),
        (Dimension::NodesFree, row.nodes_free > 0),
    ])
}

/// The dimensions whose check is false.
#[inline]
fn bitmap<const N: usize>(checks: [(Dimension, bool); N]) -> u32 {
    checks
        .iter()
        .filter(|(_, fits)| !fits)
        .fold(0, |map, (d, _)| map | 1 << *d as u8)
}

/// Whether an empty list, which asks for nothing, or a list with the value.
#[inline]
fn contains_or_empty(list: &[String], value: &str) -> bool {
    list.is_empty() || list.iter().any(|x| x == value)
}
