//! The choice among rows that match: the cheapest nodes, all or nothing.

use std::collections::BTreeMap;

use leasehold_crds::{
    lease::Spread,
    payment::money::{Price, Rate},
};

use super::candidate::Candidate;
use crate::request::Request;

/// Largest number of legs of an account.
const LEGS_MAX: usize = 16;

/// One leg of the lease: nodes of one pool of one provider.
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

/// Why the rows that match do not make a lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Shortage {
    /// Too few nodes.
    #[error("{free} nodes fit, {wanted} are wanted")]
    Nodes {
        /// Nodes that match.
        free: u64,
        /// Nodes of the lease.
        wanted: u64,
    },
    /// Too few nodes in any one pool.
    #[error("{free} nodes fit, but no provider has {wanted} of them in one pool")]
    NodesOfOneProvider {
        /// Nodes that match.
        free: u64,
        /// Nodes of the lease.
        wanted: u64,
    },
    /// Too few providers with a node.
    #[error("fewer than {wanted} providers have a node that fits")]
    Providers {
        /// Nodes of the lease.
        wanted: u64,
    },
    /// More providers than an account has legs.
    #[error("it would take {providers} providers, an account pays at most {LEGS_MAX}")]
    Legs {
        /// Providers that would be needed.
        providers: usize,
    },
    /// A price beyond the range of the calculation.
    #[error("the price {0} is out of range")]
    Price(Price),
}

/// Takes nodes from the cheapest rows, all or nothing.
pub(super) fn choose(
    request: &Request,
    decimals: u32,
    rows: &[Candidate],
    fits: &[usize],
) -> Result<Vec<Choice>, Shortage> {
    // One leg per provider, pool and class: their rows are added up.
    let mut legs: Vec<(usize, u64)> = Vec::new();
    let mut seen: BTreeMap<(usize, &str, &str), usize> = BTreeMap::new();
    for &i in fits {
        let row = &rows[i];
        let at = *seen
            .entry((row.provider, &row.pool, &row.class))
            .or_insert_with(|| {
                legs.push((i, 0));
                legs.len() - 1
            });
        legs[at].1 += row.nodes_free;
    }
    let free: u64 = legs.iter().map(|s| s.1).sum();
    let taken: Vec<(usize, u64)> = match request.spread {
        Spread::Any => take(&legs, request.nodes, u64::MAX),
        Spread::SameProvider => legs
            .iter()
            .find(|s| s.1 >= request.nodes)
            .map(|s| vec![(s.0, request.nodes)])
            .unwrap_or_default(),
        Spread::DistinctProviders => {
            let mut first: Vec<(usize, u64)> = Vec::new();
            for leg in legs.iter().filter(|s| s.1 > 0) {
                if !first.iter().any(|f| rows[f.0].provider == rows[leg.0].provider) {
                    first.push(*leg);
                }
            }
            take(&first, request.nodes, 1)
        }
    };
    let wanted = request.nodes;
    if taken.iter().map(|t| t.1).sum::<u64>() < wanted {
        return Err(match request.spread {
            Spread::Any => Shortage::Nodes { free, wanted },
            Spread::SameProvider => Shortage::NodesOfOneProvider { free, wanted },
            Spread::DistinctProviders => Shortage::Providers { wanted },
        });
    }
    if taken.len() > LEGS_MAX {
        let providers = taken.len();
        return Err(Shortage::Legs { providers });
    }
    taken
        .into_iter()
        .map(|(i, nodes)| {
            let row = &rows[i];
            let rate = row
                .price
                .rate_floor(nodes * request.shape.gpus, decimals)
                .filter(|r| r.0 > 0);
            let rate = rate.ok_or(Shortage::Price(row.price))?;
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

/// Takes nodes in the order of the legs, at most so many of each.
fn take(legs: &[(usize, u64)], mut wanted: u64, each_at_most: u64) -> Vec<(usize, u64)> {
    let mut taken = Vec::new();
    for &(i, free) in legs {
        let n = free.min(wanted).min(each_at_most);
        if n > 0 {
            taken.push((i, n));
            wanted -= n;
        }
    }
    taken
}
