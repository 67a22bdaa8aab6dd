//! The end of a container's log, as far as it can be read. A log is text of the tenant: any bytes, of any length, from a
//! kubelet that may not answer.

use futures::{AsyncReadExt as _, TryFutureExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::LogParams};
use leasehold_crds::shared::text;
use leasehold_planner::provider::workload::CONTAINER;

use super::observe::API_DEADLINE;

/// The tail that is kept, in bytes.
const TAIL_BYTES: usize = 4096;
/// Lines that are requested: a line of a kubelet's log file has at most 16 KiB.
const LINES: i64 = 60;

/// The last 4 KiB of the log of a pod's main container as printable text, read within [`API_DEADLINE`]; what had come by
/// then if the log was not read to its end, and nothing if it can't be read.
pub(super) async fn tail(client: &Client, namespace: &str, pod: &str) -> String {
    let mut kept = Vec::new();
    let read = read_end(client, namespace, pod, &mut kept);
    match tokio::time::timeout(API_DEADLINE, read).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(namespace, pod, %error, "the log of a job can't be read"),
        Err(_) => tracing::info!(namespace, pod, "the log of a job was not read in time"),
    }
    text::tail(&kept, TAIL_BYTES)
}

/// Reads a log to its end and keeps the last bytes: one more than the tail has, so that it shows where it is cut.
async fn read_end(client: &Client, namespace: &str, pod: &str, kept: &mut Vec<u8>) -> anyhow::Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let params = LogParams {
        container: Some(CONTAINER.into()),
        tail_lines: Some(LINES),
        ..LogParams::default()
    };
    let log = pods.log_stream(pod, &params).map_err(anyhow::Error::from).await?;
    let mut log = std::pin::pin!(log);
    let mut buffer = vec![0; TAIL_BYTES];
    loop {
        let read = log.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(TAIL_BYTES + 1);
        kept.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response, StatusCode};
    use kube::client::Body;

    use super::*;

    /// The tail of a log that the API server answers with these bytes.
    async fn of(status: StatusCode, log: Vec<u8>) -> String {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let serve = async {
            let (request, reply) = server.next_request().await.unwrap();
            assert_eq!(
                request.uri().path(),
                "/api/v1/namespaces/lease-x/pods/lease-0/log"
            );
            let query = request.uri().query().unwrap();
            assert!(
                query.contains("container=main") && query.contains("tailLines=60"),
                "{query}"
            );
            reply.send_response(Response::builder().status(status).body(Body::from(log)).unwrap());
        };
        tokio::join!(tail(&client, "lease-x", "lease-0"), serve).0
    }

    #[tokio::test]
    async fn a_log_that_is_not_utf_8_is_a_tail_with_replaced_bytes() {
        let log = of(StatusCode::OK, b"epoch 1 \xFF\xFE\n".to_vec()).await;
        assert_eq!(log, "epoch 1 \u{FFFD}\u{FFFD}\n");
        // A progress bar of multi-byte characters, cut in the middle of one.
        let bar = "█".repeat(5000).into_bytes();
        let log = of(StatusCode::OK, bar).await;
        assert_eq!(log, "█".repeat(4096 / 3));
    }

    #[tokio::test]
    async fn a_log_that_can_t_be_read_is_empty() {
        let status = br#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"dial tcp: no route to host","code":500}"#;
        for code in [
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::NOT_FOUND,
            StatusCode::BAD_GATEWAY,
        ] {
            assert_eq!(of(code, status.to_vec()).await, "");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_never_comes_is_empty() {
        let (service, _server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        assert_eq!(tail(&client, "lease-x", "lease-0").await, "");
    }
}
