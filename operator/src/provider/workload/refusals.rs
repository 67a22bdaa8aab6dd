//! Why the cluster does not create pods of a workload: admission policies, webhooks, quotas, limits and Pod Security refuse
//! pods to the controllers that make them, which publish the refusal as an Event.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::{Api, Client, api::ListParams};

use super::observe::API_DEADLINE;

/// Events that are read at once: controllers repeat a refusal by a count.
const EVENTS: u32 = 50;
/// A controller that is still refused repeats its attempt within this time, in seconds.
const REPEATED_WITHIN_SECONDS: i64 = 1100;

/// The words of the last refusal of a pod or a volume in a namespace; `None` if nothing was refused lately or the Events can't
/// be read.
pub(super) async fn refusal(client: &Client, namespace: &str, now: Timestamp) -> Option<String> {
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    let failed = ListParams::default().fields("reason=FailedCreate").limit(EVENTS);
    let list = tokio::time::timeout(API_DEADLINE, events.list(&failed))
        .await
        .ok()?
        .ok()?;
    let last = list.items.into_iter().max_by_key(time)?;
    let is_recent = now.as_second() - time(&last).as_second() <= REPEATED_WITHIN_SECONDS;
    is_recent.then_some(last.message).flatten()
}

fn time(event: &Event) -> Timestamp {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref());
    let time = series.or(event.event_time.as_ref()).map(|t| t.0);
    time.or_else(|| event.last_timestamp.as_ref().map(|t| t.0))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    fn event(at: &str, message: &str) -> Value {
        json!({"metadata": {"name": at.to_lowercase(), "namespace": "lease-x"}, "involvedObject": {"kind": "StatefulSet"},
            "reason": "FailedCreate", "lastTimestamp": at, "message": message})
    }

    async fn refusal_of(events: Vec<Value>) -> Option<String> {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let serve = async {
            let (request, reply) = server.next_request().await.unwrap();
            assert_eq!(request.uri().path(), "/api/v1/namespaces/lease-x/events");
            assert!(
                request
                    .uri()
                    .query()
                    .unwrap()
                    .contains("fieldSelector=reason%3DFailedCreate")
            );
            let list = json!({"apiVersion": "v1", "kind": "EventList", "metadata": {}, "items": events});
            reply.send_response(Response::new(Body::from(list.to_string().into_bytes())));
        };
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        tokio::join!(refusal(&client, "lease-x", now), serve).0
    }

    #[tokio::test]
    async fn a_pod_that_the_cluster_refuses_is_told_in_the_words_of_the_refusal() {
        let quota = "create Pod lease-0 in StatefulSet lease failed error: pods \"lease-0\" is forbidden: exceeded quota: team";
        let events = vec![
            event("2026-01-01T00:09:00Z", "an earlier one"),
            event("2026-01-01T00:09:59Z", quota),
        ];
        assert_eq!(refusal_of(events).await.as_deref(), Some(quota));
        assert_eq!(refusal_of(vec![]).await, None);
        assert_eq!(refusal_of(vec![event("2025-12-31T20:00:00Z", quota)]).await, None);
    }
}
