//! Throughput of one stream and of 16, and the CPU time of what is between: through the tunnel, through frp, and by a NodePort.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use leasehold_e2e::{Split, Watched};

use super::{
    frp::Frp,
    scene::{Scene, Ways},
    way::blocking,
};
use crate::report::{Report, quantile};

const MEBIBYTE: usize = 1 << 20;
/// Mebibytes of the transfers by each way before the first that counts.
const WARM_UP: usize = 32;

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Download,
    Upload,
}

impl Direction {
    const ALL: &[Self] = &[Self::Download, Self::Upload];

    const fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }
}

/// One way to the pod, what is between, and what was measured.
struct Line<'a> {
    name: &'static str,
    ways: &'a Ways,
    directions: &'static [Direction],
    processes: Vec<Watched>,
    cpu: Duration,
    gibibytes: f64,
}

impl<'a> Line<'a> {
    const fn new(
        name: &'static str,
        ways: &'a Ways,
        directions: &'static [Direction],
        processes: Vec<Watched>,
    ) -> Self {
        Self {
            name,
            ways,
            directions,
            processes,
            cpu: Duration::ZERO,
            gibibytes: 0.0,
        }
    }

    /// The rate of a transfer in MB/s, with the CPU time that it took.
    async fn measure(
        &mut self,
        direction: Direction,
        streams: usize,
        mebibytes: usize,
    ) -> anyhow::Result<f64> {
        let before = self.cpu_so_far()?;
        let rate = transfer(self.ways, direction, streams, mebibytes).await?;
        self.cpu += self.cpu_so_far()?.saturating_sub(before);
        self.gibibytes += u32::try_from(mebibytes).map(f64::from)? / 1024.0;
        Ok(rate)
    }

    fn cpu_so_far(&self) -> anyhow::Result<Duration> {
        self.processes.iter().map(|process| process.cpu()).sum()
    }

    fn cpu_per_gibibyte(&self) -> f64 {
        self.cpu.as_secs_f64() / self.gibibytes
    }
}

pub(crate) async fn run(
    report: &Report,
    split: &Split,
    scene: &Scene<'_>,
    (runs, mebibytes): (usize, usize),
) -> anyhow::Result<()> {
    let frp = Frp::start(split, scene).await?;
    let processes = scene.processes().await?.concat();
    let mut lines = [
        Line::new("tunnel", &scene.tunnel, Direction::ALL, processes),
        // The end of one direction ends both there, so that the end of an upload can't be confirmed.
        Line::new("frp", &frp.ways, &[Direction::Download], frp.processes()),
        Line::new("nodeport", &scene.direct, Direction::ALL, Vec::new()),
    ];
    for streams in [1, 16] {
        // Of the tunnel to each other way, all directions together.
        let mut ratios = [Vec::new(), Vec::new()];
        for &direction in Direction::ALL {
            for line in lines.iter().filter(|line| line.directions.contains(&direction)) {
                transfer(line.ways, direction, streams, WARM_UP).await?;
            }
            let mut rates: [Vec<f64>; 3] = Default::default();
            for _ in 0..runs {
                // In turn, so that other load meets all of them.
                for (line, rates) in lines.iter_mut().zip(&mut rates) {
                    if !line.directions.contains(&direction) {
                        continue;
                    }
                    rates.push(line.measure(direction, streams, mebibytes).await?);
                }
            }
            let [tunnel, others @ ..] = &rates;
            for (ratios, other) in ratios.iter_mut().zip(others) {
                ratios.extend(tunnel.iter().zip(other).map(|(tunnel, other)| tunnel / other));
            }
            let direction = direction.name();
            for (line, rates) in lines.iter().zip(rates) {
                let metric = format!("reach.throughput_{}.{streams}.{direction}", line.name);
                report.quantiles(&metric, rates, "MB/s", &[("p50", 50)]);
            }
        }
        for (line, mut ratios) in lines[1..].iter().zip(ratios) {
            ratios.sort_by(f64::total_cmp);
            let metric = format!("reach.throughput_ratio_{}.{streams}", line.name);
            report.line(&metric, quantile(&ratios, 50), "", ratios.len());
        }
    }
    let [tunnel, other, _] = &lines;
    let n = |line: &Line<'_>| runs * 2 * line.directions.len();
    report.line("reach.cpu_per_gib", tunnel.cpu_per_gibibyte(), "s", n(tunnel));
    report.line("reach.cpu_per_gib_frp", other.cpu_per_gibibyte(), "s", n(other));
    report.line(
        "reach.cpu_per_gib_ratio_frp",
        tunnel.cpu_per_gibibyte() / other.cpu_per_gibibyte(),
        "",
        n(other),
    );
    Ok(())
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
