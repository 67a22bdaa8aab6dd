//! Memory of the gateway and of the connector for streams on which nothing moves.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;

use super::{
    scene::{COMPONENTS, Scene},
    way::blocking,
};
use leasehold_e2e::Watched;

use crate::report::Report;

/// Streams that are opened at once.
const AT_ONCE: usize = 32;
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// Time for what the opening of the streams has left behind.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) async fn run(report: &Report, scene: &Scene<'_>, streams: usize) -> anyhow::Result<()> {
    let processes = scene.processes().await?;
    // What the first streams need once is not the memory of a stream.
    drop(open(scene, AT_ONCE).await?);
    tokio::time::sleep(SETTLE).await;
    let before = resident(&processes)?;
    let held = open(scene, streams).await?;
    tokio::time::sleep(SETTLE).await;
    let after = resident(&processes)?;
    let each = 1024.0 / f64::from(u32::try_from(streams)?);
    // All of them were there when the memory was read.
    blocking(move || held.into_iter().try_for_each(exchange)).await?;
    for (index, (component, _)) in COMPONENTS.into_iter().enumerate() {
        report.line(
            &format!("reach.rss_per_idle_stream.{component}"),
            (after[index] - before[index]) * each,
            "KiB",
            streams,
        );
    }
    Ok(())
}

/// Resident memory of the replicas of each component, in MiB.
fn resident(processes: &[Vec<Watched>; 2]) -> anyhow::Result<[f64; 2]> {
    let sum = |processes: &[Watched]| processes.iter().map(|process| process.resident()).sum();
    let sums: [anyhow::Result<f64>; 2] = [sum(&processes[0]), sum(&processes[1])];
    let [gateway, connector] = sums;
    Ok([gateway?, connector?])
}

/// A byte returns on the stream.
fn exchange(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut returned = [0];
    stream.write_all(&[7])?;
    stream.read_exact(&mut returned)?;
    ensure!(returned == [7], "another byte returned");
    Ok(())
}

/// Opens so many streams; over each, bytes have returned.
async fn open(scene: &Scene<'_>, streams: usize) -> anyhow::Result<Vec<TcpStream>> {
    let parts = (0..AT_ONCE).map(|part| {
        let way = scene.tunnel.raw.clone();
        blocking(move || {
            (part..streams)
                .step_by(AT_ONCE)
                .map(|number| way.echo(OPEN_WITHIN).with_context(|| format!("stream {number}")))
                .collect::<anyhow::Result<Vec<_>>>()
        })
    });
    Ok(try_join_all(parts).await?.into_iter().flatten().collect())
}
