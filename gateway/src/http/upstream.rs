//! HTTP to the program, over streams of the tunnel. Connections are kept for the next request to the same port of the same
//! lease.

use std::{
    collections::HashMap,
    error::Error,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri, uri::PathAndQuery};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use leasehold_planner::gateway::routes::Route;
use leasehold_tunnel::{
    OpenError, StreamRequest, TunnelStream, Tunnels,
    limits::{LimitReached, Paced, Usages},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};
use tower::util::BoxCloneSyncService;

/// How long an unused connection to a program is kept: less than programs keep it, or a request would meet its end.
const KEEP: Duration = Duration::from_secs(4);
/// How long it may take to open a stream, whatever connections are tried.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Unused connections to one port of a lease that are kept.
const KEPT: usize = 16;
/// Ports whose connection of HTTP/2 is kept while nobody uses it.
const HTTP2_MAX: usize = 256;
/// Requests of HTTP/2 to one port of a lease at once.
const HTTP2_REQUESTS: u32 = 256;

/// Why a program can't be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    /// A limit of the lease.
    #[error(transparent)]
    Limit(#[from] LimitReached),
    /// The tunnel.
    #[error(transparent)]
    Tunnel(#[from] OpenError),
    /// The program does not speak HTTP.
    #[error("the program does not answer in HTTP: {0}")]
    Http(String),
}

impl Unreachable {
    /// The cause of an error of the client.
    fn of(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(Self::Limit(limit)) = error.downcast_ref() {
                return Self::Limit(*limit);
            }
            if let Some(Self::Tunnel(tunnel)) = error.downcast_ref() {
                return Self::Tunnel(tunnel.clone());
            }
            cause = error.source();
        }
        Self::Http(error.to_string())
    }
}

/// A stream to a program.
pub(crate) struct ToProgram(Paced<TunnelStream>);

impl AsyncRead for ToProgram {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ToProgram {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Connection for ToProgram {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Opens streams to programs, within the limits of their leases.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) usages: Arc<Usages>,
}

impl Streams {
    pub(crate) async fn open(
        &self,
        provider: &str,
        target: &StreamRequest,
    ) -> Result<ToProgram, Unreachable> {
        let admitted = self.usages.admit(&target.lease_uid)?;
        let opened = time::timeout(OPEN_WITHIN, self.tunnels.open(provider, target)).await;
        let stream = opened.unwrap_or_else(|_| Err(OpenError::Failed("no answer".into())))?;
        Ok(ToProgram(Paced::new(stream, admitted)))
    }

    /// Opens a stream by its route.
    pub(crate) async fn open_route(&self, route: &Route) -> Result<ToProgram, Unreachable> {
        self.open(&route.provider, &target(route)).await
    }
}

/// What a stream of a route is opened to.
fn target(route: &Route) -> StreamRequest {
    StreamRequest {
        lease_uid: route.lease_uid.clone(),
        rank: route.rank,
        port: route.port,
    }
}

type Connect = BoxCloneSyncService<Uri, TokioIo<ToProgram>, Unreachable>;

/// The clients of all programs.
pub(crate) struct Upstream {
    streams: Streams,
    http1: Client<Connect, Incoming>,
    http2: Mutex<HashMap<(String, StreamRequest), Arc<Program>>>,
}

impl Upstream {
    pub(crate) fn new(streams: Streams) -> Self {
        let connect = {
            let streams = streams.clone();
            tower::service_fn(move |uri: Uri| {
                let streams = streams.clone();
                async move {
                    // It was made by `pool_key`.
                    let (provider, target) = parse_pool_key(&uri)
                        .ok_or_else(|| Unreachable::Http(format!("{uri} names no lease")))?;
                    streams.open(&provider, &target).await.map(TokioIo::new)
                }
            })
        };
        let http1 = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP)
            .pool_max_idle_per_host(KEPT)
            .build(BoxCloneSyncService::new(connect));
        Self {
            streams,
            http1,
            http2: Mutex::default(),
        }
    }

    /// The response of the program to a request with the path alone as its target.
    pub(crate) async fn http1(
        &self,
        route: &Route,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Unreachable> {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = pool_key(route, path);
        *request.version_mut() = http::Version::HTTP_11;
        self.http1
            .request(request)
            .await
            .map_err(|error| Unreachable::of(&error))
    }

    /// The same with HTTP/2 and prior knowledge (RFC 9113, section 3.3). All requests to a port share one connection, which is one
    /// stream of the tunnel: the second value is the place of this one among them.
    pub(crate) async fn http2(
        &self,
        route: &Route,
        request: Request<Incoming>,
    ) -> Result<(Response<Incoming>, OwnedSemaphorePermit), Unreachable> {
        let key = (route.provider.clone(), target(route));
        let program = {
            let mut programs = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
            if programs.len() >= HTTP2_MAX {
                programs.retain(|_, program| Arc::strong_count(program) > 1);
            }
            programs.entry(key.clone()).or_default().clone()
        };
        let place = program.places.clone().try_acquire_owned();
        let place = place.map_err(|_| LimitReached::Streams(HTTP2_REQUESTS))?;
        let mut sender = {
            // One request connects, and the others wait for it.
            let mut connected = program.connected.lock().await;
            match connected.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender.clone(),
                None => connected.insert(self.connect_http2(&key).await?).clone(),
            }
        };
        let failed = |error: hyper::Error| Unreachable::Http(error.to_string());
        sender.ready().await.map_err(failed)?;
        Ok((sender.send_request(request).await.map_err(failed)?, place))
    }

    async fn connect_http2(
        &self,
        (provider, target): &(String, StreamRequest),
    ) -> Result<http2::SendRequest<Incoming>, Unreachable> {
        let stream = self.streams.open(provider, target).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(2 << 20)
            .keep_alive_interval(Duration::from_secs(20))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Unreachable::Http(error.to_string()))?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

/// The connection of HTTP/2 to one port of a lease, and the requests that can share it.
struct Program {
    places: Arc<Semaphore>,
    connected: tokio::sync::Mutex<Option<http2::SendRequest<Incoming>>>,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(HTTP2_REQUESTS as usize)),
            connected: tokio::sync::Mutex::default(),
        }
    }
}

/// A URI whose authority tells connections of different targets apart.
fn pool_key(route: &Route, path: Option<PathAndQuery>) -> Uri {
    let Route {
        provider,
        lease_uid,
        rank,
        port,
        ..
    } = route;
    Uri::builder()
        .scheme("http")
        .authority(format!("{rank}.{lease_uid}.{provider}:{port}"))
        .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
        .build()
        .unwrap_or_default()
}

fn parse_pool_key(uri: &Uri) -> Option<(String, StreamRequest)> {
    let mut parts = uri.host()?.splitn(3, '.');
    let (rank, lease_uid, provider) = (parts.next()?, parts.next()?, parts.next()?);
    let target = StreamRequest {
        lease_uid: lease_uid.to_owned(),
        rank: rank.parse().ok()?,
        port: uri.port_u16()?,
    };
    Some((provider.to_owned(), target))
}
