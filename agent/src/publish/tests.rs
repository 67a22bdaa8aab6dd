//! The requests that the API server receives.

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use leasehold_crds::provider::node::DeviceHealth;
use serde_json::{Value, json};
use tower_test::mock::Handle;

use super::*;

const PERIODS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(40));

type Server = Handle<Request<Body>, Response<Body>>;

fn publisher() -> (Publisher, Server) {
    let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    (Publisher::new(&client, "n1", "leasehold-system", PERIODS), server)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Answers one request, and returns its method, path, query and body.
async fn answer(server: &mut Server, status: StatusCode, body: Value) -> (Method, String, String, Value) {
    let (request, reply) = server.next_request().await.expect("a request");
    let (parts, sent) = request.into_parts();
    let sent = sent.collect_bytes().await.unwrap();
    reply.send_response(
        Response::builder()
            .status(status)
            .body(Body::from(body.to_string().into_bytes()))
            .unwrap(),
    );
    let uri = parts.uri;
    let sent = serde_json::from_slice(&sent).unwrap_or(Value::Null);
    (
        parts.method,
        uri.path().to_owned(),
        uri.query().unwrap_or_default().to_owned(),
        sent,
    )
}

fn gpu_node(status: Option<&GpuNodeStatus>) -> Value {
    json!({
        "apiVersion": "leasehold.dev/v1alpha1",
        "kind": "GpuNode",
        "metadata": {"name": "n1", "generation": 3},
        "spec": {"sell": true},
        "status": status,
    })
}

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/leasehold-system/leases/n1";

fn lease(annotations: &Value) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "n1", "annotations": annotations},
    })
}

/// Answers what a new agent reads: there is no Lease yet, and this GpuNode.
async fn first_reads(server: &mut Server, gpu_node: Value) {
    answer(server, StatusCode::NOT_FOUND, not_found()).await;
    answer(server, StatusCode::OK, gpu_node).await;
}

fn not_found() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"})
}

#[tokio::test]
async fn a_missing_gpu_node_is_created_and_owned_by_its_node() {
    let (mut publisher, mut server) = publisher();
    let serve = async {
        let (method, path, ..) = answer(&mut server, StatusCode::NOT_FOUND, not_found()).await;
        assert_eq!((method, path.as_str()), (Method::GET, LEASE));
        let (method, path, ..) = answer(&mut server, StatusCode::NOT_FOUND, not_found()).await;
        assert_eq!(
            (method, path.as_str()),
            (Method::GET, "/apis/leasehold.dev/v1alpha1/gpunodes/n1")
        );
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u-1"}});
        let (method, path, ..) = answer(&mut server, StatusCode::OK, node).await;
        assert_eq!((method, path.as_str()), (Method::GET, "/api/v1/nodes/n1"));
        let (method, path, query, sent) = answer(&mut server, StatusCode::CREATED, gpu_node(None)).await;
        assert_eq!(
            (method, path.as_str()),
            (Method::POST, "/apis/leasehold.dev/v1alpha1/gpunodes")
        );
        assert!(query.contains("fieldManager=leasehold-agent"), "{query}");
        assert_eq!(sent["metadata"]["ownerReferences"][0]["uid"], "u-1");
        assert_eq!(sent["spec"]["sell"], true);
    };
    let (had, ()) = tokio::join!(publisher.refresh(Timestamp::UNIX_EPOCH), serve);
    assert_eq!(had.unwrap(), GpuNodeStatus::default());
    assert_eq!(publisher.generation(), 3);
}

/// A publisher that has read the GpuNode as an administrator set it, its server, and that GpuNode.
async fn after_an_administrator() -> (Publisher, Server, Value) {
    let (mut publisher, mut server) = publisher();
    let mut kept = gpu_node(None);
    kept["spec"] = json!({"sell": false, "classOverride": "gb10-128g"});
    let serve = first_reads(&mut server, kept.clone());
    let (read, ()) = tokio::join!(publisher.refresh(Timestamp::UNIX_EPOCH), serve);
    read.unwrap();
    (publisher, server, kept)
}

