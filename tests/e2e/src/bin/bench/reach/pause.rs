//! What is left to other streams while the reader of one pauses.

use std::{
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use tokio::time;

use super::{
    scene::Scene,
    way::{Way, blocking},
};
use crate::report::{Report, quantile};

/// Streams that are read all the time.
const OTHERS: usize = 8;
/// Time of one measurement, and how often it is repeated with and without the pause.
const SPAN: Duration = Duration::from_secs(2);
const REPEATED: usize = 7;
/// More than is read.
const BYTES: usize = 1 << 40;

pub(crate) async fn run(report: &Report, scene: &Scene<'_>) -> anyhow::Result<()> {
    let (read, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let others: Vec<_> = (0..OTHERS)
        .map(|_| {
            let (way, read, is_over) = (scene.tunnel.source.clone(), read.clone(), is_over.clone());
            tokio::spawn(blocking(move || read_until(&way, &read, &is_over)))
        })
        .collect();
    // Windows and caches fill.
    time::sleep(SPAN).await;
    let measured = alternate(scene, &read).await;
    is_over.store(true, Ordering::Relaxed);
    try_join_all(others)
        .await?
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut ratios = measured?;
    ratios.sort_by(f64::total_cmp);
    report.line(
        "reach.others_while_one_pauses",
        quantile(&ratios, 50),
        "",
        REPEATED,
    );
    Ok(())
}

/// The throughput of the others while one stream pauses, over that before and after it.
async fn alternate(scene: &Scene<'_>, read: &AtomicU64) -> anyhow::Result<Vec<f64>> {
    let mut ratios = Vec::new();
    let mut before = rate(read).await?;
    for _ in 0..REPEATED {
        let way = scene.tunnel.source.clone();
        let paused = blocking(move || {
            let mut tcp = way.source(BYTES)?;
            tcp.read_exact(&mut vec![0; 1 << 20])?;
            Ok(tcp)
        })
        .await?;
        let with = rate(read).await?;
        drop(paused);
        let after = rate(read).await?;
        ratios.push(2.0 * with / (before + after));
        before = after;
    }
    Ok(ratios)
}

/// Bytes a second.
async fn rate(read: &AtomicU64) -> anyhow::Result<f64> {
    let (begun, at_first) = (Instant::now(), read.load(Ordering::Relaxed));
    time::sleep(SPAN).await;
    let kibibytes = u32::try_from((read.load(Ordering::Relaxed) - at_first) >> 10)?;
    Ok(f64::from(kibibytes) * 1024.0 / begun.elapsed().as_secs_f64())
}

fn read_until(way: &Way, read: &AtomicU64, is_over: &AtomicBool) -> anyhow::Result<()> {
    let (mut tcp, mut chunk) = (way.source(BYTES)?, vec![0; 256 << 10]);
    while !is_over.load(Ordering::Relaxed) {
        let length = tcp.read(&mut chunk)?;
        anyhow::ensure!(length > 0, "a stream ended");
        read.fetch_add(length as u64, Ordering::Relaxed);
    }
    Ok(())
}
