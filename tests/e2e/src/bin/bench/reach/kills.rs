//! How long no new stream opens after a replica was killed.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use tokio::time;

use super::{
    replicas::{all_ready, kill_one},
    scene::{COMPONENTS, Scene},
    way::{Way, blocking},
};
use crate::report::Report;

/// Open streams while something is killed.
const STREAMS: usize = 50;
/// How long new streams are opened after a kill.
const WATCH: Duration = Duration::from_secs(6);
/// After this time an attempt to open a stream is given up, and the next one is made.
const ATTEMPT: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_millis(20);
const READY_WITHIN: Duration = Duration::from_secs(90);

pub(crate) async fn run(report: &Report, scene: &Scene<'_>, rounds: usize) -> anyhow::Result<()> {
    let mut gaps = [Vec::new(), Vec::new()];
    let mut broken = [0, 0];
    for round in 0..rounds {
        for (index, (component, _)) in COMPONENTS.into_iter().enumerate() {
            let (gap, broke) = kill(scene, index)
                .await
                .with_context(|| format!("{component}, round {round}"))?;
            gaps[index].push(gap);
            broken[index] += broke;
        }
    }
    let [gateway, connector] = &gaps;
    let all = [gateway.as_slice(), connector.as_slice()].concat();
    let max: &[(&str, usize)] = &[("max", 100)];
    for (((component, _), gaps), broken) in COMPONENTS.into_iter().zip(gaps).zip(broken) {
        // Without any, the replica did not end while it was watched.
        report.line(
            &format!("reach.broken_by_kills_of_{component}"),
            broken.into(),
            "streams",
            rounds,
        );
        report.quantiles(
            &format!("reach.new_stream_after_kill_of_{component}"),
            gaps,
            "s",
            max,
        );
    }
    report.quantiles("reach.new_stream_after_kill", all, "s", max);
    Ok(())
}

/// Kills one replica under open streams, and returns the longest time in seconds in which no new stream was opened, and how many
/// streams broke.
async fn kill(scene: &Scene<'_>, index: usize) -> anyhow::Result<(f64, u32)> {
    let (client, (component, _)) = (&scene.clients[index], COMPONENTS[index]);
    let opened = (0..STREAMS).map(|_| {
        let way = scene.tunnel.raw.clone();
        blocking(move || way.echo(Duration::from_secs(10)))
    });
    let held = try_join_all(opened).await?;
    let killed = kill_one(client, component).await?;
    let gap = longest_gap(&scene.tunnel.raw, killed).await?;
    let ends = held.into_iter().map(|stream| blocking(move || has_ended(stream)));
    let broken = try_join_all(ends).await?.into_iter().map(u32::from).sum();
    all_ready(client, component, READY_WITHIN).await?;
    Ok((gap.as_secs_f64(), broken))
}

/// Opens one stream after the other.
async fn longest_gap(way: &Way, killed: Instant) -> anyhow::Result<Duration> {
    let (mut longest, mut opened) = (Duration::ZERO, killed);
    while killed.elapsed() < WATCH || opened == killed {
        let attempt = way.clone();
        if blocking(move || attempt.echo(ATTEMPT)).await.is_ok() {
            longest = longest.max(opened.elapsed());
            opened = Instant::now();
        }
        ensure!(opened.elapsed() < READY_WITHIN, "no new stream");
        time::sleep(BETWEEN).await;
    }
    Ok(longest.max(opened.elapsed()))
}

/// Whether a stream has ended. If it has not, it returns a byte; it must not hang.
fn has_ended(mut stream: TcpStream) -> anyhow::Result<bool> {
    let exchanged = stream.write_all(&[7]).and_then(|()| stream.read_exact(&mut [0]));
    let has_ended = exchanged.is_err();
    let is_hanging = exchanged.is_err_and(|error| {
        matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        )
    });
    ensure!(!is_hanging, "a stream neither goes on nor ends");
    Ok(has_ended)
}
