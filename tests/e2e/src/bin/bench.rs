//! Speed, measured: `cargo xtask bench NAME --json` prints a line a metric. Nothing here fails on time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use leasehold_crds::{
    GpuLease,
    lease::{Phase, Spread},
    money::Price,
};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, Tenant, within};
use leasehold_planner::{
    escrow::Address,
    placement::{Candidate, Money, Provider, place},
    request::{Request, Shape, Version},
};
use leasehold_testcluster::Stderr;
use serde_json::json;

#[derive(Parser)]
#[command(name = "bench", about = "Measures, and prints a line a metric")]
struct Flags {
    #[command(subcommand)]
    bench: Bench,
    /// One JSON object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// One lease against 10,000 offered rows
    Match,
    /// Leases on a real node from apply to Active and from deletion to the refund
    Lease {
        /// How many, in lanes of ten at a time
        #[arg(long, default_value_t = 30)]
        leases: usize,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let report = Report { json: flags.json };
    match flags.bench {
        Bench::Match => matching(&report),
        Bench::Lease { leases } => lease(&report, leases).await?,
    }
    Ok(())
}

struct Report {
    json: bool,
}

impl Report {
    fn line(&self, metric: &str, value: f64, unit: &str, n: usize) {
        if self.json {
            println!(
                "{}",
                json!({"metric": metric, "value": value, "unit": unit, "n": n})
            );
        } else {
            println!("{metric:<36} {value:>10.3} {unit:<6} n={n}");
        }
    }

    fn quantiles(&self, metric: &str, mut values: Vec<f64>, unit: &str, wanted: &[(&str, usize)]) {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        for (name, percent) in wanted {
            let index = (n * percent).div_ceil(100).clamp(1, n) - 1;
            self.line(&format!("{metric}.{name}"), values[index], unit, n);
        }
    }
}

/// Rows that differ in room, price, region and class; a request that a third of them fits.
fn matching(report: &Report) {
    const ROWS: usize = 10_000;
    const PASSES: usize = 1_000;
    let money = Money {
        chain_id: 1,
        escrow: Address([1; 20]),
        token: Address([2; 20]),
    };
    let providers: Vec<Provider> = (0..200)
        .map(|i| Provider {
            name: format!("provider-{i}"),
            region: ["eu-west", "us-east", "ap-south"][i % 3].into(),
            payee: Address([3; 20]),
            controller: Address([4; 20]),
            alive: i % 17 != 0,
        })
        .collect();
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
            money,
            max_term: 1 << 30,
            max_pause: 0,
            root_allowed: true,
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
        spread: Spread::DistinctProviders,
        term_seconds: 7200,
        storage: 0,
        root: false,
        price_cap: Price(1_900_000_000_000_000_000),
        pause_seconds: 0,
        top_up: None,
    };
    let took: Vec<f64> = (0..PASSES)
        .map(|_| {
            let begun = Instant::now();
            let placed = place(&request, money, 6, &providers, &rows);
            let took = begun.elapsed();
            assert_eq!(placed.choices.len(), 3, "it is placed");
            took.as_secs_f64() * 1e3
        })
        .collect();
    report.quantiles("match.offers_10000", took, "ms", &[("p50", 50), ("p99", 99)]);
}

/// One lease of one GPU.
fn wish(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<GpuLease> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "node": {"cpu": "20m", "memory": "32Mi", "ephemeralStorage": "20Mi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"session": {
                "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "sh", "-c"],
                "args": ["trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"],
            }},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    }))?)
}

async fn lease(report: &Report, leases: usize) -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("bench-lease");
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 16)]);
    let stack = Stack::up(spec, &Stderr::default()).await?;
    let measured = lives(&stack, leases).await;
    stack.down().await?;
    let lives = measured?;
    let active = lives.iter().map(|l| l.active).collect();
    report.quantiles("lease.apply_to_active", active, "s", &[("p50", 50), ("max", 100)]);
    let refund = lives.iter().map(|l| l.refund).collect();
    report.quantiles(
        "lease.delete_to_refund",
        refund,
        "s",
        &[("p50", 50), ("max", 100)],
    );
    let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (phase, seconds) in lives.iter().flat_map(|l| &l.phases) {
        phases.entry(phase.clone()).or_default().push(*seconds);
    }
    for (phase, seconds) in phases {
        report.quantiles(&format!("lease.phase.{phase}"), seconds, "s", &[("p50", 50)]);
    }
    Ok(())
}

/// One lease's times in seconds.
struct Life {
    active: f64,
    refund: f64,
    /// How long each phase was seen.
    phases: Vec<(String, f64)>,
}

async fn lives(stack: &Stack, leases: usize) -> anyhow::Result<Vec<Life>> {
    let tenant = Tenant::new(stack, "bench")?;
    let mut all = Vec::new();
    // One after the other: what is measured is a lease's own way, not a queue.
    for index in 0..leases {
        all.push(
            life(&tenant, &format!("bench-{index}"))
                .await
                .with_context(|| format!("lease {index}"))?,
        );
    }
    Ok(all)
}

async fn life(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<Life> {
    let api = tenant.leases();
    let begun = Instant::now();
    tenant.apply(&wish(tenant, name)?)?;
    let mut phases: Vec<(Phase, Instant)> = vec![(Phase::Pending, begun)];
    loop {
        let phase = api.get(name).await?.status.unwrap_or_default().phase;
        if phases.last().is_none_or(|(last, _)| *last != phase) {
            phases.push((phase, Instant::now()));
        }
        if phase == Phase::Active {
            break;
        }
        anyhow::ensure!(
            begun.elapsed() < Duration::from_secs(120),
            "{phase:?} after two minutes"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let active = begun.elapsed().as_secs_f64();
    let lease = api.get(name).await?;
    let deleted = Instant::now();
    tenant.delete(name).await?;
    within(Duration::from_secs(60), "the refund", || async {
        let (_, account) = tenant.account(&lease).await?;
        Ok(if account.closed { Ok(()) } else { Err("open") })
    })
    .await?;
    let refund = deleted.elapsed().as_secs_f64();
    tenant.until_gone(name, Duration::from_secs(60)).await?;
    let spans = phases
        .windows(2)
        .map(|w| {
            (
                format!("{:?}", w[0].0).to_lowercase(),
                (w[1].1 - w[0].1).as_secs_f64(),
            )
        })
        .collect();
    Ok(Life {
        active,
        refund,
        phases: spans,
    })
}
