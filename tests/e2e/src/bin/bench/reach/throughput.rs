//! Throughput of one stream and of 16, and the CPU time of the gateway and the connector.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{
    scene::{Scene, Ways},
    way::blocking,
};
use crate::{
    process::Watched,
    report::{Report, quantile},
};

const MEBIBYTE: usize = 1 << 20;
/// Names of the ways in metrics, that through the tunnel first.
const WAYS: [&str; 2] = ["tunnel", "nodeport"];
/// Mebibytes of the transfers by each way before the first that counts.
const WARM_UP: usize = 32;

/// The direction of a transfer.
#[derive(Clone, Copy)]
enum Direction {
    Download,
    Upload,
}

impl Direction {
    const ALL: [Self; 2] = [Self::Download, Self::Upload];

    const fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }
}

pub(crate) async fn run(
    report: &Report,
    scene: &Scene<'_>,
    runs: usize,
    mebibytes: usize,
) -> anyhow::Result<()> {
    let processes = scene.processes().await?.concat();
    let ways = [&scene.tunnel, &scene.direct];
    let (mut cpu, mut moved) = (Duration::ZERO, 0.0);
    for streams in [1, 16] {
        for direction in Direction::ALL {
            for ways in ways {
                transfer(ways, direction, streams, WARM_UP).await?;
            }
            let mut rates = [Vec::new(), Vec::new()];
            let mut ratios = Vec::new();
            for _ in 0..runs {
                let before = cpu_of(&processes)?;
                let tunnel = transfer(ways[0], direction, streams, mebibytes).await?;
                cpu += cpu_of(&processes)?.saturating_sub(before);
                moved += u32::try_from(mebibytes).map(f64::from)? / 1024.0;
                let direct = transfer(ways[1], direction, streams, mebibytes).await?;
                rates[0].push(tunnel);
                rates[1].push(direct);
                ratios.push(tunnel / direct);
            }
            let direction = direction.name();
            for (name, rates) in WAYS.into_iter().zip(rates) {
                let metric = format!("reach.throughput_{name}.{streams}.{direction}");
                report.quantiles(&metric, rates, "MB/s", &[("p50", 50)]);
            }
            ratios.sort_by(f64::total_cmp);
            let metric = format!("reach.throughput_ratio_nodeport.{streams}.{direction}");
            report.line(&metric, quantile(&ratios, 50), "", runs);
        }
    }
    report.line(
        "reach.cpu_per_gib",
        cpu.as_secs_f64() / moved,
        "s",
        runs * 2 * Direction::ALL.len(),
    );
    Ok(())
}

/// CPU time of all processes.
fn cpu_of(processes: &[Watched]) -> anyhow::Result<Duration> {
    processes.iter().map(|process| process.cpu()).sum()
}

/// Moves so many mebibytes over so many streams at once, and returns the rate in MB/s.
async fn transfer(
    ways: &Ways,
    direction: Direction,
    streams: usize,
    mebibytes: usize,
) -> anyhow::Result<f64> {
    let bytes = mebibytes * MEBIBYTE / streams;
    let begun = Instant::now();
    let transfers: Vec<_> = (0..streams)
        .map(|_| {
            let ways = ways.clone();
            blocking(move || match direction {
                Direction::Download => ways.source.download(bytes),
                Direction::Upload => ways.sink.upload(bytes),
            })
        })
        .collect();
    futures::future::try_join_all(transfers)
        .await
        .with_context(|| format!("{streams} streams, {}", direction.name()))?;
    let megabytes = u32::try_from(bytes * streams / 1000).map(f64::from)? / 1000.0;
    Ok(megabytes / begun.elapsed().as_secs_f64())
}
