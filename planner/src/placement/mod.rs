//! Where a lease can go: every row of every offer against one request, each dimension by name.
//!
//! The same function answers admission, the controller and the command line. Rows are parsed before
//! ([`Candidate::from_wire`]); matching only compares numbers, so that ten thousand rows take under a millisecond.

use std::{cmp::Reverse, collections::BTreeMap};

use leasehold_crds::{
    lease::{DimensionCount, FailedDimension, Miss, Quote, QuotedOffer, Spread},
    market::offer::OfferRow,
    payment::money::{Price, Rate},
    shared::{duration, quantity},
};

use crate::{
    escrow::Address,
    request::{Request, Shape, Version},
};

/// In what a row can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Dimension {
    ProviderSilent,
    ProviderNotAnswering,
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
    RootNotAllowed,
    Duration,
    Pause,
    KeepResults,
    Price,
    NodesFree,
}

/// Every dimension, in the order of [`Dimension`].
pub const DIMENSIONS: [Dimension; 20] = [
    Dimension::ProviderSilent,
    Dimension::ProviderNotAnswering,
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
    Dimension::RootNotAllowed,
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
            Self::RootNotAllowed => "rootNotAllowed",
            Self::Duration => "duration",
            Self::Pause => "pause",
            Self::KeepResults => "keepResultsFor",
            Self::Price => "price",
            Self::NodesFree => "nodesFree",
        }
    }
}

/// Chain, contract and token: two sides speak of the same currency when these are equal.
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
    pub fn from_wire(wire: &leasehold_crds::market::offer::PaymentIdentity) -> Option<Self> {
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
    /// Whether it answers what it is asked; see [`crate::market::providers::responsiveness::ResponseRecord`].
    pub answers: bool,
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
    /// Whether a session may be root.
    pub root_allowed: bool,
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
            root_allowed: row.root_allowed,
        })
    }
}

/// The share one pool of one provider gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index into the providers.
    pub provider: usize,
    /// Pool.
    pub pool: String,
    /// GPU class.
    pub class: String,
    /// Nodes of the lease here.
    pub nodes: u64,
    /// Price of a GPU-hour.
    pub price: Price,
    /// What a second costs here.
    pub rate: Rate,
}

/// A choice, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The shares, cheapest first; empty when the lease fits nowhere.
    pub choices: Vec<Choice>,
    /// What could be had.
    pub quote: Quote,
    /// Why there is no choice, for a person; empty when there is one.
    pub problem: String,
}

/// At most so many legs has an account.
const LEGS_MAX: usize = 16;
const QUOTED: usize = 10;

/// The dimensions in which a row fails, as a bitmap by [`Dimension`].
fn failures(request: &Request, currency: Currency, provider: &Provider, row: &Candidate) -> u32 {
    let any = |list: &[String], value: &str| list.is_empty() || list.iter().any(|x| x == value);
    let checks = [
        (Dimension::ProviderSilent, provider.alive),
        (Dimension::ProviderNotAnswering, provider.answers),
        (Dimension::Provider, any(&request.providers, &provider.name)),
        (Dimension::Region, any(&request.regions, &provider.region)),
        (Dimension::Payment, row.currency == currency),
        (Dimension::Class, any(&request.classes, &row.class)),
        (Dimension::GpuMemory, request.gpu_memory <= row.gpu_memory),
        (
            Dimension::ComputeCapability,
            request.compute_capability <= row.compute_capability,
        ),
        (Dimension::Cuda, request.cuda <= row.cuda),
        (Dimension::Gpus, request.shape.gpus <= row.room.gpus),
        (Dimension::Cpu, request.shape.millicores <= row.room.millicores),
        (Dimension::Memory, request.shape.memory <= row.room.memory),
        (
            Dimension::EphemeralStorage,
            request.shape.scratch <= row.room.scratch,
        ),
        (Dimension::Storage, request.storage <= row.storage),
        (Dimension::RootNotAllowed, !request.root || row.root_allowed),
        (Dimension::Duration, request.term_seconds <= row.max_term),
        (Dimension::Pause, request.pause_seconds <= row.max_pause),
        (
            Dimension::KeepResults,
            request.keep_results_seconds <= row.max_keep_results,
        ),
        (Dimension::Price, row.price <= request.price_cap),
        (Dimension::NodesFree, row.nodes_free > 0),
    ];
    checks
        .iter()
        .filter(|(_, fits)| !fits)
        .fold(0, |map, (d, _)| map | 1 << *d as u8)
}

