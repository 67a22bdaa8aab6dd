//! What passes: pages, WebSockets, events, gRPC, long transfers.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, channel::Channel};
use hyper::body::Frame;
use leasehold_e2e::client_hello;
use leasehold_web::{BLOCK, DIGEST, block};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::{
    TOKEN,
    user::{User, empty, text},
};

/// A page by HTTP/1.1 and HTTP/2, with the headers that the program gets.
pub(crate) async fn page(user: &User) -> anyhow::Result<()> {
    let (status, page) = user.ask(&user.host, user.request("GET", "/")).await?;
    ensure!(status == 200 && page.starts_with("served by "), "{status} {page}");
    let (status, page) = user
        .ask(&user.open, Request::builder().uri("/").header("host", &user.open))
        .await?;
    ensure!(status == 200 && page.starts_with("served by "), "{status} {page}");

    let mut http2 = user.http2(&user.host).await?;
    let request = Request::builder()
        .uri(format!("https://{}/headers", user.host))
        .header("leasehold-token", TOKEN)
        .header("authorization", "Bearer of-the-program")
        .header("x-forwarded-for", "127.0.0.1")
        .body(empty())?;
    let seen: Value = serde_json::from_str(&text(http2.send_request(request).await?).await?)?;
    let headers = seen["headers"].to_string();
    ensure!(headers.contains("of-the-program"), "{headers}");
    ensure!(!headers.contains(TOKEN), "the token is passed on: {headers}");
    ensure!(
        !headers.contains("127.0.0.1"),
        "a header of the user is passed on: {headers}"
    );
    ensure!(
        headers.contains(&format!("[\"host\",\"{}\"]", user.host)),
        "{headers}"
    );
    ensure!(headers.contains("[\"x-forwarded-proto\",\"https\"]"), "{headers}");
    Ok(())
}

pub(crate) async fn websocket(user: &User) -> anyhow::Result<()> {
    let tls = user.gateway.connect(user.address, &user.host, "http/1.1").await?;
    let mut request = format!("wss://{}/ws", user.host).into_client_request()?;
    request.headers_mut().insert("leasehold-token", TOKEN.parse()?);
    let (mut socket, _) = tokio_tungstenite::client_async(request, tls).await?;
    for size in [1, 1000, 300_000] {
        let sent = Message::binary(vec![7; size]);
        socket.send(sent.clone()).await?;
        let received = socket.next().await.context("an answer")??;
        ensure!(received == sent, "{size} bytes did not return");
    }
    socket.close(None).await?;
    Ok(())
}

/// Events arrive when they are sent.
pub(crate) async fn events(user: &User) -> anyhow::Result<()> {
    let response = user
        .send(&user.host, user.request("GET", "/events").body(empty())?)
        .await?;
    ensure!(response.headers()["content-type"] == "text/event-stream");
    let mut body = response.into_body();
    let begun = Instant::now();
    let mut seen = String::new();
    while !seen.contains("data: 2\n\n") {
        let frame = time::timeout(Duration::from_secs(5), body.frame())
            .await?
            .context("more events")??;
        seen.push_str(&String::from_utf8_lossy(frame.data_ref().context("data")?));
    }
    ensure!(
        begun.elapsed() < Duration::from_secs(2),
        "events are held back: {:?}",
        begun.elapsed()
    );
    Ok(())
}

/// A stream of gRPC in both directions: each message returns before the next one is sent.
pub(crate) async fn grpc(user: &User) -> anyhow::Result<()> {
    let mut http2 = user.http2(&user.host).await?;
    let (mut messages, body) = Channel::new(1);
    let request = Request::builder()
        .method("POST")
        .uri(format!("https://{}/echo.Echo/Chat", user.host))
        .header("leasehold-token", TOKEN)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body.boxed_unsync())?;
    let mut response = time::timeout(Duration::from_secs(10), http2.send_request(request)).await??;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    for number in 0..3_u8 {
        let sent = message(&[number; 100]);
        messages.send_data(sent.clone()).await?;
        let mut received = BytesMut::new();
        while received.len() < sent.len() {
            let frame = time::timeout(Duration::from_secs(5), response.frame())
                .await?
                .context("a message")??;
            received.extend_from_slice(frame.data_ref().context("data")?);
        }
        ensure!(received == sent, "message {number} did not return");
    }
    drop(messages);
    let frame = time::timeout(Duration::from_secs(5), response.frame())
        .await?
        .context("trailers")??;
    let status = frame
        .trailers_ref()
        .and_then(|trailers| trailers.get("grpc-status"));
    ensure!(status.is_some_and(|status| status == "0"), "{frame:?}");
    Ok(())
}

/// A message as gRPC frames it: not compressed, its length, its bytes.
fn message(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(bytes.len()).unwrap_or_default());
    framed.put_slice(bytes);
    framed.freeze()
}

/// A connection whose TLS would end at the program: its bytes arrive as they were sent, from the first one.
pub(crate) async fn passed_through(user: &User) -> anyhow::Result<()> {
    let hello = client_hello(&user.raw)?;
    let mut tcp = TcpStream::connect(user.address).await?;
    for sent in [hello.as_slice(), b"and whatever follows"] {
        tcp.write_all(sent).await?;
        let mut received = vec![0; sent.len()];
        time::timeout(Duration::from_secs(10), tcp.read_exact(&mut received)).await??;
        ensure!(received == sent, "the bytes were changed");
    }
    Ok(())
}

pub(crate) async fn download(user: &User, blocks: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    let path = format!("/bytes/{blocks}");
    let request = user
        .request("GET", &path)
        .header("te", "trailers")
        .body(empty())?;
    let mut body = user.send(&user.host, request).await?.into_body();
    let (mut digest, mut bytes, mut expected) = (Sha256::new(), 0, None);
    while let Some(frame) = body.frame().await {
        match frame.context("the download")?.into_data() {
            Ok(data) => {
                bytes += data.len() as u64;
                digest.update(&data);
            }
            Err(frame) => expected = trailer(&frame),
        }
    }
    ensure!(bytes == blocks * BLOCK as u64, "{bytes} bytes arrived");
    let mut own = Sha256::new();
    (0..blocks).for_each(|number| own.update(block(number)));
    let digest = data_encoding::HEXLOWER.encode(&digest.finalize());
    ensure!(
        digest == data_encoding::HEXLOWER.encode(&own.finalize()),
        "the download differs"
    );
    ensure!(
        expected.is_none_or(|expected| expected == digest),
        "the digest of the program differs"
    );
    eprintln!("  downloaded {bytes} bytes in {:.1?}", begun.elapsed());
    Ok(())
}

fn trailer(frame: &Frame<Bytes>) -> Option<String> {
    let trailers = frame.trailers_ref()?;
    Some(trailers.get(DIGEST)?.to_str().ok()?.to_owned())
}

pub(crate) async fn upload(user: &User, blocks: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    let (mut sender, body) = Channel::new(4);
    let sent = tokio::spawn(async move {
        let mut digest = Sha256::new();
        for number in 0..blocks {
            let block = block(number);
            digest.update(&block);
            sender.send_data(block).await?;
        }
        anyhow::Ok(data_encoding::HEXLOWER.encode(&digest.finalize()))
    });
    let request = user.request("POST", "/digest").body(body.boxed_unsync())?;
    let response = user.send(&user.host, request).await?;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    let (received, sent) = (text(response).await?, sent.await??);
    ensure!(received == sent, "the upload differs: {received}");
    eprintln!(
        "  uploaded {} bytes in {:.1?}",
        blocks * BLOCK as u64,
        begun.elapsed()
    );
    Ok(())
}
