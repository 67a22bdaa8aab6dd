//! Serves on ports 8080 and 8081 whatever a client speaks, HTTP/1.1 or HTTP/2 with prior knowledge:
//!
//! - `GET /`: a page with the name of the host.
//! - `GET /headers`: the request's headers as the program got them, JSON.
//! - `GET /bytes/BLOCKS`: so many blocks, and their digest in a trailer.
//! - `POST /digest`: the digest of the body.
//! - `GET /events`: server-sent events, one each 100 ms, without end.
//! - `GET /ws`: a WebSocket that returns each message.
//! - `POST` with `content-type: application/grpc`: each frame of the body returns as it comes, and `grpc-status: 0` at the end.
//!
//! Ports of plain TCP, whose first bytes are the record of TLS by which the gateway led them here:
//!
//! - 9000: each byte returns as it is.
//! - 9001: after that record, a number of eight bytes; then so many bytes come.
//! - 9002: what comes is discarded; when it has ended, the number of bytes comes, in eight bytes.

use std::{convert::Infallible, io, time::Duration};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, channel::Channel, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use leasehold_web::{DIGEST, block};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol},
};

/// Bytes that are read or written at once on ports of plain TCP.
const CHUNK: usize = 256 << 10;

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tokio::try_join!(
        serve(8080),
        serve(8081),
        accept(9000, echo),
        accept(9001, source),
        accept(9002, sink)
    )?;
    Ok(())
}

/// Serves each connection to a port of plain TCP.
async fn accept<F>(port: u16, serve: fn(TcpStream) -> F) -> anyhow::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    loop {
        let (tcp, _) = listener.accept().await?;
        tokio::spawn(serve(tcp));
    }
}

async fn echo(mut tcp: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = tcp.split();
    tokio::io::copy(&mut reader, &mut writer).await.map(drop)
}

async fn source(mut tcp: TcpStream) -> io::Result<()> {
    // Type and version, and the length of what follows (RFC 8446, section 5.1).
    let mut head = [0; 5];
    tcp.read_exact(&mut head).await?;
    let mut record = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
    tcp.read_exact(&mut record).await?;
    let mut left = usize::try_from(tcp.read_u64().await?).map_err(io::Error::other)?;
    let chunk = vec![7; CHUNK];
    while left > 0 {
        let sent = tcp.write(&chunk[..left.min(CHUNK)]).await?;
        left -= sent;
    }
    tcp.shutdown().await
}

async fn sink(mut tcp: TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut taken = 0;
    loop {
        match tcp.read(&mut chunk).await? {
            0 => break,
            read => taken += read as u64,
        }
    }
    tcp.write_u64(taken).await?;
    tcp.shutdown().await
}

async fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
            let served = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(tcp), service)
                .await;
            if let Err(error) = served {
                eprintln!("a connection failed: {error}");
            }
        });
    }
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let is_grpc = |headers: &HeaderMap| {
        headers
            .get("content-type")
            .is_some_and(|kind| kind == "application/grpc")
    };
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::POST, _) if is_grpc(request.headers()) => grpc(request.into_body()),
        (&Method::GET, "/") => text(format!(
            "served by {}\n",
            std::env::var("HOSTNAME").unwrap_or_default()
        )),
        (&Method::GET, "/headers") => headers(&request),
        (&Method::GET, "/events") => events(),
        (&Method::GET, "/ws") => websocket(request),
        (&Method::POST, "/digest") => digest(request.into_body()).await,
        (&Method::GET, path) => match path
            .strip_prefix("/bytes/")
            .and_then(|blocks| blocks.parse().ok())
        {
            Some(blocks) => bytes(blocks),
            None => status(StatusCode::NOT_FOUND),
        },
        _ => status(StatusCode::NOT_FOUND),
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = text(String::new());
    *response.status_mut() = status;
    response
}

fn text(text: String) -> Response<Body> {
    Response::new(Full::from(text).boxed_unsync())
}

fn headers(request: &Request<Incoming>) -> Response<Body> {
    let pairs: Vec<(String, String)> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let seen = serde_json::json!({"version": format!("{:?}", request.version()), "path": request.uri().to_string(), "headers": pairs});
    text(seen.to_string())
}

/// Blocks as the reader takes them, then their digest.
fn bytes(blocks: u64) -> Response<Body> {
    let (mut sender, body) = Channel::new(4);
    tokio::spawn(async move {
        let mut digest = Sha256::new();
        for number in 0..blocks {
            let block = block(number);
            digest.update(&block);
            if sender.send_data(block).await.is_err() {
                return;
            }
        }
        let digest = data_encoding::HEXLOWER.encode(&digest.finalize());
        if let Ok(value) = HeaderValue::from_str(&digest) {
            let trailers = HeaderMap::from_iter([(HeaderName::from_static(DIGEST), value)]);
            drop(sender.send_trailers(trailers).await);
        }
    });
    let mut response = Response::new(body.boxed_unsync());
    response
        .headers_mut()
        .insert("trailer", HeaderValue::from_static(DIGEST));
    response
}

async fn digest(mut body: Incoming) -> Response<Body> {
    let mut digest = Sha256::new();
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => digest.update(&data),
            Ok(Err(_)) => {}
            Err(_) => return status(StatusCode::BAD_REQUEST),
        }
    }
    text(data_encoding::HEXLOWER.encode(&digest.finalize()))
}

fn events() -> Response<Body> {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        for number in 0_u64.. {
            if sender
                .send_data(Bytes::from(format!("data: {number}\n\n")))
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut response = Response::new(body.boxed_unsync());
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("text/event-stream"));
    response
}

fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get("sec-websocket-key") else {
        return status(StatusCode::UPGRADE_REQUIRED);
    };
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(io) = upgraded.await else { return };
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(io), protocol::Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert("connection", HeaderValue::from_static("upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    if let Ok(accept) = accept {
        headers.insert("sec-websocket-accept", accept);
    }
    response
}

/// Frames of a stream in both directions, and the status in the trailers.
fn grpc(mut body: Incoming) -> Response<Body> {
    let (mut sender, answer) = Channel::new(1);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && sender.send_data(data).await.is_err()
            {
                return;
            }
        }
        let ok = HeaderMap::from_iter([(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        drop(sender.send_trailers(ok).await);
    });
    let mut response = Response::new(answer.boxed_unsync());
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}
