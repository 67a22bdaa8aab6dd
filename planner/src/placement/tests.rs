//! Matching: the cheapest nodes that fit, all or nothing, and what a quote explains.

use leasehold_crds::{
    lease::Spread, payment::money::Price, provider::pool::Exposure, shared::architecture::Architecture,
};

use super::*;
use crate::{
    escrow::Address,
    request::{PerGpu, Shape, Version},
};

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
        excluded_providers: vec![],
        spread: Spread::Any,
        term_seconds: 7200,
        storage: 0,
        root: false,
        exposes: false,
        architectures: vec![Architecture::Amd64],
        start_within_seconds: 900,
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
        starts: true,
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
        max_per_gpu: PerGpu {
            millicores: 8_000,
            memory: 32 << 30,
            scratch: 1 << 30,
            storage: 1 << 40,
        },
        architecture: Some(Architecture::Amd64),
        max_start_within: 3_600,
        root_allowed: false,
        exposure: Exposure::NodePort,
    }
}

#[test]
fn takes_the_cheapest_nodes_all_or_nothing() {
    let providers = [provider("a"), provider("b"), provider("c")];
    let rows = [row(0, "1.9", 1), row(1, "1.1", 1), row(2, "1.5", 1)];
    let mut request = request();
    request.nodes = 2;
    let placed = place(&request, CURRENCY, 6, None, &providers, &rows);
    assert_eq!(
        placed.choices.iter().map(|c| c.provider).collect::<Vec<_>>(),
        [1, 2]
    );
    request.nodes = 4;
    let placed = place(&request, CURRENCY, 6, None, &providers, &rows);
    assert!(placed.choices.is_empty());
    assert_eq!(placed.problem, "3 nodes fit, 4 are wanted");
}

#[test]
fn spread_is_kept() {
    let providers = [provider("a"), provider("b")];
    let rows = [row(0, "1.1", 2), row(1, "1.5", 3)];
    let mut request = request();
    request.nodes = 3;
    request.spread = Spread::SameProvider;
    assert_eq!(
        place(&request, CURRENCY, 6, None, &providers, &rows).choices[0].provider,
        1
    );
    request.nodes = 2;
    request.spread = Spread::DistinctProviders;
    let placed = place(&request, CURRENCY, 6, None, &providers, &rows);
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
    (silent.alive, silent.answers, silent.starts) = (false, false, false);
    let providers = [silent];
    let mut request = request();
    request.shape.gpus = 8;
    request.root = true;
    request.classes = vec!["t4-16g".into()];
    request.price_cap = Price::parse("0.5").unwrap();
    request.compute_capability = Version(10, 0);
    request.keep_results_seconds = 1;
    request.excluded_providers = vec!["a".into()];
    let placed = place(&request, CURRENCY, 6, None, &providers, &[row(0, "1.1", 1)]);
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
            "providerNotStarting",
            "providerExcluded",
            "class",
            "computeCapability",
            "gpus",
            "rootNotAllowed",
            "keepResultsFor",
            "price"
        ]
    );
    assert_eq!(placed.quote.misses[0].failed[5].wanted, "10.0");
    assert_eq!(placed.quote.counts.len(), 10);
    assert!(
        placed.problem.starts_with("none of 1 offered rows fits"),
        "{}",
        placed.problem
    );
}

#[test]
fn what_a_lease_asks_with_each_gpu_its_architecture_and_its_start_are_dimensions() {
    let providers = [provider("a")];
    let failed = |change: fn(&mut Request), row: &Candidate| {
        let mut request = request();
        change(&mut request);
        let placed = place(&request, CURRENCY, 6, None, &providers, std::slice::from_ref(row));
        let failed = placed.quote.misses.into_iter().flat_map(|miss| miss.failed);
        failed
            .map(|f| (f.dimension, f.wanted, f.found))
            .collect::<Vec<_>>()
    };
    let text = |list: &[(&str, &str, &str)]| {
        let own = |(a, b, c): &(&str, &str, &str)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned());
        list.iter().map(own).collect::<Vec<_>>()
    };
    let mut row = row(0, "1.1", 1);
    row.room.scratch = 1 << 40;
    row.storage = 1 << 50;
    assert_eq!(failed(|_| (), &row), []);
    assert_eq!(
        failed(|r| r.shape.gpus = 1, &row),
        text(&[
            ("cpuPerGpu", "32", "at most 8 with each GPU"),
            ("memoryPerGpu", "128Gi", "at most 32Gi with each GPU"),
        ])
    );
    assert_eq!(
        failed(|r| (r.shape.scratch, r.storage) = (5 << 30, 5 << 40), &row),
        text(&[
            ("ephemeralStoragePerGpu", "5Gi", "at most 1Gi with each GPU"),
            ("storagePerGpu", "5Ti", "at most 1Ti with each GPU"),
        ])
    );
    assert_eq!(
        failed(|r| r.architectures = vec![Architecture::Arm64], &row),
        text(&[("architecture", "arm64", "amd64")])
    );
    assert_eq!(failed(|r| r.architectures.clear(), &row), []);
    assert_eq!(
        failed(|r| r.start_within_seconds = 7_200, &row),
        text(&[("startWithin", "2h", "1h")])
    );
    row.architecture = None;
    assert_eq!(
        failed(|_| (), &row),
        text(&[("architecture", "amd64", "unknown")])
    );
}

#[test]
fn a_tunnel_is_reached_through_a_gateway_alone() {
    let gateway = GatewayAddress {
        domain: "leases.example.org".into(),
        port: 443,
    };
    let fits = |exposure, exposes, gateway| {
        let row = Candidate {
            exposure,
            ..row(0, "1.1", 1)
        };
        let request = Request { exposes, ..request() };
        place(&request, CURRENCY, 6, gateway, &[provider("a")], &[row])
    };
    let placed = fits(Exposure::Tunnel, true, None);
    assert!(placed.choices.is_empty());
    let failed = &placed.quote.misses[0].failed;
    let failed: Vec<_> = failed
        .iter()
        .map(|f| (f.dimension.as_str(), f.wanted.as_str(), f.found.as_str()))
        .collect();
    let wanted = "NodePort or LoadBalancer, because this market has no gateway";
    assert_eq!(failed, [("exposure", wanted, "Tunnel")]);
    for (exposure, exposes, gateway) in [
        (Exposure::Tunnel, true, Some(&gateway)),
        (Exposure::Tunnel, false, None),
        (Exposure::NodePort, true, None),
        (Exposure::NodePort, true, Some(&gateway)),
        (Exposure::LoadBalancer, true, None),
    ] {
        assert_eq!(fits(exposure, exposes, gateway).choices.len(), 1, "{exposure:?}");
    }
}

#[test]
fn dimensions_are_numbered_as_listed() {
    for (i, d) in DIMENSIONS.iter().enumerate() {
        assert_eq!(*d as usize, i);
    }
}
