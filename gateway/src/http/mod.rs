//! Requests of users, on their way to the program of a lease.

mod access;
mod headers;
pub(crate) mod held;
mod host;
pub(crate) mod upstream;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::Authority};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use leasehold_crds::lease::workload::PortTls;
use leasehold_planner::gateway::routes::Route;
use leasehold_telemetry::metrics::{Answer, Gateway as Metrics};
use leasehold_tunnel::{OpenError, splice, splice::Timeouts};
use tokio::time;

use self::{
    access::Access,
    held::Held,
    host::HostError,
    upstream::{Unreachable, Upstream},
};
use crate::routes::CurrentRoutes;

/// How long a program may take to begin its answer, from the first byte of the request.
const ANSWER_WITHIN: Duration = Duration::from_secs(3600);

/// A body of the program, or a text of the gateway.
pub(crate) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// The place of a connection among those of all users, and its count.
pub(crate) type Place = Arc<(
    tokio::sync::OwnedSemaphorePermit,
    leasehold_telemetry::metrics::Open,
)>;

/// Passes requests on.
pub(crate) struct Proxy {
    pub(crate) domain: String,
    pub(crate) routes: Arc<CurrentRoutes>,
    pub(crate) upstream: Upstream,
    pub(crate) metrics: Metrics,
}

