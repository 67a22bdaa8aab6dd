//! The end that dialled: it serves HTTP/2, and opens a stream to what each CONNECT request names.

use std::{fmt::Display, future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request::Parts};
use leasehold_planner::provider::connector::StreamRequest;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::Rate,
    pings,
    stream::TunnelStream,
    wire::{
        self, CONNECTION_WINDOW, HEADER_REASON, HEADERS_MAX, LATE_FRAMES_MAX, RESETS_REMEMBERED_FOR,
        SEND_BUFFER, STREAM_WINDOW, STREAMS_MAX, UPGRADE_WITHIN,
    },
};

/// Streams that may be reset before they are answered, a second, over any time longer than two seconds. The limits of leases
/// are far below.
const RESETS_PER_SECOND: u32 = 2000;
/// How long streams may go on after no more are accepted.
const DRAIN_MAX: Duration = Duration::from_secs(6 * 3600);
/// How long it may take to open what a stream is for.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// Why a stream is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Status of the response: 403 or 404 if it will be refused everywhere, 429 if a limit is reached, 502 if the pod does
    /// not accept the connection, 503 if another connection may serve it.
    pub status: StatusCode,
    /// Reason for the person who asked.
    pub reason: String,
}

impl Refused {
    /// A refusal with the text of a reason.
    pub fn new(status: StatusCode, reason: impl Display) -> Self {
        Self {
            status,
            reason: reason.to_string(),
        }
    }
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection failed, or the other end violates HTTP/2.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The other end does not answer pings.
    #[error("pings are not answered")]
    Lost,
    /// Streams went on for too long after no more were accepted.
    #[error("streams go on {} hours after the connection was replaced", DRAIN_MAX.as_secs() / 3600)]
    Drained,
    /// The other end opens streams and resets them before they are answered, faster than users come and go
    /// (CVE-2023-44487).
    #[error("too many streams were reset before they were answered")]
    Flood,
}

/// What the dialling end does with streams.
pub trait Serve: Send + Sync + 'static {
    /// What was opened.
    type Opened: Send;

    /// Opens what a stream is for, before the stream is accepted. `headers` are those of the request.
    fn open(
        &self,
        request: StreamRequest,
        headers: &HeaderMap,
    ) -> impl Future<Output = Result<Self::Opened, Refused>> + Send;

    /// Serves the accepted stream until it ends.
    fn serve(&self, stream: TunnelStream, opened: Self::Opened) -> impl Future<Output = ()> + Send;
}

/// Serves streams on a connection until it ends. With `drain`, no further streams are accepted, and those that run go on.
///
/// # Errors
/// When the connection fails, the other end is lost, or it violates HTTP/2.
pub async fn serve<S: Serve>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    server: &Arc<S>,
    drain: &CancellationToken,
) -> Result<(), ServeError> {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        // Late frames of streams that were reset are no violation, however many there are.
        .max_concurrent_reset_streams(STREAMS_MAX as usize)
        .reset_stream_duration(RESETS_REMEMBERED_FOR)
        .max_local_error_reset_streams(Some(LATE_FRAMES_MAX))
        // After a pause of the link, requests and their resets arrive together.
        .max_pending_accept_reset_streams(STREAMS_MAX as usize)
        .handshake(io);
    let mut connection = time::timeout(UPGRADE_WITHIN, handshake)
        .await
        .map_err(|_| ServeError::Lost)??;
    let (is_responding, _) = watch::channel(true);
    let pings = connection.ping_pong();
    let mut lost = std::pin::pin!(async {
        match pings {
            Some(pings) => pings::run(pings, &is_responding).await,
            None => std::future::pending().await,
        }
    });
    // They end with the connection.
    let mut streams = JoinSet::new();
    let resets = Rate::new(RESETS_PER_SECOND, Duration::from_secs(2));
    let mut is_draining = false;
    let mut drained = std::pin::pin!(time::sleep(DRAIN_MAX));
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    streams.spawn(answer(server.clone(), request, respond));
                }
                Some(Err(error)) => return Err(error.into()),
                None => {
                    // What was received is still passed on, and what was broken off fails by itself.
                    while streams.join_next().await.is_some() {}
                    return Ok(());
                }
            },
            Some(Ok(answered)) = streams.join_next() => {
                if answered == Answered::Reset && !resets.try_take() {
                    return Err(ServeError::Flood);
                }
            }
            () = drain.cancelled(), if !is_draining => {
                connection.graceful_shutdown();
                is_draining = true;
                drained.as_mut().reset(Instant::now() + DRAIN_MAX);
            }
            () = &mut drained, if is_draining => return Err(ServeError::Drained),
            () = &mut lost => return Err(ServeError::Lost),
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answered {
    /// It was answered.
    Yes,
    /// The other end took it back before.
    Reset,
}

/// Answers one request. What is being opened for it ends when the other end takes it back, or such requests would not count
/// among the streams of the connection.
async fn answer<S: Serve>(
    server: Arc<S>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Answered {
    let (head, body) = request.into_parts();
    let opened = tokio::select! {
        opened = open(&*server, &head) => opened,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return Answered::Reset,
    };
    match opened {
        Ok(opened) => {
            if let Ok(sent) = respond.send_response(Response::new(()), false) {
                server.serve(TunnelStream::new(body, sent), opened).await;
            }
        }
        Err(refused) => {
            let mut response = Response::new(());
            *response.status_mut() = refused.status;
            let reason: String = refused.reason.chars().take(256).collect();
            if let Ok(reason) = HeaderValue::from_str(&reason) {
                response.headers_mut().insert(HEADER_REASON, reason);
            }
            // The other end may be gone, which ends the stream too.
            drop(respond.send_response(response, true));
        }
    }
    Answered::Yes
}

/// Opens what a request is for.
async fn open<S: Serve>(server: &S, head: &Parts) -> Result<S::Opened, Refused> {
    if head.method != Method::CONNECT {
        return Err(Refused::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "only CONNECT is served",
        ));
    }
    let target = head.uri.authority().map_or("", http::uri::Authority::as_str);
    let target =
        wire::target(target).map_err(|malformed| Refused::new(StatusCode::BAD_REQUEST, malformed))?;
    time::timeout(OPEN_WITHIN, server.open(target, &head.headers))
        .await
        .unwrap_or_else(|_| {
            let reason = format!("no connection to the pod within {} s", OPEN_WITHIN.as_secs());
            Err(Refused::new(StatusCode::GATEWAY_TIMEOUT, reason))
        })
}
