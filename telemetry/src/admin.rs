//! The HTTP server for probes and metrics: `/metrics`, `/healthz`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Health, Metrics};

/// A running admin server. It continues after the shutdown signal, so that probes are answered while the process
/// finishes. [`Server::stop`] or a drop ends it.
#[derive(Debug)]
pub struct Server {
    /// The address it listens on.
    pub address: SocketAddr,
    task: JoinHandle<()>,
    stopped: CancellationToken,
}

impl Server {
    /// Finishes running requests, then ends.
    pub async fn stop(mut self) {
        self.stopped.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::warn!(%error, "the admin server ended with an error");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

/// Serves on `address`. Once `shutdown` is cancelled, the process reports itself as not ready.
///
/// # Errors
///
/// If it cannot listen on the address.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    health: Health,
    shutdown: CancellationToken,
) -> Result<Server> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}: choose another --admin-address"))?;
    let address = listener.local_addr().context("read the admin server's address")?;
    tracing::info!(%address, "serving /metrics, /healthz and /readyz");

    let routes = Router::new()
        .route("/metrics", get(render))
        .with_state(metrics)
        .merge(
            Router::new()
                .route("/healthz", get(live))
                .route("/readyz", get(ready))
                .with_state(health.clone()),
        );
    let stopped = CancellationToken::new();
    tokio::spawn({
        let stopped = stopped.clone();
        async move {
            tokio::select! {
                () = shutdown.cancelled() => health.end(),
                () = stopped.cancelled() => {}
            }
        }
    });
    let task = tokio::spawn({
        let stopped = stopped.clone();
        async move {
            let served = axum::serve(listener, routes)
                .with_graceful_shutdown(stopped.cancelled_owned())
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the admin server failed");
            }
        }
    });
    Ok(Server {
        address,
        task,
        stopped,
    })
}

async fn render(State(metrics): State<Arc<Metrics>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn live(State(health): State<Health>) -> Response {
    let report = health.liveness();
    (status(report.is_good()), report.text()).into_response()
}

async fn ready(State(health): State<Health>) -> Response {
    let report = health.readiness();
    (status(report.is_good()), report.text()).into_response()
}

const fn status(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    #[tokio::test]
    async fn probes_report_the_current_state() {
        let loopback = "127.0.0.1:0".parse().unwrap();
        let (health, shutdown) = (Health::new(), CancellationToken::new());
        let heartbeat = health.heartbeat("orphans", Duration::from_secs(60));
        let cache = health.latch("cache");
        let mut metrics = Metrics::new();
        let leader = crate::metrics::Leader::register(&mut metrics);
        leader.set(true);
        let server = serve(loopback, Arc::new(metrics), health.clone(), shutdown.clone())
            .await
            .unwrap();
        let address = server.address;

        assert_eq!(
            get(address, "/healthz").await,
            (200, "[+]orphans ok\nok\n".to_owned())
        );
        assert_eq!(get(address, "/readyz").await.0, 503);
        cache.set();
        assert_eq!(
            get(address, "/readyz").await,
            (200, "[+]cache ok\nok\n".to_owned())
        );
        assert!(get(address, "/metrics").await.1.contains("leasehold_leader 1\n"));
        assert_eq!(get(address, "/").await.0, 404);

        shutdown.cancel();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while get(address, "/readyz").await.0 != 503 {
            assert!(
                tokio::time::Instant::now() < deadline,
                "not ready after shutdown began"
            );
        }
        assert_eq!(
            get(address, "/healthz").await.0,
            200,
            "probes are answered while the process ends"
        );
        heartbeat.finish();
        server.stop().await;
        assert!(
            TcpStream::connect(address).await.is_err(),
            "the server no longer listens"
        );
    }

    #[tokio::test]
    async fn an_address_in_use_is_refused_with_the_flag_to_change() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = serve(address, Arc::default(), Health::new(), CancellationToken::new())
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains("--admin-address"), "{error:#}");
    }
}