/// Why the gateway answers itself.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("no running lease has this name; `status.endpoints` of the lease lists its URLs")]
    NoRoute,
    #[error("TLS of this name ends at the program: open a connection of its own to it")]
    Passthrough,
    #[error(
        "the lease publishes no token for its URLs: set spec.access.tokenSecret, or access: Public at the port"
    )]
    NoToken,
    #[error(
        "the token is missing or wrong: send it in the header Leasehold-Token, or once in the query leasehold-token"
    )]
    Denied,
    #[error("{0} is not served here")]
    Method(Method),
    #[error("{0}")]
    Unreachable(#[from] Unreachable),
    #[error("the program has not begun to answer within {} minutes", ANSWER_WITHIN.as_secs() / 60)]
    TooSlow,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Host(HostError::Ambiguous) => StatusCode::BAD_REQUEST,
            Self::Host(HostError::Foreign) | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Passthrough => StatusCode::MISDIRECTED_REQUEST,
            Self::NoToken => StatusCode::FORBIDDEN,
            Self::Denied => StatusCode::UNAUTHORIZED,
            Self::Method(_) => StatusCode::NOT_IMPLEMENTED,
            Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
            Self::Unreachable(Unreachable::Limit(_)) => StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable(Unreachable::Http(_)) => StatusCode::BAD_GATEWAY,
            Self::Unreachable(Unreachable::Tunnel(OpenError::Refused(refused))) => match refused.status {
                status @ (StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::GATEWAY_TIMEOUT) => status,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
            Self::Unreachable(Unreachable::Tunnel(_)) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The answer as a text.
    fn response(&self) -> Response<Body> {
        let mut response = Response::new(text(format!("{self}\n")));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.status() {
            StatusCode::UNAUTHORIZED => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Leasehold-Token"),
                );
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

fn text(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

impl Proxy {
    /// The route of a host, in any of its forms.
    pub(crate) fn route_of(&self, host: &str) -> Option<Route> {
        host::label(host, &self.domain)
            .ok()
            .and_then(|label| self.routes.get(&label))
    }

    /// Answers one request.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        user: SocketAddr,
        place: Place,
    ) -> Response<Body> {
        match self.pass(request, user, place).await {
            Ok(response) => {
                self.metrics.answered(Answer::of(response.status().as_u16()));
                response
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "a request was not passed on");
                self.metrics.answered(Answer::Refused);
                refusal.response()
            }
        }
    }

    async fn pass(
        &self,
        mut request: Request<Incoming>,
        user: SocketAddr,
        place: Place,
    ) -> Result<Response<Body>, Refusal> {
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(Refusal::Method(request.method().clone()));
        }
        let host = host::of_request(request.uri(), request.headers())?;
        let label = host::label(host.host(), &self.domain)?;
        let route = self.routes.get(&label).ok_or(Refusal::NoRoute)?;
        if route.tls == PortTls::Passthrough {
            return Err(Refusal::Passthrough);
        }
        let access = {
            let (method, mut uri) = (request.method().clone(), std::mem::take(request.uri_mut()));
            let access = access::check(&route, (&method, &host), &mut uri, request.headers_mut());
            *request.uri_mut() = uri;
            access
        };
        match access {
            Access::Granted => {}
            Access::Exchanged { location, cookie } => return Ok(exchanged(location, cookie)),
            Access::NoToken => return Err(Refusal::NoToken),
            Access::Denied => return Err(Refusal::Denied),
        }
        if headers::asks_for_websocket(request.headers()) && request.version() == http::Version::HTTP_11 {
            return self.websocket(&route, request, (user, &host), place).await;
        }
        let is_grpc = headers::is_grpc(request.headers());
        outgoing(request.headers_mut(), user, &host);
        let answer = async {
            if is_grpc {
                request
                    .headers_mut()
                    .insert(header::TE, HeaderValue::from_static("trailers"));
                request.headers_mut().remove(header::HOST);
                *request.uri_mut() = absolute(&host, request.uri());
                *request.version_mut() = http::Version::HTTP_2;
                let (response, place) = self.upstream.http2(&route, request).await?;
                Ok::<_, Unreachable>(response.map(|body| Held::new(body, place).boxed_unsync()))
            } else {
                headers::join_cookies(request.headers_mut());
                let response = self.upstream.http1(&route, request).await?;
                Ok(response.map(BodyExt::boxed_unsync))
            }
        };
        let mut response = time::timeout(ANSWER_WITHIN, answer)
            .await
            .map_err(|_| Refusal::TooSlow)??;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Unreachable::Http("it switches to a protocol that was not asked for".into()).into());
        }
        headers::remove_hop_by_hop(response.headers_mut());
        Ok(response)
    }

    /// Passes a WebSocket on: its handshake as a request, then its bytes.
    async fn websocket(
        &self,
        route: &Route,
        mut request: Request<Incoming>,
        (user, host): (SocketAddr, &Authority),
        place: Place,
    ) -> Result<Response<Body>, Refusal> {
        let of_user = hyper::upgrade::on(&mut request);
        outgoing(request.headers_mut(), user, host);
        ask_for_websocket(request.headers_mut());
        let answer = time::timeout(ANSWER_WITHIN, self.upstream.http1(route, request)).await;
        let mut response = answer.map_err(|_| Refusal::TooSlow)??;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::remove_hop_by_hop(response.headers_mut());
            return Ok(response.map(BodyExt::boxed_unsync));
        }
        let of_program = hyper::upgrade::on(&mut response);
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            if let (Ok(of_user), Ok(of_program)) = tokio::join!(of_user, of_program) {
                let (mut of_user, mut of_program) = (TokioIo::new(of_user), TokioIo::new(of_program));
                let (moved, _) = splice(&mut of_user, &mut of_program, Timeouts::default()).await;
                drop(place);
                metrics.moved(moved.forth, moved.back);
            }
        });
        let mut switched = Response::new(text(String::new()));
        *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        headers::remove_hop_by_hop(response.headers_mut());
        *switched.headers_mut() = std::mem::take(response.headers_mut());
        ask_for_websocket(switched.headers_mut());
        Ok(switched)
    }
}

/// Headers of a request as the program gets them.
fn outgoing(headers: &mut HeaderMap, user: SocketAddr, host: &Authority) {
    headers::remove_hop_by_hop(headers);
    headers::set_forwarded(headers, user.ip(), host);
}

fn ask_for_websocket(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// The target of a request of HTTP/2.
fn absolute(host: &Authority, uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    Uri::builder()
        .scheme("http")
        .authority(host.clone())
        .path_and_query(path)
        .build()
        .unwrap_or_default()
}

/// Sends the browser to the place without the token.
fn exchanged(location: HeaderValue, cookie: HeaderValue) -> Response<Body> {
    let mut response = Response::new(text(String::new()));
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::SET_COOKIE, cookie);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
