//! The lease, the provider and the network of every story. One GPU-hour costs 1.80 USDC, which is a rate of 500 base units
//! per second, and every story begins at 08:00:00.

use jiff::Timestamp;
use leasehold_crds::{GpuLease, GpuPool};
use leasehold_planner::{
    escrow::{Address, Hash, MarketSecret},
    market::lease::Network,
    placement::{Candidate, Currency, Provider},
    ports::{Head, SigningKey},
    provider::{
        allocation::accept::Identity,
        offer::supply::{FreeNode, PoolSupply},
    },
    request::{PerGpu, Shape, Version},
};
use serde_json::json;

/// 2027-01-15T08:00:00Z.
pub(crate) const START: i64 = 1_800_000_000;
/// Decimals of the token.
pub(crate) const DECIMALS: u32 = 6;
pub(crate) const PAYER: Address = Address([0xa1; 20]);
const MARKET: Address = Address([0xa2; 20]);
const CLOSER: Address = Address([0xa3; 20]);
const ESCROW: Address = Address([0xa4; 20]);
const TOKEN: Address = Address([0xa5; 20]);
const PAYEES: [Address; 2] = [Address([0xb1; 20]), Address([0xb2; 20])];
const CONTROLLERS: [Address; 2] = [Address([0xc1; 20]), Address([0xc2; 20])];

/// Names of the addresses in a snapshot.
pub(crate) fn names() -> [(Address, &'static str); 9] {
    [
        (PAYER, "<payer>"),
        (MARKET, "<market>"),
        (CLOSER, "<closer>"),
        (ESCROW, "<escrow>"),
        (TOKEN, "<token>"),
        (PAYEES[0], "<prairie's payee>"),
        (PAYEES[1], "<tundra's payee>"),
        (CONTROLLERS[0], "<prairie's controller>"),
        (CONTROLLERS[1], "<tundra's controller>"),
    ]
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// The newest block at that time.
pub(crate) fn block(second: i64) -> Head {
    Head {
        number: 1,
        hash: Hash::default(),
        time: second.unsigned_abs(),
    }
}

pub(crate) fn currency() -> Currency {
    Currency {
        chain_id: 8453,
        escrow: ESCROW,
        token: TOKEN,
    }
}

pub(crate) fn network() -> Network {
    Network {
        currency: currency(),
        market_id: MARKET,
        closer: CLOSER,
        secret: MarketSecret::of(&SigningKey([0xa6; 32])),
        symbol: "USDC".into(),
        decimals: DECIMALS,
        refusal: None,
    }
}

/// A lease of one GPU for an hour, with a service.
pub(crate) fn lease() -> GpuLease {
    serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1",
        "kind": "GpuLease",
        "metadata": {"name": "chat", "namespace": "team-a", "uid": "8d3c", "generation": 1},
        "spec": {
            "perNode": {"cpu": "4", "memory": "16Gi", "ephemeralStorage": "20Gi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"service": {
                "image": "registry.example/chat:1",
                "ports": [{"name": "http", "port": 8080}],
            }},
            "payment": {
                "network": "base",
                "maxPricePerGpuHour": "2.00",
                "wallet": {"secretName": "wallet"},
            },
        },
    }))
    .unwrap()
}

pub(crate) fn providers() -> Vec<Provider> {
    let names = ["prairie", "tundra"].into_iter().enumerate();
    names
        .map(|(i, name)| Provider {
            name: name.into(),
            region: "eu-west".into(),
            payee: PAYEES[i],
            controller: CONTROLLERS[i],
            alive: true,
            answers: true,
            starts: true,
        })
        .collect()
}

/// Offers of both providers; prairie's is the cheaper one.
pub(crate) fn candidates() -> Vec<Candidate> {
    let prices = ["1.80", "1.90"].into_iter().enumerate();
    prices
        .map(|(provider, price)| Candidate {
            provider,
            pool: "a100".into(),
            class: "a100-80g-pcie".into(),
            nodes_free: 2,
            room: Shape {
                gpus: 4,
                millicores: 32_000,
                memory: 128 << 30,
                scratch: 400 << 30,
            },
            storage: 100 << 30,
            gpu_memory: 80_000_000_000,
            compute_capability: Version(8, 0),
            cuda: Version(12, 8),
            price: leasehold_crds::payment::money::Price::parse(price).unwrap(),
            currency: currency(),
            max_term: 86_400,
            max_pause: 7200,
            max_keep_results: 7200,
            max_per_gpu: PerGpu::UNBOUNDED,
            architecture: Some(leasehold_crds::shared::architecture::Architecture::Amd64),
            max_start_within: 3_600,
            root_allowed: true,
            exposure: leasehold_crds::provider::pool::Exposure::NodePort,
        })
        .collect()
}

/// The provider "prairie".
pub(crate) fn identity() -> Identity {
    Identity {
        market: "default".into(),
        payee: PAYEES[0],
        controller: CONTROLLERS[0],
    }
}

/// Prairie's pool.
pub(crate) fn pool() -> GpuPool {
    serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1",
        "kind": "GpuPool",
        "metadata": {"name": "a100"},
        "spec": {
            "class": "a100-80g-pcie",
            "pricePerGpuHour": "1.80",
            "network": "base",
            "maxDuration": "24h",
            "maxPause": "2h",
            "maxKeepResultsFor": "2h",
            "runtimeClassName": "nvidia",
            "storage": {"className": "fast", "maxSize": "100Gi"},
        },
    }))
    .unwrap()
}

/// What prairie can sell: two nodes.
pub(crate) fn supply() -> PoolSupply {
    let node = |name: &str| FreeNode {
        pods_free: 110,
        name: name.into(),
        room: Shape {
            gpus: 4,
            millicores: 32_000,
            memory: 128 << 30,
            scratch: 400 << 30,
        },
        user_namespaces: true,
        max_per_gpu: PerGpu::UNBOUNDED,
    };
    PoolSupply {
        selling: true,
        overhead: Some(Shape::default()),
        nodes: 2,
        free: vec![node("gpu-1"), node("gpu-2")],
        ..PoolSupply::default()
    }
}
