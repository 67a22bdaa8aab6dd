//! What the tunnel costs: one lease behind the gateway, and beside it the same pod by a NodePort of the provider's node and through
//! frp.

mod frp;
mod idle;
mod kills;
mod pause;
mod replicas;
mod rtt;
mod scene;
mod throughput;
mod transfers;
mod way;

use leasehold_e2e::{GatewayFixture, Split, SplitSpec};
use leasehold_testcluster::Stderr;

use self::scene::Scene;
use crate::report::Report;

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Round trips by each way
    #[arg(long, default_value_t = 2_000)]
    samples: usize,
    /// Mebibytes of each transfer of the throughput
    #[arg(long, default_value_t = 256)]
    mebibytes: usize,
    /// Transfers by each way, in each direction and with each number of streams
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Idle streams
    #[arg(long, default_value_t = 10_000)]
    idle_streams: usize,
    /// Kills of the gateway and of the connector
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// A part of the benchmark.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Round trip of one byte
    Rtt,
    /// Throughput and CPU time with one stream and with 16, beside frp
    Throughput,
    /// Throughput of other streams while the reader of one pauses
    Pause,
    /// Time of a download and of an upload of one GiB
    Transfers,
    /// Memory of idle streams
    Idle,
    /// Time until new streams open after a replica was killed
    Kills,
}

impl Part {
    /// In the order in which they run: memory that was used once is not returned, and new processes follow the kills.
    const ALL: [Self; 6] = [
        Self::Idle,
        Self::Rtt,
        Self::Throughput,
        Self::Pause,
        Self::Transfers,
        Self::Kills,
    ];
}

/// Measures the parts that the flags name.
pub(crate) async fn run(report: &Report, flags: &Flags) -> anyhow::Result<()> {
    let gateway = GatewayFixture::new()?;
    let spec = SplitSpec {
        // The NodePort leads to the pod without the connector.
        enforces_network_policies: false,
        optimized: vec!["operator", "gateway", "web"],
        // The tunnel itself is measured, and not the limits of a lease.
        tunnel_args: [
            "--streams-per-lease=16000",
            "--new-streams-per-lease=16000",
            "--bytes-per-lease=4000000000",
        ]
        .map(String::from)
        .into(),
        ..SplitSpec::with_gateway("bench-reach", &gateway)
    };
    let split = Split::up(spec, &Stderr::default()).await?;
    let measured = measure(report, flags, &split, &gateway).await;
    if measured.is_err() {
        let kept = leasehold_testcluster::cache_root()?
            .join("failed")
            .join("bench-reach");
        split.market.dump(&kept.join("market"));
        drop(split.provider.dump(&kept.join("provider")));
        eprintln!("logs are in {}", kept.display());
    }
    split.down().await?;
    measured
}

async fn measure(
    report: &Report,
    flags: &Flags,
    split: &Split,
    gateway: &GatewayFixture,
) -> anyhow::Result<()> {
    let scene = Scene::set(split, gateway).await?;
    for part in Part::ALL.into_iter().filter(|part| flags.parts.contains(part)) {
        eprintln!("measuring: {part:?}");
        match part {
            Part::Idle => idle::run(report, &scene, flags.idle_streams).await?,
            Part::Rtt => rtt::run(report, &scene, flags.samples).await?,
            Part::Throughput => throughput::run(report, split, &scene, (flags.runs, flags.mebibytes)).await?,
            Part::Pause => pause::run(report, &scene).await?,
            Part::Transfers => transfers::run(report, &scene).await?,
            Part::Kills => kills::run(report, &scene, flags.rounds).await?,
        }
    }
    Ok(())
}