fn explain(request: &Request, provider: &Provider, row: &Candidate, d: Dimension) -> FailedDimension {
    let list = |l: &[String]| l.join(", ");
    let (wanted, found) = match d {
        Dimension::ProviderSilent => ("a provider heard of in the last minute".into(), "silent".into()),
        Dimension::ProviderNotAnswering => (
            "a provider that answers".into(),
            "let its last questions lapse".into(),
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
        Dimension::Gpus => (request.shape.gpus.to_string(), row.room.gpus.to_string()),
        Dimension::Cpu => (
            quantity::millicores_text(request.shape.millicores),
            quantity::millicores_text(row.room.millicores),
        ),
        Dimension::Memory => (
            quantity::bytes_text(request.shape.memory),
            quantity::bytes_text(row.room.memory),
        ),
        Dimension::EphemeralStorage => (
            quantity::bytes_text(request.shape.scratch),
            quantity::bytes_text(row.room.scratch),
        ),
        Dimension::Storage => (
            quantity::bytes_text(request.storage),
            quantity::bytes_text(row.storage),
        ),
        Dimension::RootNotAllowed => (
            "root inside a user namespace".into(),
            "nodes without user namespaces".into(),
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

/// Places a request on rows. `decimals` are the token's.
#[must_use]
pub fn place(
    request: &Request,
    currency: Currency,
    decimals: u32,
    providers: &[Provider],
    rows: &[Candidate],
) -> Placement {
    let mut fits: Vec<usize> = Vec::new();
    let mut misses: Vec<(u32, usize)> = Vec::new();
    let mut counts = [0i64; DIMENSIONS.len()];
    for (index, row) in rows.iter().enumerate() {
        let Some(provider) = providers.get(row.provider) else {
            continue;
        };
        let failed = failures(request, currency, provider, row);
        if failed == 0 {
            fits.push(index);
        } else {
            for (dimension, count) in counts.iter_mut().enumerate() {
                *count += i64::from(failed >> dimension & 1);
            }
            misses.push((failed, index));
        }
    }
    fits.sort_unstable_by_key(|&i| (rows[i].price, rows[i].provider, i));
    let nearest = misses.len().min(QUOTED);
    if misses.len() > QUOTED {
        misses.select_nth_unstable_by_key(QUOTED - 1, |&(failed, i)| (failed.count_ones(), rows[i].price, i));
    }
    misses.truncate(nearest);
    misses.sort_unstable_by_key(|&(failed, i)| (failed.count_ones(), rows[i].price, i));

    let quote = Quote {
        considered: i64::try_from(rows.len()).unwrap_or(i64::MAX),
        offers: fits
            .iter()
            .take(QUOTED)
            .map(|&i| quoted(providers, &rows[i]))
            .collect(),
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
            .filter(|(_, n)| *n > 0)
            .map(|(d, rows)| DimensionCount {
                dimension: d.as_str().into(),
                rows,
            })
            .collect(),
    };
    match choose(request, decimals, rows, &fits) {
        Ok(choices) => Placement {
            choices,
            quote,
            problem: String::new(),
        },
        Err(problem) => {
            let problem = if fits.is_empty() {
                nothing_fits(&quote)
            } else {
                problem
            };
            Placement {
                choices: Vec::new(),
                quote,
                problem,
            }
        }
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

fn nothing_fits(quote: &Quote) -> String {
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
        "none of {} offered rows fits: {} (status.quote.misses has the nearest)",
        quote.considered,
        parts.join(", ")
    )
}

/// Takes nodes from the cheapest rows, all or nothing.
fn choose(
    request: &Request,
    decimals: u32,
    rows: &[Candidate],
    fits: &[usize],
) -> Result<Vec<Choice>, String> {
    // One share per provider and pool; rows of equal pool and class are the same share.
    let mut shares: Vec<(usize, u64)> = Vec::new();
    let mut seen: BTreeMap<(usize, &str, &str), usize> = BTreeMap::new();
    for &i in fits {
        let row = &rows[i];
        let at = *seen
            .entry((row.provider, &row.pool, &row.class))
            .or_insert_with(|| {
                shares.push((i, 0));
                shares.len() - 1
            });
        shares[at].1 += row.nodes_free;
    }
    let free: u64 = shares.iter().map(|s| s.1).sum();
    let taken: Vec<(usize, u64)> = match request.spread {
        Spread::Any => take(&shares, request.nodes, u64::MAX),
        Spread::SameProvider => shares
            .iter()
            .find(|s| s.1 >= request.nodes)
            .map(|s| vec![(s.0, request.nodes)])
            .unwrap_or_default(),
        Spread::DistinctProviders => {
            let mut first: Vec<(usize, u64)> = Vec::new();
            for share in shares.iter().filter(|s| s.1 > 0) {
                if !first.iter().any(|f| rows[f.0].provider == rows[share.0].provider) {
                    first.push(*share);
                }
            }
            take(&first, request.nodes, 1)
        }
    };
    if taken.iter().map(|t| t.1).sum::<u64>() < request.nodes {
        return Err(match request.spread {
            Spread::Any => format!("{} nodes fit, {} are wanted", free, request.nodes),
            Spread::SameProvider => format!(
                "{free} nodes fit, but no provider has {} of them in one pool",
                request.nodes
            ),
            Spread::DistinctProviders => {
                format!("fewer than {} providers have a node that fits", request.nodes)
            }
        });
    }
    if taken.len() > LEGS_MAX {
        return Err(format!(
            "it would take {} providers, an account pays at most {LEGS_MAX}",
            taken.len()
        ));
    }
    taken
        .into_iter()
        .map(|(i, nodes)| {
            let row = &rows[i];
            let rate = row
                .price
                .rate_floor(nodes * request.shape.gpus, decimals)
                .filter(|r| r.0 > 0);
            let rate = rate.ok_or_else(|| format!("the price {} is out of range", row.price))?;
            let (pool, class) = (row.pool.clone(), row.class.clone());
            Ok(Choice {
                provider: row.provider,
                pool,
                class,
                nodes,
                price: row.price,
                rate,
            })
        })
        .collect()
}

fn take(shares: &[(usize, u64)], mut wanted: u64, each_at_most: u64) -> Vec<(usize, u64)> {
    let mut taken = Vec::new();
    for &(i, free) in shares {
        let n = free.min(wanted).min(each_at_most);
        if n > 0 {
            taken.push((i, n));
            wanted -= n;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn request() -> Request {
        Request {
            nodes: 1,
            shape: Shape {
                gpus: 4,
                millicores: 32_000,
                memory: 128 << 30,
                scratch: 0,
            },
            classes: vec![],
            gpu_memory: 0,
            compute_capability: Version(0, 0),
            cuda: Version(0, 0),
            regions: vec![],
            providers: vec![],
            spread: Spread::Any,
            term_seconds: 7200,
            storage: 0,
            root: false,
            price_cap: Price::parse("2").unwrap(),
            pause_seconds: 0,
            keep_results_seconds: 0,
            top_up: None,
        }
    }

    const CURRENCY: Currency = Currency {
        chain_id: 1,
        escrow: Address([1; 20]),
        token: Address([2; 20]),
    };

    fn provider(name: &str) -> Provider {
        Provider {
            name: name.into(),
            region: "eu-west".into(),
            payee: Address([3; 20]),
            controller: Address([4; 20]),
            alive: true,
            answers: true,
        }
    }

    fn row(provider: usize, price: &str, nodes_free: u64) -> Candidate {
        Candidate {
            provider,
            pool: "pool".into(),
            class: "h100-80g-sxm".into(),
            nodes_free,
            room: Shape {
                gpus: 4,
                millicores: 32_000,
                memory: 128 << 30,
                scratch: 0,
            },
            storage: 0,
            gpu_memory: 80_000_000_000,
            compute_capability: Version(9, 0),
            cuda: Version(12, 4),
            price: Price::parse(price).unwrap(),
            currency: CURRENCY,
            max_term: 86_400,
            max_pause: 0,
            max_keep_results: 0,
            root_allowed: false,
        }
    }

    #[test]
    fn takes_the_cheapest_nodes_all_or_nothing() {
        let providers = [provider("a"), provider("b"), provider("c")];
        let rows = [row(0, "1.9", 1), row(1, "1.1", 1), row(2, "1.5", 1)];
        let mut wish = request();
        wish.nodes = 2;
        let placed = place(&wish, CURRENCY, 6, &providers, &rows);
        assert_eq!(
            placed.choices.iter().map(|c| c.provider).collect::<Vec<_>>(),
            [1, 2]
        );
        wish.nodes = 4;
        let placed = place(&wish, CURRENCY, 6, &providers, &rows);
        assert!(placed.choices.is_empty());
        assert_eq!(placed.problem, "3 nodes fit, 4 are wanted");
    }

    #[test]
    fn spread_is_kept() {
        let providers = [provider("a"), provider("b")];
        let rows = [row(0, "1.1", 2), row(1, "1.5", 3)];
        let mut wish = request();
        wish.nodes = 3;
        wish.spread = Spread::SameProvider;
        assert_eq!(
            place(&wish, CURRENCY, 6, &providers, &rows).choices[0].provider,
            1
        );
        wish.nodes = 2;
        wish.spread = Spread::DistinctProviders;
        let placed = place(&wish, CURRENCY, 6, &providers, &rows);
        assert_eq!(
            placed
                .choices
                .iter()
                .map(|c| (c.provider, c.nodes))
                .collect::<Vec<_>>(),
            [(0, 1), (1, 1)]
        );
    }

    #[test]
    fn every_failed_dimension_is_named_with_what_was_wanted_and_found() {
        let mut silent = provider("a");
        (silent.alive, silent.answers) = (false, false);
        let providers = [silent];
        let mut wish = request();
        wish.shape.gpus = 8;
        wish.root = true;
        wish.classes = vec!["t4-16g".into()];
        wish.price_cap = Price::parse("0.5").unwrap();
        wish.compute_capability = Version(10, 0);
        wish.keep_results_seconds = 1;
        let placed = place(&wish, CURRENCY, 6, &providers, &[row(0, "1.1", 1)]);
        let failed: Vec<_> = placed.quote.misses[0]
            .failed
            .iter()
            .map(|f| f.dimension.as_str())
            .collect();
        assert_eq!(
            failed,
            [
                "providerSilent",
                "providerNotAnswering",
                "class",
                "computeCapability",
                "gpus",
                "rootNotAllowed",
                "keepResultsFor",
                "price"
            ]
        );
        assert_eq!(placed.quote.misses[0].failed[3].wanted, "10.0");
        assert_eq!(placed.quote.counts.len(), 8);
        assert!(
            placed.problem.starts_with("none of 1 offered rows fits"),
            "{}",
            placed.problem
        );
    }

    #[test]
    fn dimensions_are_numbered_as_listed() {
        for (i, d) in DIMENSIONS.iter().enumerate() {
            assert_eq!(*d as usize, i);
        }
    }
}
