//! HTTP transport to the RPC endpoint, with a deadline for every request and a size limit for every answer. The URL
//! appears in no error and no span. (alloy's own HTTP transport puts the URL, which contains the API key, into its
//! spans.)

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use alloy::{
    rpc::json_rpc::{RequestPacket, ResponsePacket},
    transports::{
        TransportError, TransportErrorKind, TransportFut,
        http::reqwest::{self, Url, header, redirect},
    },
};
use leasehold_planner::ports::PaymentError;
use tower::Service;

/// Longer answers are refused.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// How long idle connections are kept. One that died without a FIN would otherwise be noticed only when it is used.
const IDLE: Duration = Duration::from_secs(10);

/// Why there is no answer. The text contains neither host nor URL.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// Nothing was sent, so no transaction can be pending.
    #[error("no connection to the RPC endpoint: {0}")]
    NotConnected(String),
    #[error("no answer from the RPC endpoint within {0:?}")]
    Late(Duration),
    #[error("the connection to the RPC endpoint failed: {0}")]
    Broken(String),
    #[error("the RPC endpoint answered HTTP {0}{hint}", hint = hint(*.0))]
    Status(u16),
    #[error("the RPC endpoint's answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

const fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": the API key is wrong or has no access",
        404 => ": there is no JSON-RPC endpoint at this URL",
        429 => ": too many requests for the plan of this API key",
        _ => "",
    }
}

#[derive(Clone)]
pub(crate) struct HttpTransport {
    client: reqwest::Client,
    url: Arc<Url>,
    deadline: Duration,
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransport")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl HttpTransport {
    /// Creates a transport, which connects with its first request.
    pub(crate) fn new(url: &str, deadline: Duration) -> Result<Self, PaymentError> {
        let url = Url::parse(url)
            .ok()
            .filter(|u| matches!(u.scheme(), "http" | "https"))
            .ok_or_else(|| PaymentError::Malformed("the RPC URL is not an http:// or https:// URL".into()))?;
        let client = reqwest::Client::builder()
            .connect_timeout(deadline)
            // A call that times out closes its connection. With HTTP/2 it would close a stream only, and all later calls would
            // use the same dead connection.
            .http1_only()
            .pool_idle_timeout(IDLE)
            .tcp_keepalive(IDLE)
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|e| {
                PaymentError::Malformed(format!(
                    "cannot create the HTTP client: {}",
                    innermost(&e.without_url())
                ))
            })?;
        Ok(Self {
            client,
            url: Arc::new(url),
            deadline,
        })
    }

    /// Whether the endpoint is on this machine, where frequent polling is cheap.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"))
    }

    /// The parts of the URL that an endpoint might repeat in its messages.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let url = &self.url;
        let mut parts = vec![url.as_str().trim_end_matches('/').to_owned()];
        parts.extend(url.password().map(str::to_owned));
        parts.extend(url.path_segments().into_iter().flatten().map(str::to_owned));
        parts.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
        parts.retain(|part| part.len() >= 8);
        parts
    }

    async fn exchange(self, request: RequestPacket) -> Result<ResponsePacket, TransportError> {
        let body = serde_json::to_vec(&request).map_err(TransportError::ser_err)?;
        let exchange = async {
            let mut response = self
                .client
                .post(self.url.as_str())
                .header(header::CONTENT_TYPE, "application/json")
                .body(body)
                .send()
                .await
                .map_err(http_error)?;
            let status = response.status();
            let mut answer = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(http_error)? {
                if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                    return Err(HttpError::TooLong);
                }
                answer.extend_from_slice(&chunk);
            }
            Ok((status, answer))
        };
        let (status, answer) = tokio::time::timeout(self.deadline, exchange)
            .await
            .unwrap_or(Err(HttpError::Late(self.deadline)))
            .map_err(TransportErrorKind::custom)?;
        // Some endpoints send a valid JSON-RPC error with an HTTP error status.
        match serde_json::from_slice(&answer) {
            Ok(packet) => Ok(packet),
            Err(_) if !status.is_success() => {
                Err(TransportErrorKind::custom(HttpError::Status(status.as_u16())))
            }
            Err(error) => Err(TransportError::deser_err(error, "")),
        }
    }
}

impl Service<RequestPacket> for HttpTransport {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RequestPacket) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

fn http_error(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    let reason = innermost(&error);
    if error.is_connect() {
        HttpError::NotConnected(reason)
    } else {
        HttpError::Broken(reason)
    }
}

/// Returns the innermost cause: "Connection refused" rather than "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
