//! Writes to the API that both roles make: status by server-side apply with the version that was read, Events.

use jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::error::Error;

/// Writes a status by server-side apply. The version that was read is a precondition, so that what was decided on
/// an old reading never overwrites a newer one.
pub async fn apply_status<K, S>(api: &Api<K>, object: &K, manager: &str, status: &S) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    S: Serialize,
{
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "resourceVersion": object.resource_version()},
        "status": status,
    });
    api.patch_status(
        &object.name_any(),
        &PatchParams::apply(manager).force(),
        &Patch::Apply(&patch),
    )
    .await
    .map_err(Error::kube("write the status"))
}

/// Sets the finalizers, with the version that was read as precondition.
pub async fn set_finalizers<K>(api: &Api<K>, object: &K, finalizers: &[String]) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(Error::kube("write the finalizers"))
}

/// Sets the finalizers and a mark that outlives them, with the version that was read as precondition.
pub async fn take_up<K>(api: &Api<K>, object: &K, finalizers: &[String], mark: &str) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let version = object.resource_version();
    let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers, "annotations": {mark: "true"}}});
    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(Error::kube("write the finalizers"))
}

/// Applies an object by server-side apply.
pub async fn apply<K>(api: &Api<K>, object: &K, manager: &str) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.patch(
        &object.name_any(),
        &PatchParams::apply(manager).force(),
        &Patch::Apply(object),
    )
    .await
    .map_err(Error::kube("apply an object"))
}

/// `Ok` also when it was gone already.
pub fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Publishes Events about objects. An Event that can't be written is logged and lost.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    repeated: Recorder,
}

impl Events {
    /// Events of this controller and replica.
    pub fn new(client: Client, controller: &str, instance: &str) -> Self {
        let reporter = Reporter {
            controller: controller.into(),
            instance: Some(instance.into()),
        };
        Self {
            repeated: Recorder::new(client.clone(), reporter.clone()),
            client,
            reporter,
        }
    }

    /// Publishes one about a change.
    pub async fn publish<K>(&self, object: &K, warning: bool, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        // One recorder for each: it keeps every Event for minutes, some kilobytes, and writes the first one's note again
        // where a later one of the same object has the same reason.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        Self::record(&recorder, object, warning, reason, note).await;
    }

    /// Publishes what is said on every look for as long as it is so: one Event that counts.
    pub async fn repeat<K>(&self, object: &K, warning: bool, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        Self::record(&self.repeated, object, warning, reason, note).await;
    }

    async fn record<K>(recorder: &Recorder, object: &K, warning: bool, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.into(),
            note: Some(note.chars().take(1000).collect()),
            action: reason.into(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(reason, %error, "an Event was not written");
        }
    }
}

/// Metadata with a name, a namespace, and labels.
pub fn meta(name: &str, namespace: Option<&str>, labels: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: namespace.map(Into::into),
        labels: Some(
            labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        ),
        ..ObjectMeta::default()
    }
}

/// From now until `wake`, at least a little.
pub fn until(wake: Timestamp, now: Timestamp) -> std::time::Duration {
    let millis = wake.duration_since(now).as_millis().clamp(20, 3_600_000);
    std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(20))
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response, StatusCode};
    use k8s_openapi::api::core::v1::Pod;
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn each_event_of_an_object_has_its_own_note() {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let events = Events::new(Client::new(service, "default"), "leasehold-test", "a");
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        for note in ["node n1 is gone", "node n2 is gone"] {
            let serve = async {
                let (request, reply) = server.next_request().await.expect("a request");
                let (parts, sent) = request.into_parts();
                assert_eq!(parts.method, Method::POST);
                let sent = sent.collect_bytes().await.unwrap();
                let told: serde_json::Value = serde_json::from_slice(&sent).unwrap();
                assert_eq!(told["note"], note);
                let body = Body::from(sent.to_vec());
                let answer = Response::builder().status(StatusCode::CREATED);
                reply.send_response(answer.body(body).unwrap());
            };
            tokio::join!(events.publish(&pod, true, "NodeLost", note.into()), serve);
        }
    }

    #[tokio::test]
    async fn what_is_said_again_and_again_is_one_event() {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let events = Events::new(Client::new(service, "default"), "leasehold-test", "a");
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        let mut paths = Vec::new();
        for method in [Method::POST, Method::PATCH, Method::PATCH] {
            let serve = async {
                let (request, reply) = server.next_request().await.expect("a request");
                let (parts, sent) = request.into_parts();
                assert_eq!(parts.method, method);
                let sent = sent.collect_bytes().await.unwrap();
                paths.push(parts.uri.path().to_owned());
                reply.send_response(Response::new(Body::from(sent.to_vec())));
            };
            tokio::join!(events.repeat(&pod, true, "KindDeleted", "going".into()), serve);
        }
        assert_eq!(paths[1], paths[2], "one object");
    }
}
