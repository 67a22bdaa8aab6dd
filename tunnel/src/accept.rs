//! The Upgrade at the end that accepts: who dials proves who it is, then the roles swap.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time,
};

use crate::{
    registry::{Tunnels, TunnelsFull},
    tunnel::Tunnel,
    wire::{
        HEADER_IDENTITY, HEADER_REPLICA, HEADER_REPLICAS, Identity, Malformed, PATH, PROTOCOL, UPGRADE_WITHIN,
    },
};

/// Longest head of the Upgrade request in bytes: a token of a ServiceAccount has about 1 KiB.
const HEAD_MAX: usize = 16 << 10;

/// Why who dials is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The request is not an Upgrade to the tunnel.
    #[error("{0}")]
    NotAnUpgrade(&'static str),
    /// The identity can't be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The token is missing, expired, or not for the gateway.
    #[error("the token was not accepted: {0}")]
    Unauthenticated(String),
    /// The token is not that of the identity.
    #[error("the token does not permit to connect as {0}")]
    Forbidden(Identity),
    /// Whether the token is valid could not be found out.
    #[error("the token could not be checked: {0}; try again")]
    Unknown(String),
    /// There are too many connections already.
    #[error(transparent)]
    Full(#[from] TunnelsFull),
}

impl Denied {
    const fn status(&self) -> StatusCode {
        match self {
            Self::NotAnUpgrade(_) | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Full(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// How often it is checked whether an identity may still be connected.
const CHECK_AGAIN: Duration = Duration::from_secs(300);

/// Decides who may connect.
pub trait Authenticate: Send + Sync + 'static {
    /// Whose token it was.
    type User: Send + Sync + 'static;

    /// Checks that a bearer token permits to connect as an identity.
    fn authenticate(
        &self,
        token: &str,
        identity: &Identity,
    ) -> impl Future<Output = Result<Self::User, Denied>> + Send;

    /// Checks again, for a connection that exists.
    fn permits(
        &self,
        user: &Self::User,
        identity: &Identity,
    ) -> impl Future<Output = Result<(), Denied>> + Send;

    /// Number of replicas of the gateway.
    fn replicas(&self) -> usize;
}

/// Who was let in, and the connection that it will have.
struct Admitted<U> {
    upgrade: OnUpgrade,
    identity: Identity,
    user: U,
}

/// What accepts connections.
#[derive(Debug)]
pub struct Acceptor<A> {
    /// Name of this replica.
    pub replica: String,
    /// Who may connect.
    pub authenticate: A,
    /// Where connections are added.
    pub tunnels: Arc<Tunnels>,
}

impl<A: Authenticate> Acceptor<A> {
    /// Serves a connection until it ends: the Upgrade, then streams that this end opens. `admitted` is called between both.
    pub async fn accept<I>(self: &Arc<Self>, io: I, admitted: impl FnOnce() + Send)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (upgraded, mut upgrade) = mpsc::channel(1);
        let service = service_fn(|request: Request<Incoming>| {
            let (acceptor, upgraded) = (self.clone(), upgraded.clone());
            async move { Ok::<_, Infallible>(acceptor.answer(request, &upgraded).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(UPGRADE_WITHIN)
            .max_buf_size(HEAD_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        match time::timeout(UPGRADE_WITHIN, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::debug!(%error, "an Upgrade to the tunnel failed"),
            Err(_) => return tracing::debug!("an Upgrade to the tunnel took too long"),
        }
        let Ok(Admitted {
            upgrade,
            identity,
            user,
        }) = upgrade.try_recv()
        else {
            return;
        };
        admitted();
        match upgrade.await {
            Ok(io) => self.run(TokioIo::new(io), &identity, &user).await,
            Err(error) => tracing::debug!(%error, %identity, "an Upgrade to the tunnel failed"),
        }
    }

    /// Answers the Upgrade request.
    async fn answer(
        &self,
        mut request: Request<Incoming>,
        upgraded: &mpsc::Sender<Admitted<A::User>>,
    ) -> Response<Full<bytes::Bytes>> {
        let (identity, user) = match self.admit(&request).await {
            Ok(admitted) => admitted,
            Err(denied) => {
                tracing::info!(%denied, "a connection to the tunnel was denied");
                let mut response = Response::new(Full::from(format!("{denied}\n")));
                *response.status_mut() = denied.status();
                return response;
            }
        };
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
        headers.insert(HEADER_REPLICAS, HeaderValue::from(self.authenticate.replicas()));
        if let Ok(replica) = HeaderValue::from_str(&self.replica) {
            headers.insert(HEADER_REPLICA, replica);
        }
        drop(upgraded.try_send(Admitted {
            upgrade: hyper::upgrade::on(&mut request),
            identity,
            user,
        }));
        response
    }

    /// Who dials, if it may connect.
    async fn admit(&self, request: &Request<Incoming>) -> Result<(Identity, A::User), Denied> {
        let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        if request.method() != Method::GET || request.uri().path() != PATH {
            return Err(Denied::NotAnUpgrade("only GET /tunnel is served here"));
        }
        if text("upgrade") != Some(PROTOCOL) {
            return Err(Denied::NotAnUpgrade(
                "the request must upgrade to leasehold-tunnel/1",
            ));
        }
        let identity: Identity = text(HEADER_IDENTITY).unwrap_or("").parse()?;
        let token = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Denied::Unauthenticated("there is no bearer token".into()))?;
        let user = self.authenticate.authenticate(token, &identity).await?;
        self.tunnels.has_place(&identity)?;
        Ok((identity, user))
    }

    /// Keeps the connection among the others until it ends.
    async fn run(
        &self,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        identity: &Identity,
        user: &A::User,
    ) {
        let (tunnel, run) = match Tunnel::begin(io).await {
            Ok(begun) => begun,
            Err(error) => return tracing::debug!(%error, %identity, "a connection does not speak HTTP/2"),
        };
        let tunnel = match self.tunnels.insert(identity, tunnel) {
            Ok(tunnel) => tunnel,
            Err(full) => return tracing::warn!(%identity, "{full}"),
        };
        tracing::info!(%identity, "connected");
        let revoked = async {
            loop {
                time::sleep(CHECK_AGAIN).await;
                // An answer that can't be had changes nothing.
                if let Err(Denied::Forbidden(_)) = self.authenticate.permits(user, identity).await {
                    return;
                }
            }
        };
        tokio::select! {
            () = run => {}
            () = revoked => tracing::warn!(%identity, "the permission to be connected was removed"),
        }
        self.tunnels.remove(identity, &tunnel);
        tracing::info!(%identity, "disconnected");
    }
}
