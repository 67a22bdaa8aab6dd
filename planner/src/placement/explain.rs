//! A quote: the offers that match, the nearest misses, and why they miss.

use std::cmp::Reverse;

use leasehold_crds::{
    lease::{DimensionCount, FailedDimension, Miss, Quote, QuotedOffer},
    shared::{architecture::Architecture, duration, quantity},
};

use super::{
    Sorted,
    candidate::{Candidate, Provider},
    dimension::{DIMENSIONS, Dimension},
};
use crate::request::Request;

/// Offers and misses that a quote shows.
const QUOTED: usize = 10;

/// The quote of rows that were sorted into those that match and those that do not.
pub(super) fn quote(
    request: &Request,
    providers: &[Provider],
    rows: &[Candidate],
    sorted: &mut Sorted,
) -> Quote {
    let Sorted { fits, misses, counts } = sorted;
    let nearest = misses.len().min(QUOTED);
    if misses.len() > QUOTED {
        misses.select_nth_unstable_by_key(QUOTED - 1, |&(failed, i)| (failed.count_ones(), rows[i].price, i));
    }
    misses.truncate(nearest);
    misses.sort_unstable_by_key(|&(failed, i)| (failed.count_ones(), rows[i].price, i));
    let offers = fits.iter().take(QUOTED);
    Quote {
        considered: i64::try_from(rows.len()).unwrap_or(i64::MAX),
        offers: offers.map(|&i| quoted(providers, &rows[i])).collect(),
        misses: misses
            .iter()
            .map(|&(failed, i)| Miss {
                provider: providers[rows[i].provider].name.clone(),
                pool: rows[i].pool.clone(),
                failed: DIMENSIONS
                    .iter()
                    .filter(|d| failed >> **d as u8 & 1 == 1)
                    .map(|d| explain(request, &providers[rows[i].provider], &rows[i], *d))
                    .collect(),
            })
            .collect(),
        counts: DIMENSIONS
            .iter()
            .zip(counts)
            .filter(|(_, n)| **n > 0)
            .map(|(d, rows)| DimensionCount {
                dimension: d.as_str().into(),
                rows: *rows,
            })
            .collect(),
    }
}

fn quoted(providers: &[Provider], row: &Candidate) -> QuotedOffer {
    QuotedOffer {
        provider: providers[row.provider].name.clone(),
        pool: row.pool.clone(),
        class: row.class.clone(),
        nodes_free: i64::try_from(row.nodes_free).unwrap_or(i64::MAX),
        price_per_gpu_hour: row.price.to_string(),
    }
}

/// Why no row matches, for a person.
pub(super) fn nothing_fits(quote: &Quote) -> String {
    if quote.considered == 0 {
        return "no provider offers anything yet".into();
    }
    let mut counts = quote.counts.clone();
    counts.sort_by_key(|c| Reverse(c.rows));
    let parts: Vec<String> = counts
        .iter()
        .take(6)
        .map(|c| format!("{} on {}", c.rows, c.dimension))
        .collect();
    format!(
        "none of {} offered rows fits: {} (status.quote.misses lists the nearest)",
        quote.considered,
        parts.join(", ")
    )
}

/// What the request wants in a dimension, and what the row has.
fn explain(request: &Request, provider: &Provider, row: &Candidate, d: Dimension) -> FailedDimension {
    let list = |l: &[String]| l.join(", ");
    let (wanted, found) = match d {
        Dimension::ProviderSilent => ("a provider heard of in the last minute".into(), "silent".into()),
        Dimension::ProviderNotAnswering => (
            "a provider that answers its allocations".into(),
            "its last allocations timed out".into(),
        ),
        Dimension::ProviderNotStarting => (
            "a provider that starts what it accepts".into(),
            "other providers started what it did not".into(),
        ),
        Dimension::ProviderExcluded => (
            format!("none of {}", list(&request.excluded_providers)),
            provider.name.clone(),
        ),
        Dimension::Provider => (list(&request.providers), provider.name.clone()),
        Dimension::Region => (list(&request.regions), provider.region.clone()),
        Dimension::Payment => (
            "the lease's payment network".into(),
            format!("chain {}, escrow {}", row.currency.chain_id, row.currency.escrow),
        ),
        Dimension::Class => (list(&request.classes), row.class.clone()),
        Dimension::GpuMemory => (
            quantity::bytes_text(request.gpu_memory),
            quantity::bytes_text(row.gpu_memory),
        ),
        Dimension::ComputeCapability => (
            request.compute_capability.to_string(),
            row.compute_capability.to_string(),
        ),
        Dimension::Cuda => (request.cuda.to_string(), row.cuda.to_string()),
        Dimension::Gpus
        | Dimension::Cpu
        | Dimension::Memory
        | Dimension::EphemeralStorage
        | Dimension::Storage
        | Dimension::CpuPerGpu
        | Dimension::MemoryPerGpu
        | Dimension::EphemeralStoragePerGpu
        | Dimension::StoragePerGpu => amounts(request, row, d),
        Dimension::Architecture => (
            request
                .architectures
                .iter()
                .map(|architecture| architecture.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            row.architecture
                .map_or("unknown", Architecture::as_str)
                .to_owned(),
        ),
        Dimension::RootNotAllowed => (
            "root inside a user namespace, because the workload is a session or has no runAsUser".into(),
            "nodes without user namespaces".into(),
        ),
        Dimension::Exposure => (
            "NodePort or LoadBalancer, because this market has no gateway".into(),
            format!("{:?}", row.exposure),
        ),
        Dimension::StartWithin => (
            duration::text(request.start_within_seconds),
            duration::text(row.max_start_within),
        ),
        Dimension::Duration => (duration::text(request.term_seconds), duration::text(row.max_term)),
        Dimension::Pause => (
            duration::text(request.pause_seconds),
            duration::text(row.max_pause),
        ),
        Dimension::KeepResults => (
            duration::text(request.keep_results_seconds),
            duration::text(row.max_keep_results),
        ),
        Dimension::Price => (format!("at most {}", request.price_cap), row.price.to_string()),
        Dimension::NodesFree => ("1".into(), row.nodes_free.to_string()),
    };
    let cut = |s: String| s.chars().take(250).collect();
    FailedDimension {
        dimension: d.as_str().into(),
        wanted: cut(wanted),
        found: cut(found),
    }
}

/// What the request wants of a resource, and what the row has.
fn amounts(request: &Request, row: &Candidate, d: Dimension) -> (String, String) {
    let (shape, room, most) = (&request.shape, &row.room, &row.max_per_gpu);
    let cpu = quantity::millicores_text;
    let bytes = quantity::bytes_text;
    let per_gpu = |most: String| format!("at most {most} with each GPU");
    match d {
        Dimension::Cpu => (cpu(shape.millicores), cpu(room.millicores)),
        Dimension::Memory => (bytes(shape.memory), bytes(room.memory)),
        Dimension::EphemeralStorage => (bytes(shape.scratch), bytes(room.scratch)),
        Dimension::Storage => (bytes(request.storage), bytes(row.storage)),
        Dimension::CpuPerGpu => (cpu(shape.millicores), per_gpu(cpu(most.millicores))),
        Dimension::MemoryPerGpu => (bytes(shape.memory), per_gpu(bytes(most.memory))),
        Dimension::EphemeralStoragePerGpu => (bytes(shape.scratch), per_gpu(bytes(most.scratch))),
        Dimension::StoragePerGpu => (bytes(request.storage), per_gpu(bytes(most.storage))),
        _ => (shape.gpus.to_string(), room.gpus.to_string()),
    }
}
