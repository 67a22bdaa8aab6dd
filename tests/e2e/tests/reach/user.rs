//! A user of the URLs of a lease.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasehold_e2e::GatewayFixture;

use crate::TOKEN;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// The hosts of the ports of one lease.
pub(crate) struct User {
    pub(crate) gateway: GatewayFixture,
    pub(crate) address: SocketAddr,
    /// It needs the token.
    pub(crate) host: String,
    /// Everybody can open it.
    pub(crate) open: String,
    /// No program listens at its port.
    pub(crate) closed: String,
    /// Its connections are passed through.
    pub(crate) raw: String,
}

impl User {
    /// A request with the token.
    pub(crate) fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("leasehold-token", TOKEN)
    }

    /// A connection of HTTP/1.1 to a host.
    pub(crate) async fn http1(&self, host: &str) -> anyhow::Result<http1::SendRequest<Body>> {
        let tls = self.gateway.connect(self.address, host, "http/1.1").await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    /// A connection of HTTP/2 to a host.
    pub(crate) async fn http2(&self, host: &str) -> anyhow::Result<http2::SendRequest<Body>> {
        let tls = self.gateway.connect(self.address, host, "h2").await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .handshake(TokioIo::new(tls))
            .await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    /// Sends one request on a connection of its own to a host.
    pub(crate) async fn send(
        &self,
        host: &str,
        request: Request<Body>,
    ) -> anyhow::Result<Response<Incoming>> {
        Ok(self.http1(host).await?.send_request(request).await?)
    }

    /// Status and text of the answer to one request.
    pub(crate) async fn ask(
        &self,
        host: &str,
        request: http::request::Builder,
    ) -> anyhow::Result<(u16, String)> {
        let response = self.send(host, request.body(empty())?).await?;
        let status = response.status().as_u16();
        Ok((status, text(response).await?))
    }
}

/// A request without a body.
pub(crate) fn empty() -> Body {
    Full::default().boxed_unsync()
}

/// The body as a text.
pub(crate) async fn text(response: Response<Incoming>) -> anyhow::Result<String> {
    let body = response.into_body().collect().await.context("read the body")?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}