#[tokio::test]
async fn a_gpu_node_that_is_created_again_keeps_what_its_administrator_set() {
    let (mut publisher, mut server, kept) = after_an_administrator().await;
    let serve = async {
        answer(&mut server, StatusCode::NOT_FOUND, not_found()).await;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u-2"}});
        answer(&mut server, StatusCode::OK, node).await;
        answer(&mut server, StatusCode::CREATED, kept.clone()).await
    };
    let (created, (.., sent)) = tokio::join!(publisher.refresh(Timestamp::UNIX_EPOCH), serve);
    created.unwrap();
    assert_eq!(sent["spec"], kept["spec"]);
}

/// A Node is deleted and registers again while its agent restarts.
#[tokio::test]
async fn what_an_administrator_set_survives_a_restart_of_the_agent() {
    let (publisher, mut server, kept) = after_an_administrator().await;
    let serve = answer(&mut server, StatusCode::OK, lease(&json!({})));
    let (renewed, (.., renewal)) = tokio::join!(publisher.renew(Timestamp::UNIX_EPOCH), serve);
    renewed.unwrap();
    let stored = lease(&renewal["metadata"]["annotations"]);

    let (mut restarted, mut server) = self::publisher();
    let serve = async {
        let denied = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "denied"});
        answer(&mut server, StatusCode::FORBIDDEN, denied).await
    };
    let (unknown, (_, path, ..)) = tokio::join!(restarted.refresh(at(61)), serve);
    unknown.unwrap_err();
    assert_eq!(path, LEASE, "nothing is created while it is unknown what was set");
    let serve = async {
        answer(&mut server, StatusCode::OK, stored).await;
        answer(&mut server, StatusCode::NOT_FOUND, not_found()).await;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u-2"}});
        answer(&mut server, StatusCode::OK, node).await;
        answer(&mut server, StatusCode::CREATED, kept.clone()).await
    };
    let (created, (method, .., sent)) = tokio::join!(restarted.refresh(at(61)), serve);
    created.unwrap();
    assert_eq!((method, &sent["spec"]), (Method::POST, &kept["spec"]));
}

#[tokio::test]
async fn a_status_is_written_on_change_only() {
    let (mut publisher, mut server) = publisher();
    let mut status = GpuNodeStatus {
        gpu_count: 4,
        ..GpuNodeStatus::default()
    };
    let serve = async {
        let (method, path, query, sent) = answer(&mut server, StatusCode::OK, gpu_node(None)).await;
        assert_eq!(
            (method, path.as_str()),
            (Method::PATCH, "/apis/leasehold.dev/v1alpha1/gpunodes/n1/status")
        );
        assert!(
            query.contains("fieldManager=leasehold-agent") && query.contains("force=true"),
            "{query}"
        );
        assert_eq!(sent["status"]["gpuCount"], 4);
    };
    let (written, ()) = tokio::join!(publisher.status(&status), serve);
    assert_eq!(written.unwrap(), Written::Now);
    assert_eq!(
        publisher.status(&status).await.unwrap(),
        Written::NotNeeded,
        "no request was sent"
    );

    status.devices.push(leasehold_crds::provider::node::GpuDevice {
        health: DeviceHealth::Lost,
        ..Default::default()
    });
    let serve = answer(&mut server, StatusCode::OK, gpu_node(None));
    let (written, (.., sent)) = tokio::join!(publisher.status(&status), serve);
    assert_eq!(
        (written.unwrap(), &sent["status"]["devices"][0]["health"]),
        (Written::Now, &json!("Lost"))
    );
}

