//! What a tenant or a provider may not write, sent to a real API server with the chart's kinds: every one is refused, and
//! the refusal names the field. The same manifests without the fault are accepted, so that the check can fail.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

mod changes;
mod good;
mod leases;
mod providers;
mod row;
#[path = "../served/mod.rs"]
mod served;

use std::time::{Duration, Instant};

use http::{Request, header};
use kube::{Client, core::Status};
use leasehold_testcluster::Unavailable;
use row::Row;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing is kept, and a field that nobody knows is a fault.
const TRIAL: &str = "fieldValidation=Strict&fieldManager=trial&dryRun=All";

/// Where objects of a kind are.
fn collection(object: &Value) -> String {
    let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/apis/leasehold.dev/v1alpha1/namespaces/{namespace}/{plural}"),
        None => format!("/apis/leasehold.dev/v1alpha1/{plural}"),
    }
}

/// The server's answer: the object as it would be, or why not.
async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    object: &Value,
) -> Result<Value, Box<Status>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, kind)
        .body(object.to_string().into_bytes())
        .unwrap();
    match client.request::<Value>(request).await {
        Ok(object) => Ok(object),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("{method} {path}: {error}"),
    }
}

async fn create(client: &Client, object: &Value, parameters: &str) -> Result<Value, Box<Status>> {
    let path = format!("{}?{parameters}", collection(object));
    send(client, "POST", &path, "application/json", object).await
}

/// Server-side apply.
async fn apply(client: &Client, object: &Value) -> Result<Value, Box<Status>> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let path = format!("{}/{name}?{TRIAL}&force=true", collection(object));
    send(client, "PATCH", &path, "application/apply-patch+yaml", object).await
}

async fn replace(client: &Client, object: &Value) -> Result<Value, Box<Status>> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let path = format!("{}/{name}?{TRIAL}", collection(object));
    send(client, "PUT", &path, "application/json", object).await
}

/// Whether a person who reads the message knows which field it is about: `spec.nodes: …`, `"spec.colour"`,
/// `spec.ports[1].name: …`.
fn names(message: &str, field: &str) -> bool {
    message
        .match_indices(field)
        .any(|(at, _)| matches!(message[at + field.len()..].chars().next(), Some(':' | '"' | '[')))
}

/// Whether it is a refusal. What server-side apply can't even read as the kind is 500 to Kubernetes, and kept as little.
fn is_refusal(status: &Status) -> bool {
    match status.code {
        400 | 413 | 422 => true,
        500 => status.message.starts_with("failed to create typed patch object"),
        _ => false,
    }
}

/// What is wrong with an answer to a bad manifest.
fn fault(row: &Row, way: &str, answer: Result<Value, Box<Status>>) -> Option<String> {
    let what = row.what;
    match answer {
        Ok(_) => Some(format!("{what}: {way}: accepted")),
        Err(status) if !is_refusal(&status) => {
            Some(format!("{what}: {way}: {} {}", status.code, status.message))
        }
        Err(status) if !names(&status.message, &row.field) => Some(format!(
            "{what}: {way}: does not name {}: {}",
            row.field, status.message
        )),
        Err(_) => None,
    }
}

/// Every good manifest, accepted; the first waits until the kinds are served.
async fn the_good_are_accepted(client: &Client) {
    let deadline = Instant::now() + PATIENCE;
    for object in good::all() {
        loop {
            match create(client, &object, TRIAL).await {
                Ok(_) => break,
                Err(status) => assert!(
                    status.code == 404 && Instant::now() < deadline,
                    "{object}: {}",
                    status.message
                ),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if let Err(status) = apply(client, &object).await {
            panic!("{object}: {}", status.message);
        }
    }
}

/// Manifests refused when they are made.
async fn made(client: &Client) -> (usize, Vec<String>) {
    let rows: Vec<Row> = leases::rows().into_iter().chain(providers::rows()).collect();
    let mut faults = Vec::new();
    for row in &rows {
        let object = row.manifest();
        faults.extend(fault(row, "create", create(client, &object, TRIAL).await));
        // The path of a patch has the name in it: another one is another matter.
        if !row.touches("/metadata") {
            faults.extend(fault(row, "apply", apply(client, &object).await));
        }
    }
    (rows.len(), faults)
}

/// Changes of what is there, refused; and those that are allowed, allowed.
async fn changed(client: &Client) -> (usize, Vec<String>) {
    let mut faults = Vec::new();
    for object in good::all() {
        create(client, &object, "fieldValidation=Strict").await.unwrap();
    }
    let stored = async |object: &Value| {
        let path = format!(
            "{}/{}",
            collection(object),
            object["metadata"]["name"].as_str().unwrap()
        );
        send(client, "GET", &path, "application/json", &json!(null))
            .await
            .unwrap()
    };
    for object in good::all() {
        replace(client, &stored(&object).await).await.unwrap();
    }
    let refused = changes::refused();
    for row in &refused {
        let object = row.edited(stored(&row.good).await);
        faults.extend(fault(row, "update", replace(client, &object).await));
    }
    for row in changes::allowed() {
        let object = row.edited(stored(&row.good).await);
        if let Err(status) = replace(client, &object).await {
            faults.push(format!("{}: {}", row.what, status.message));
        }
    }
    (refused.len(), faults)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_may_write_is_refused_by_name() {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let cluster = served::kinds("bad-manifests").await;
    let client = cluster.client();
    the_good_are_accepted(&client).await;
    let (made, mut faults) = made(&client).await;
    let (changed, more) = changed(&client).await;
    faults.extend(more);
    cluster.down().await.unwrap();
    eprintln!("{made} manifests and {changed} changes were tried");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(made + changed >= 40);
}
