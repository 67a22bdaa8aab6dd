//! Where a lease can go: every row of every offer against one request, each dimension by name.
//!
//! The same function answers admission, the controller and the command line. Rows are parsed before
//! ([`Candidate::from_wire`]); matching only compares numbers, so that ten thousand rows take under a millisecond.

mod candidate;
mod choose;
mod dimension;
mod explain;

use leasehold_crds::lease::Quote;

pub use self::{
    candidate::{Candidate, Currency, Provider},
    choose::Choice,
    dimension::{DIMENSIONS, Dimension},
};
use self::{
    choose::choose,
    dimension::{provider_failures, row_failures},
};
use crate::{request::Request, urls::GatewayAddress};

/// A choice, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The legs, cheapest first; empty when the lease fits nowhere.
    pub choices: Vec<Choice>,
    /// What could be had.
    pub quote: Quote,
    /// Why there is no choice, for a person; empty when there is one.
    pub problem: String,
}

/// Rows by whether they match: indexes of those that do, cheapest first; those that do not, with the dimensions in which
/// they fail; and how many fail in each dimension.
struct Sorted {
    fits: Vec<usize>,
    misses: Vec<(u32, usize)>,
    counts: [i64; DIMENSIONS.len()],
}

/// Places a request on rows. `decimals` are the token's. `gateway` is that of the market, without which nothing is reached
/// through a tunnel.
#[must_use]
pub fn place(
    request: &Request,
    currency: Currency,
    decimals: u32,
    gateway: Option<&GatewayAddress>,
    providers: &[Provider],
    rows: &[Candidate],
) -> Placement {
    let mut fits: Vec<usize> = Vec::new();
    let mut misses: Vec<(u32, usize)> = Vec::new();
    let mut counts = [0i64; DIMENSIONS.len()];
    let of_providers: Vec<u32> = providers
        .iter()
        .map(|provider| provider_failures(request, provider))
        .collect();
    for (index, row) in rows.iter().enumerate() {
        let Some(of_provider) = of_providers.get(row.provider) else {
            continue;
        };
        let failed = of_provider | row_failures(request, currency, gateway, row);
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
    let mut sorted = Sorted { fits, misses, counts };
    let quote = explain::quote(request, providers, rows, &mut sorted);
    match choose(request, decimals, rows, &sorted.fits) {
        Ok(choices) => Placement {
            choices,
            quote,
            problem: String::new(),
        },
        Err(shortage) => Placement {
            choices: Vec::new(),
            problem: if sorted.fits.is_empty() {
                explain::nothing_fits(&quote)
            } else {
                shortage.to_string()
            },
            quote,
        },
    }
}

#[cfg(test)]
mod tests;
