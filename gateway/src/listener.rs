//! Connections from outside. The name in the ClientHello decides what becomes of one: the tunnel of a connector, a program
//! whose TLS ends there, or a user of HTTP.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use leasehold_crds::lease::workload::PortTls;
use leasehold_planner::gateway::routes::Route;
use leasehold_tunnel::{accept::Acceptor, splice, splice::Timeouts, tcp::Tcp};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, Sleep},
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    authenticate::Market,
    http::{
        Proxy,
        held::{Activity, Held},
        upstream::Streams,
    },
};

/// How long the handshake of TLS may take, and the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 2048;
/// Requests of one connection of HTTP/2 at once.
const REQUESTS_PER_CONNECTION: u32 = 128;
/// A connection without requests is closed after so long.
const IDLE: Duration = Duration::from_secs(120);
/// Headers of a request in bytes.
const HEADERS_MAX: u32 = 32 << 10;
/// How long connections are still accepted after the signal to end, until nobody is sent here any more.
const ACCEPT_ON: Duration = Duration::from_secs(3);
/// How long running requests are waited for.
const FINISH_WITHIN: Duration = Duration::from_secs(20);
/// How long both take together.
pub(crate) const DRAIN_WITHIN: Duration = ACCEPT_ON.saturating_add(FINISH_WITHIN);

/// What accepts connections.
pub(crate) struct Listener {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) streams: Streams,
    pub(crate) tunnels: Arc<Acceptor<Market>>,
    pub(crate) tls_of_users: Arc<ServerConfig>,
    pub(crate) tls_of_tunnels: Arc<ServerConfig>,
    pub(crate) tunnel_name: String,
    pub(crate) users: Arc<Semaphore>,
}

impl Listener {
    /// Serves until `shutdown`, then lets running requests finish.
    pub(crate) async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let this = Arc::new(self);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let graceful = GracefulShutdown::new();
        let (tasks, end) = (TaskTracker::new(), CancellationToken::new());
        let accepting = async {
            loop {
                let (tcp, user) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Such as no more file descriptors: others may be closed soon.
                        tracing::warn!(%error, "a connection could not be accepted");
                        time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let Ok(handshake) = handshakes.clone().try_acquire_owned() else {
                    this.proxy.metrics.overloaded();
                    continue;
                };
                let (this, watcher, end) = (this.clone(), graceful.watcher(), end.clone());
                tasks.spawn(async move {
                    let serve = this.serve(tcp, user, (handshake, watcher));
                    tokio::select! { () = serve => {}, () = end.cancelled() => {} }
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = async { shutdown.cancelled().await; time::sleep(ACCEPT_ON).await } => {}
        }
        drop(listener);
        // Tunnels and spliced streams have no last request, and end with the process.
        drop(time::timeout(FINISH_WITHIN, graceful.shutdown()).await);
        end.cancel();
        tasks.close();
        tasks.wait().await;
    }

    async fn serve(
        &self,
        tcp: TcpStream,
        user: SocketAddr,
        (handshake, watcher): (OwnedSemaphorePermit, Watcher),
    ) {
        drop(tcp.set_nodelay(true));
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), Recorded::new(tcp));
        let Ok(Ok(start)) = time::timeout(HEAD_WITHIN, acceptor).await else {
            return;
        };
        let name = start.client_hello().server_name().map(str::to_ascii_lowercase);
        if name.as_deref() == Some(self.tunnel_name.as_str()) {
            drop(watcher);
            let handshaken = time::timeout(HEAD_WITHIN, start.into_stream(self.tls_of_tunnels.clone())).await;
            // What is not authenticated keeps the place of its handshake.
            if let Ok(Ok(tls)) = handshaken {
                self.tunnels.accept(tls, || drop(handshake)).await;
            }
            return;
        }
        let Ok(place) = self.users.clone().try_acquire_owned() else {
            return self.proxy.metrics.overloaded();
        };
        // Held by WebSockets too, which outlive their connection of HTTP.
        let place = Arc::new((place, self.proxy.metrics.connected()));
        let route = name.and_then(|name| self.proxy.route_of(&name));
        if let Some(route) = route.filter(|route| route.tls == PortTls::Passthrough) {
            drop((handshake, watcher));
            return self.pass_through(&route, start).await;
        }
        let Ok(Ok(tls)) = time::timeout(HEAD_WITHIN, start.into_stream(self.tls_of_users.clone())).await
        else {
            return;
        };
        drop(handshake);
        let (proxy, activity) = (self.proxy.clone(), Activity::new());
        let requests = activity.clone();
        let service = service_fn(move |request| {
            let (proxy, place, in_use) = (proxy.clone(), place.clone(), requests.begin());
            async move {
                let response = proxy.answer(request, user, place).await;
                Ok::<_, std::convert::Infallible>(response.map(|body| Held::new(body, in_use)))
            }
        });
        // Chosen by ALPN: who sends nothing could not be waited for otherwise.
        let http = auto::Builder::new(TokioExecutor::new());
        let mut http = match tls.get_ref().1.alpn_protocol() {
            Some(b"h2") => http.http2_only(),
            _ => http.http1_only(),
        };
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEADERS_MAX as usize);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(REQUESTS_PER_CONNECTION)
            .max_header_list_size(HEADERS_MAX)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(2 << 20)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        let connection = http
            .serve_connection_with_upgrades(TokioIo::new(tls), service)
            .into_owned();
        tokio::select! {
            served = watcher.watch(connection) => if let Err(error) = served {
                tracing::debug!(%error, "a connection of a user failed");
            },
            // A client of HTTP/2 can answer pings and ask for nothing.
            () = activity.idle_for(IDLE) => {}
        }
    }

    /// Passes a connection on to the program as it is, from its first byte.
    async fn pass_through(&self, route: &Route, start: StartHandshake<Recorded>) {
        let (tcp, hello) = start.io.into_parts();
        let Ok(mut tcp) = Tcp::new(tcp) else { return };
        let mut program = match self.streams.open_route(route).await {
            Ok(program) => program,
            Err(error) => {
                // There is no way to tell the user more than that the connection is reset.
                tracing::debug!(%error, "a connection could not be passed through");
                return;
            }
        };
        if program.write_all(&hello).await.is_err() {
            return;
        }
        let (moved, ended) = splice(&mut tcp, &mut program, Timeouts::default()).await;
        self.proxy.metrics.moved(moved.forth, moved.back);
        if ended.is_ok() {
            tcp.complete();
        }
    }
}

/// A connection that remembers what was read until the ClientHello is known, and that fails when its user takes nothing of what
/// waits for it.
pub(crate) struct Recorded {
    tcp: TcpStream,
    read: Vec<u8>,
    is_recording: bool,
    unread: Option<Pin<Box<Sleep>>>,
}

impl Recorded {
    const fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            read: Vec::new(),
            is_recording: true,
            unread: None,
        }
    }

    /// The result of a write, or a failure when it has been pending for too long.
    fn checked<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self
            .unread
            .get_or_insert_with(|| Box::pin(time::sleep(Timeouts::default().unread)));
        ready!(unread.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// The connection, and what was read from it.
    fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.tcp, self.read)
    }
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buffer))?;
        if self.is_recording {
            self.read.extend_from_slice(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        // The handshake is answered here, so that nobody else needs its beginning.
        if self.is_recording {
            (self.is_recording, self.read) = (false, Vec::new());
        }
        let written = Pin::new(&mut self.tcp).poll_write(cx, data);
        self.checked(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_recording {
            (self.is_recording, self.read) = (false, Vec::new());
        }
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, data);
        self.checked(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
