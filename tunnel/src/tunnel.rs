//! The end that accepted: it is the client of HTTP/2, and opens streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use leasehold_planner::provider::connector::StreamRequest;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    pings,
    serve::Refused,
    stream::TunnelStream,
    wire::{
        self, CONNECTION_WINDOW, HEADER_PROVIDER, HEADER_REASON, HEADERS_MAX, LATE_FRAMES_MAX,
        RESETS_REMEMBERED_FOR, SEND_BUFFER, STREAM_WINDOW, STREAMS_MAX,
    },
};

/// How long the other end may take to answer whether it opens a stream.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);

/// Why a stream could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no connection of the provider's connector.
    #[error("the connector of provider {0} is not connected")]
    NotConnected(String),
    /// The connection failed, or did not answer.
    #[error("the connection of the connector failed: {0}")]
    Failed(String),
    /// The connector refused.
    #[error("{}", .0.reason)]
    Refused(Refused),
}

impl OpenError {
    /// What a replica of the gateway tells another one that asked it.
    #[must_use]
    pub fn into_refused(self) -> Refused {
        match self {
            Self::Refused(refused) => refused,
            Self::NotConnected(_) => Refused::new(StatusCode::MISDIRECTED_REQUEST, self),
            Self::Failed(_) => Refused::new(StatusCode::SERVICE_UNAVAILABLE, self),
        }
    }
}

/// A connection on which streams are opened.
#[derive(Debug)]
pub struct Tunnel {
    requests: h2::client::SendRequest<Bytes>,
    is_responding: watch::Receiver<bool>,
    streams: Arc<AtomicUsize>,
    opened_at: Instant,
    closed: CancellationToken,
}

impl Tunnel {
    /// Begins HTTP/2 on a connection whose other end will serve. The future drives the connection, and ends with it.
    ///
    /// # Errors
    /// When the other end does not speak HTTP/2.
    pub async fn begin<I>(io: I) -> Result<(Self, impl Future<Output = ()> + Send + use<I>), h2::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(STREAMS_MAX as usize)
            .reset_stream_duration(RESETS_REMEMBERED_FOR)
            .max_local_error_reset_streams(Some(LATE_FRAMES_MAX))
            // The other end answers requests and opens nothing.
            .enable_push(false)
            .handshake(io)
            .await?;
        let (responding, is_responding) = watch::channel(true);
        let closed = CancellationToken::new();
        let tunnel = Self {
            requests,
            is_responding,
            streams: Arc::default(),
            opened_at: Instant::now(),
            closed: closed.clone(),
        };
        let pings = connection.ping_pong();
        let run = async move {
            let _closed = closed.clone().drop_guard();
            let lost = async {
                match pings {
                    Some(pings) => pings::run(pings, &responding).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection of the tunnel ended");
                },
                () = lost => {}
                () = closed.cancelled() => {}
            }
        };
        Ok((tunnel, run))
    }

    /// Whether the last ping was answered in time.
    #[must_use]
    pub fn is_responding(&self) -> bool {
        *self.is_responding.borrow()
    }

    /// Streams that were opened and are not dropped.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// How long the connection has existed.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// Ends the connection with all its streams.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Opens a stream. `provider` is told to a replica of the gateway, which forwards the stream to a connector.
    ///
    /// # Errors
    /// When the other end refuses, does not answer, or the connection fails.
    pub async fn open(
        &self,
        target: &StreamRequest,
        provider: Option<&str>,
    ) -> Result<TunnelStream, OpenError> {
        let failed = |error: &dyn std::fmt::Display| OpenError::Failed(error.to_string());
        let uri: Uri = wire::authority(target)
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(&error))?;
        let mut request = Request::builder().method(Method::CONNECT).uri(uri);
        if let Some(provider) = provider {
            request = request.header(HEADER_PROVIDER, provider);
        }
        let request = request.body(()).map_err(|error| failed(&error))?;
        let answered = async {
            let mut requests = self.requests.clone().ready().await?;
            let (response, sent) = requests.send_request(request, false)?;
            Ok::<_, h2::Error>((response.await?, sent))
        };
        let mut is_responding = self.is_responding.clone();
        let (response, sent) = tokio::select! {
            answered = time::timeout(ANSWER_WITHIN, answered) => {
                answered.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?
            }
            // Another connection may answer.
            _ = is_responding.wait_for(|responding| !responding), if self.is_responding() => {
                return Err(failed(&"pings are not answered"));
            }
            () = self.closed.cancelled() => return Err(failed(&"it was closed")),
        };
        if response.status() != StatusCode::OK {
            let reason = response
                .headers()
                .get(HEADER_REASON)
                .and_then(|reason| reason.to_str().ok());
            let reason = reason.unwrap_or("the connector refused the stream");
            return Err(OpenError::Refused(Refused::new(response.status(), reason)));
        }
        Ok(TunnelStream::new(response.into_body(), sent).counted(Counted::new(&self.streams)))
    }
}

/// One of the streams of a connection, as long as it exists.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(streams: &Arc<AtomicUsize>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self(streams.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
