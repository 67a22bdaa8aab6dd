//! Requests as anybody may send them, and what came of them.

use std::time::{Duration, Instant};

use http::{Request, header};
use kube::Client;
use serde_json::Value;

use crate::installation::PATIENCE;

/// Sends one request; what the server refuses is its message.
pub(crate) async fn send(
    who: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
    kind: &str,
) -> Result<Value, String> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, kind)
        .body(body.map(Value::to_string).unwrap_or_default().into_bytes())
        .unwrap();
    match who.request::<Value>(request).await {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => Err(format!("{} {}", status.code, status.message)),
        Err(error) => panic!("{method} {path}: {error}"),
    }
}

/// The path of an object: kinds here are those whose plural is the kind and an s.
pub(crate) fn path(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap();
    let root = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let plural = match kind.as_str() {
        "networkpolicy" => "networkpolicies".to_owned(),
        _ => format!("{kind}s"),
    };
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{root}/{plural}/{name}"),
    }
}

/// Server-side apply as a dry run: admission and authorization decide, nothing is stored.
pub(crate) async fn write(who: &Client, object: &Value) -> Result<Value, String> {
    let path = format!("{}?fieldManager=trial&force=true&dryRun=All", path(object));
    send(who, "PATCH", &path, Some(object), "application/apply-patch+yaml").await
}

/// Creation as a dry run.
pub(crate) async fn create(who: &Client, object: &Value) -> Result<Value, String> {
    let path = path(object);
    let (collection, _) = path.rsplit_once('/').unwrap();
    let path = format!("{collection}?fieldManager=trial&dryRun=All");
    send(who, "POST", &path, Some(object), "application/json").await
}

pub(crate) async fn patch(
    who: &Client,
    object: &Value,
    subresource: &str,
    change: &Value,
) -> Result<Value, String> {
    let path = format!("{}{subresource}?dryRun=All", path(object));
    send(who, "PATCH", &path, Some(change), "application/merge-patch+json").await
}

pub(crate) async fn delete(who: &Client, object: &Value) -> Result<Value, String> {
    send(
        who,
        "DELETE",
        &format!("{}?dryRun=All", path(object)),
        None,
        "application/json",
    )
    .await
}

pub(crate) async fn read(who: &Client, path: &str) -> Result<Value, String> {
    send(who, "GET", path, None, "application/json").await
}

/// Repeats a request until it is permitted: Kubernetes applies changed rules some moments later.
///
/// # Panics
/// If it is still refused after [`PATIENCE`].
pub(crate) async fn soon_allowed(what: &str, mut request: impl AsyncFnMut() -> Result<Value, String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(message) = request().await {
        assert!(Instant::now() < deadline, "{what}: {message}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[track_caller]
pub(crate) fn refused(what: &str, answer: Result<Value, String>, because: &str) {
    match answer {
        Ok(_) => panic!("{what}: allowed"),
        Err(message) => {
            assert!(
                message.starts_with("403 ") && message.contains(because),
                "{what}: {message}"
            );
        }
    }
}

#[track_caller]
pub(crate) fn allowed(what: &str, answer: Result<Value, String>) {
    if let Err(message) = answer {
        panic!("{what}: {message}");
    }
}
