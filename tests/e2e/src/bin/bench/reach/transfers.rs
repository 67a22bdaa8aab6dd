//! A download and an upload of one GiB by HTTP, with the digest of each at both ends.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, channel::Channel};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use leasehold_web::{BLOCK, block};

use super::scene::Scene;
use crate::report::Report;

/// Blocks of one GiB.
const BLOCKS: u64 = (1 << 30) / BLOCK as u64;

type Body = Channel<Bytes, std::convert::Infallible>;

pub(crate) async fn run(report: &Report, scene: &Scene<'_>) -> anyhow::Result<()> {
    let seconds = download(scene).await.context("the download")?;
    report.line("reach.gib_seconds.download", seconds, "s", 1);
    let seconds = upload(scene).await.context("the upload")?;
    report.line("reach.gib_seconds.upload", seconds, "s", 1);
    Ok(())
}

async fn send(scene: &Scene<'_>, method: &str, path: &str, body: Body) -> anyhow::Result<Response<Incoming>> {
    let tls = scene
        .fixture
        .connect(scene.address, &scene.http, "http/1.1")
        .await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", &scene.http)
        .body(body)?;
    let response = sender.send_request(request).await?;
    ensure!(response.status() == 200, "{}", response.status());
    Ok(response)
}

async fn download(scene: &Scene<'_>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let (none, empty) = Channel::new(1);
    drop(none);
    let mut body = send(scene, "GET", &format!("/bytes/{BLOCKS}"), empty)
        .await?
        .into_body();
    let (mut digest, mut bytes) = (Context::new(&SHA256), 0);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes += data.len() as u64;
            digest.update(&data);
        }
    }
    let took = begun.elapsed().as_secs_f64();
    ensure!(bytes == BLOCKS * BLOCK as u64, "{bytes} bytes came");
    let mut expected = Context::new(&SHA256);
    (0..BLOCKS).for_each(|number| expected.update(&block(number)));
    ensure!(hex(digest) == hex(expected), "the digests differ");
    Ok(took)
}

async fn upload(scene: &Scene<'_>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let (mut sender, body) = Channel::new(4);
    let sent = tokio::spawn(async move {
        let mut digest = Context::new(&SHA256);
        let mut block = block(0).to_vec();
        for number in 0..BLOCKS {
            // No two blocks are equal.
            block[..8].copy_from_slice(&number.to_be_bytes());
            digest.update(&block);
            sender.send_data(Bytes::copy_from_slice(&block)).await?;
        }
        anyhow::Ok(hex(digest))
    });
    let response = send(scene, "POST", "/digest", body).await?;
    let received = response.into_body().collect().await?.to_bytes();
    let took = begun.elapsed().as_secs_f64();
    ensure!(received == sent.await??, "the digests differ");
    Ok(took)
}

fn hex(digest: Context) -> String {
    data_encoding::HEXLOWER.encode(digest.finish().as_ref())
}
