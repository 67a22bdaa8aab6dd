//! Matches one lease with many offers: the pure function alone, in this process.

use std::time::Instant;

use leasehold_crds::{lease::Spread, payment::money::Price, shared::architecture::Architecture};
use leasehold_planner::{
    escrow::Address,
    placement::{Candidate, Currency, Provider, place},
    request::{PerGpu, Request, Shape, Version},
};

use crate::report::Report;

/// Rows that differ in capacity, price, region and class, and a request that a third of them satisfies.
pub(crate) fn run(report: &Report) {
    const ROWS: usize = 10_000;
    const PASSES: usize = 1_000;
    let currency = Currency {
        chain_id: 1,
        escrow: Address([1; 20]),
        token: Address([2; 20]),
    };
    let providers = providers();
    let rows: Vec<Candidate> = (0..ROWS)
        .map(|i| Candidate {
            provider: i % providers.len(),
            pool: format!("pool-{}", i % 50),
            class: ["h100-80g-sxm", "a100-80g-pcie", "rtx4090-24g"][i % 3].into(),
            nodes_free: i as u64 % 5,
            room: Shape {
                gpus: i as u64 % 9,
                millicores: 64_000,
                memory: 256 << 30,
                scratch: 1 << 40,
            },
            storage: 1 << 40,
            gpu_memory: 80_000_000_000,
            compute_capability: Version(9, 0),
            cuda: Version(12, 4),
            price: Price(1_000_000_000_000_000_000 + (i as u128 * 7_919 % 1_000) * 1_000_000_000_000_000),
            currency,
            max_term: 1 << 30,
            max_pause: 0,
            max_keep_results: 0,
            max_per_gpu: PerGpu::UNBOUNDED,
            architecture: Some(Architecture::Amd64),
            max_start_within: 3_600,
            root_allowed: true,
            exposure: leasehold_crds::provider::pool::Exposure::NodePort,
        })
        .collect();
    let request = Request {
        nodes: 3,
        shape: Shape {
            gpus: 4,
            millicores: 32_000,
            memory: 128 << 30,
            scratch: 1 << 30,
        },
        classes: vec!["h100-80g-sxm".into(), "a100-80g-pcie".into()],
        gpu_memory: 80_000_000_000,
        compute_capability: Version(8, 0),
        cuda: Version(12, 0),
        regions: vec![],
        providers: vec![],
        excluded_providers: vec![],
        spread: Spread::DistinctProviders,
        term_seconds: 7200,
        storage: 0,
        root: false,
        exposes: true,
        architectures: vec![Architecture::Amd64],
        start_within_seconds: 900,
        price_cap: Price(1_900_000_000_000_000_000),
        pause_seconds: 0,
        keep_results_seconds: 0,
        top_up: None,
    };
    let took: Vec<f64> = (0..PASSES)
        .map(|_| {
            let begun = Instant::now();
            let placed = place(&request, currency, 6, None, &providers, &rows);
            let took = begun.elapsed();
            assert_eq!(placed.choices.len(), 3, "the lease is placed");
            took.as_secs_f64() * 1e3
        })
        .collect();
    report.quantiles("match.offers_10000", took, "ms", &[("p50", 50), ("p99", 99)]);
}

/// Providers of three regions, some of which are silent or let allocations lapse.
fn providers() -> Vec<Provider> {
    (0..200)
        .map(|i| Provider {
            name: format!("provider-{i}"),
            region: ["eu-west", "us-east", "ap-south"][i % 3].into(),
            payee: Address([3; 20]),
            controller: Address([4; 20]),
            alive: i % 17 != 0,
            answers: i % 19 != 0,
            starts: i % 23 != 0,
        })
        .collect()
}
