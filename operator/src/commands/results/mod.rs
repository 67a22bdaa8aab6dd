//! What a job left on its volume, served to whoever has its address until somebody proves that it was fetched. It runs
//! in a pod of its own beside the volume, with no rights in the cluster: `GET` streams an archive that only the
//! tenant's keys open; a `DELETE` with the receipt out of it ends the process with success, which the provider's
//! operator sees.

mod age;
mod archive;

use std::{convert::Infallible, io, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::{Body, Bytes};
use data_encoding::HEXLOWER;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use leasehold_planner::provider::workload::recipient::Recipient;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::settings::ResultsArgs;
use age::Encryptor;
use archive::Directory;

/// Archives that are sent at once.
const TRANSFERS_MAX: usize = 4;
/// Connections at once: who only holds one gains nothing.
const CONNECTIONS_MAX: usize = 64;
/// In which a request's head must have come.
const HEAD_SECONDS: u64 = 10;
/// In which a reader must take [`PIECE`] bytes.
const PATIENCE: Duration = Duration::from_secs(30);
const PIECE: usize = 64 * 1024;
/// For the last answer to go out.
const FAREWELL: Duration = Duration::from_secs(5);

/// What every request can reach.
struct Served {
    what: Directory,
    path: String,
    recipients: Vec<Recipient>,
    receipt: String,
    transfers: Arc<Semaphore>,
    fetched: CancellationToken,
}

/// Serves until it was fetched, or a signal comes.
pub async fn run(args: ResultsArgs) -> anyhow::Result<ExitCode> {
    let shutdown = leasehold_telemetry::shutdown::on_signals()?;
    let receipt: [u8; 32] = age::random().context("make a receipt")?;
    let served = Arc::new(Served {
        what: Directory {
            volume: args.volume,
            path: args.directory.unwrap_or_default(),
            name: args.name,
            bytes_max: args.bytes_max,
        },
        path: format!("/{}", args.path),
        recipients: args.recipients,
        receipt: HEXLOWER.encode(&receipt),
        transfers: Arc::new(Semaphore::new(TRANSFERS_MAX)),
        fetched: CancellationToken::new(),
    });
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    tracing::info!(address = %listener.local_addr()?, "serves a job's results");
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await?;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(ExitCode::FAILURE),
            () = served.fetched.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, served.clone(), place));
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
        while connections.try_join_next().is_some() {}
    }
    let _ = timeout(FAREWELL, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    tracing::info!("fetched");
    Ok(ExitCode::SUCCESS)
}

/// One request a connection. A reader that stalls is cut off, whatever is still to be written to it.
async fn connection(stream: TcpStream, served: Arc<Served>, _place: OwnedSemaphorePermit) {
    let cut = CancellationToken::new();
    let answer = service_fn(|request| {
        let (served, cut) = (served.clone(), cut.clone());
        async move { Ok::<_, Infallible>(served.answer(&request, cut)) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(HEAD_SECONDS))
        .keep_alive(false);
    tokio::select! {
        () = cut.cancelled() => {}
        ended = http.serve_connection(TokioIo::new(stream), answer) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended badly");
            }
        }
    }
}

impl Served {
    fn answer(self: &Arc<Self>, request: &Request<Incoming>, cut: CancellationToken) -> Response<Body> {
        let Some(rest) = request.uri().path().strip_prefix(&self.path) else {
            return says(StatusCode::NOT_FOUND, "");
        };
        match (request.method(), rest) {
            (&Method::GET, "" | "/") => self.archive(cut),
            (&Method::DELETE, receipt) if receipt.len() > 1 && receipt.starts_with('/') => {
                let receipt = &receipt[1..];
                let right = verify_slices_are_equal(receipt.as_bytes(), self.receipt.as_bytes());
                if right.is_err() {
                    let why = "this is not the receipt in the archive; after a restart it is another: fetch again\n";
                    return says(StatusCode::FORBIDDEN, why);
                }
                self.fetched.cancel();
                says(StatusCode::OK, "kept no longer\n")
            }
            (_, rest) if rest.is_empty() || rest.starts_with('/') => says(
                StatusCode::METHOD_NOT_ALLOWED,
                "GET, or DELETE with the receipt\n",
            ),
            _ => says(StatusCode::NOT_FOUND, ""),
        }
    }

    fn archive(self: &Arc<Self>, cut: CancellationToken) -> Response<Body> {
        let Ok(permit) = self.transfers.clone().try_acquire_owned() else {
            let mut response = says(
                StatusCode::SERVICE_UNAVAILABLE,
                "others fetch it: try again in a while\n",
            );
            let wait = header::HeaderValue::from_static("30");
            response.headers_mut().insert(header::RETRY_AFTER, wait);
            return response;
        };
        let (pieces, body) = mpsc::channel(2);
        let (served, handle) = (self.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let to = Pieces {
                pieces,
                handle,
                piece: Vec::with_capacity(PIECE),
            };
            if let Err(error) = served.stream(to) {
                tracing::info!(%error, "a transfer ended before its end");
                cut.cancel();
            }
        });
        let mut response = Response::new(Body::from_stream(ReceiverStream::new(body)));
        let kind = header::HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    fn stream(&self, to: Pieces) -> io::Result<()> {
        let encrypted = Encryptor::new(&self.recipients, to)?;
        archive::write(&self.what, &self.receipt, encrypted)?.finish()
    }
}

fn says(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

/// Hands a blocking writer's bytes to the connection, and fails when that takes none for too long.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    handle: Handle,
    piece: Vec<u8>,
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = Bytes::copy_from_slice(&self.piece);
        self.piece.clear();
        match self
            .handle
            .block_on(timeout(PATIENCE, self.pieces.send(Ok(piece))))
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::ConnectionReset.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
