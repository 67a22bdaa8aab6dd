//! Events about objects.

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// Publishes Events about objects. An Event that can't be written is logged and dropped.
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

    /// Publishes an Event about a change.
    pub async fn publish<K>(&self, object: &K, warning: bool, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        // Each Event has its own recorder: a shared one keeps every Event for minutes, some kilobytes each, and repeats
        // the note of the first Event where a later one about the same object has the same reason.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        Self::record(&recorder, object, warning, reason, note).await;
    }

    /// Publishes an Event that is repeated on every reconcile while its cause lasts: one object with a count.
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
                let body: serde_json::Value = serde_json::from_slice(&sent).unwrap();
                assert_eq!(body["note"], note);
                let body = Body::from(sent.to_vec());
                let answer = Response::builder().status(StatusCode::CREATED);
                reply.send_response(answer.body(body).unwrap());
            };
            tokio::join!(events.publish(&pod, true, "NodeLost", note.into()), serve);
        }
    }

    #[tokio::test]
    async fn a_repeated_event_is_one_object() {
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
