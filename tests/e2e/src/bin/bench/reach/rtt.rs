//! The time that the tunnel adds to the round trip of one byte.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::{
    scene::Scene,
    way::{Way, blocking},
};
use crate::report::{Report, quantile};

/// Streams by each way, which take turns: they go over different replicas.
const STREAMS: usize = 8;
/// Round trips by each way before the first that counts.
const WARM_UP: usize = 400;
const OPEN_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn run(report: &Report, scene: &Scene<'_>, samples: usize) -> anyhow::Result<()> {
    let ways = [scene.tunnel.raw.clone(), scene.direct.raw.clone()];
    let [tunnel, direct] = blocking(move || alternate(&ways, samples)).await?;
    for (name, percent) in [("p50", 50), ("p99", 99)] {
        let (slow, fast) = (quantile(&tunnel, percent), quantile(&direct, percent));
        report.line(&format!("reach.rtt_tunnel.{name}"), slow, "ms", samples);
        report.line(&format!("reach.rtt_nodeport.{name}"), fast, "ms", samples);
        report.line(&format!("reach.rtt_added.{name}"), slow - fast, "ms", samples);
    }
    Ok(())
}

/// Times of round trips by both ways in turn, in milliseconds and in order of size.
fn alternate(ways: &[Way; 2], samples: usize) -> anyhow::Result<[Vec<f64>; 2]> {
    let open = |way: &Way| -> anyhow::Result<Vec<TcpStream>> {
        (0..STREAMS).map(|_| way.echo(OPEN_WITHIN)).collect()
    };
    let mut streams = [open(&ways[0])?, open(&ways[1])?];
    let mut times = [Vec::with_capacity(samples), Vec::with_capacity(samples)];
    for number in 0..WARM_UP + samples {
        for (way, times) in streams.iter_mut().zip(&mut times) {
            let stream = &mut way[number % STREAMS];
            // Each byte differs from the one before it, or one that came late would be taken for its successor.
            let (sent, mut returned) = ([number.to_le_bytes()[0]], [0]);
            let begun = Instant::now();
            stream.write_all(&sent)?;
            stream.read_exact(&mut returned)?;
            let took = begun.elapsed();
            ensure!(returned == sent, "another byte returned");
            if number >= WARM_UP {
                times.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    Ok(times)
}
