//! The Upgrade at the end that dials.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time};
use tokio_rustls::TlsConnector;

use crate::tls::{TlsError, TlsSource};
use crate::wire::{
    HEADER_IDENTITY, HEADER_REPLICA, HEADER_REPLICAS, Identity, PATH, PROTOCOL, UPGRADE_WITHIN,
};

/// How who dials shows who it is, and whom it expects.
#[derive(Clone)]
pub struct Credentials {
    /// TLS, asked for each connection.
    pub tls: TlsSource,
    /// Name in the certificate of the gateway.
    pub server_name: ServerName<'static>,
    /// Who dials.
    pub identity: Identity,
    /// Where the bearer token comes from. It is asked for each connection, as tokens expire.
    pub token: TokenSource,
}

/// Returns a bearer token, or why there is none.
pub type TokenSource = Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// The content of a file, which is replaced before its token expires.
#[must_use]
pub fn token_file(path: PathBuf) -> TokenSource {
    Arc::new(move || {
        let path = path.clone();
        async move {
            let token = tokio::fs::read_to_string(&path).await;
            token.map_err(|error| format!("read {}: {error}", path.display()))
        }
        .boxed()
    })
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("server_name", &self.server_name)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is no token.
    #[error("no token: {0}")]
    Token(String),
    /// TLS can't be used.
    #[error(transparent)]
    Authority(#[from] TlsError),
    /// No TCP connection.
    #[error("connect: {0}")]
    Connect(io::Error),
    /// The gateway's certificate is not the expected one, or it does not speak TLS 1.3.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The gateway does not speak HTTP.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The gateway refused, with the status and its reason.
    #[error("the gateway refused the connection: {0}: {1}")]
    Refused(StatusCode, String),
    /// It took too long.
    #[error("no connection within {} s", UPGRADE_WITHIN.as_secs())]
    TooSlow,
}

/// A connection whose roles are about to swap.
#[derive(Debug)]
pub struct Dialed {
    /// The connection, on which this end serves HTTP/2.
    pub io: TokioIo<Upgraded>,
    /// Name of the replica that accepted.
    pub replica: String,
    /// How many replicas there are, at least 1.
    pub replicas: usize,
}

/// Connects to a replica of the gateway.
///
/// # Errors
/// When the connection fails, or the gateway refuses it.
pub async fn dial(address: SocketAddr, credentials: &Credentials) -> Result<Dialed, DialError> {
    time::timeout(UPGRADE_WITHIN, connect(address, credentials))
        .await
        .unwrap_or(Err(DialError::TooSlow))
}

async fn connect(address: SocketAddr, credentials: &Credentials) -> Result<Dialed, DialError> {
    let token = (credentials.token)().await.map_err(DialError::Token)?;
    let tcp = TcpStream::connect(address).await.map_err(DialError::Connect)?;
    tcp.set_nodelay(true).map_err(DialError::Connect)?;
    let tls = TlsConnector::from((credentials.tls)()?)
        .connect(credentials.server_name.clone(), tcp)
        .await
        .map_err(DialError::Tls)?;
    let (mut requests, connection) = http1::handshake(TokioIo::new(tls)).await?;
    // It ends with the connection, or hands it over.
    tokio::spawn(connection.with_upgrades());
    let mut authorization = header::HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| DialError::Token("it has characters that no token has".into()))?;
    authorization.set_sensitive(true);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static(PATH);
    let headers = request.headers_mut();
    headers.insert(header::AUTHORIZATION, authorization);
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static(PROTOCOL));
    for (name, value) in [
        (header::HOST, credentials.server_name.to_str().into_owned()),
        (
            header::HeaderName::from_static(HEADER_IDENTITY),
            credentials.identity.to_string(),
        ),
    ] {
        // Names and labels are visible ASCII.
        if let Ok(value) = header::HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    let response = requests.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = response.status();
        let body = Limited::new(response.into_body(), 512).collect().await;
        let reason = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(DialError::Refused(
            status,
            String::from_utf8_lossy(&reason).trim().to_owned(),
        ));
    }
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let replica = text(HEADER_REPLICA).unwrap_or("").to_owned();
    let replicas = text(HEADER_REPLICAS)
        .and_then(|number| number.parse().ok())
        .unwrap_or(1);
    Ok(Dialed {
        io: TokioIo::new(hyper::upgrade::on(response).await?),
        replica,
        replicas: replicas.max(1),
    })
}