#[tokio::test]
async fn a_wiped_status_is_written_again_and_a_failed_write_is_retried() {
    let (mut publisher, mut server) = publisher();
    let status = GpuNodeStatus {
        gpu_count: 4,
        ..GpuNodeStatus::default()
    };
    let serve = first_reads(&mut server, gpu_node(Some(&status)));
    let (had, ()) = tokio::join!(publisher.refresh(Timestamp::UNIX_EPOCH), serve);
    assert_eq!(had.unwrap(), status, "the status of an earlier run");
    assert_eq!(publisher.status(&status).await.unwrap(), Written::NotNeeded);

    let serve = answer(&mut server, StatusCode::OK, gpu_node(None));
    let (had, _) = tokio::join!(publisher.refresh(Timestamp::UNIX_EPOCH), serve);
    had.unwrap();
    let serve = answer(&mut server, StatusCode::FORBIDDEN, not_found());
    let (failed, _) = tokio::join!(publisher.status(&status), serve);
    assert!(format!("{:#}", failed.unwrap_err()).contains("write the GpuNode's status"));
    let serve = answer(&mut server, StatusCode::OK, gpu_node(None));
    let (written, _) = tokio::join!(publisher.status(&status), serve);
    assert_eq!(written.unwrap(), Written::Now);
}

#[tokio::test]
async fn the_lease_is_renewed_under_the_node_s_name() {
    let (mut publisher, mut server) = publisher();
    let serve = first_reads(&mut server, gpu_node(None));
    let (read, ()) = tokio::join!(publisher.refresh(Timestamp::UNIX_EPOCH), serve);
    read.unwrap();
    let now = Timestamp::from_microsecond(1_700_000_000_250_000).unwrap();
    let serve = answer(&mut server, StatusCode::OK, lease(&json!({})));
    let (renewed, (method, path, _, sent)) = tokio::join!(publisher.renew(now), serve);
    renewed.unwrap();
    assert_eq!(method, Method::PATCH);
    assert_eq!(path, LEASE);
    assert_eq!(sent["spec"]["leaseDurationSeconds"], 40);
    // Two renewals within one second have different times, so that a watcher sees both.
    assert_eq!(sent["spec"]["renewTime"], "2023-11-14T22:13:20.250000Z", "{sent}");
}

/// What the Lease shows after a start of the agent at a second: the last report before, and the first one afterwards.
async fn shown_after_start(stored: Value, second: i64) -> (Value, Value, Value) {
    let (mut publisher, mut server) = publisher();
    let serve = async {
        answer(&mut server, StatusCode::OK, stored).await;
        answer(&mut server, StatusCode::OK, gpu_node(None)).await;
    };
    let (read, ()) = tokio::join!(publisher.refresh(at(second)), serve);
    read.unwrap();
    let serve = answer(&mut server, StatusCode::OK, lease(&json!({})));
    let (renewed, (.., sent)) = tokio::join!(publisher.renew(at(second)), serve);
    renewed.unwrap();
    let last = sent["metadata"]["annotations"][ANNOTATION_LAST_REPORT].clone();
    let first = sent["spec"]["acquireTime"].clone();
    (last, first, sent)
}

#[tokio::test]
async fn the_lease_shows_the_last_report_before_a_start() {
    let mut stored = lease(&json!({}));
    stored["spec"] = json!({"renewTime": "1970-01-01T00:01:40.250000Z"});
    let (last, first, sent) = shown_after_start(stored.clone(), 107).await;
    assert_eq!((last, first), (Value::Null, Value::Null), "no report was missed");
    assert!(sent["spec"].get("acquireTime").is_none(), "{sent}");

    let (last, first, restarted) = shown_after_start(stored, 130).await;
    let shown = (
        json!("1970-01-01T00:01:40.25Z"),
        json!("1970-01-01T00:02:10.000000Z"),
    );
    assert_eq!((last, first), shown);
    // It is shown until the agent is silent again.
    let (last, first, _) = shown_after_start(restarted.clone(), 139).await;
    assert_eq!((last, first), shown);
    let (last, first, _) = shown_after_start(restarted, 150).await;
    let shown = (
        json!("1970-01-01T00:02:10Z"),
        json!("1970-01-01T00:02:30.000000Z"),
    );
    assert_eq!((last, first), shown);
}
