//! Why the cluster does not create pods of a workload: admission policies, webhooks, quotas, limits and Pod Security refuse
//! pods to the controllers that make them, which publish the refusal as an Event.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::{Api, Client, api::ListParams};
use leasehold_planner::provider::offer::refusals::Refusal;

use super::observe::API_DEADLINE;

/// Events that are read at once: controllers repeat a refusal by a count.
const EVENTS: u32 = 50;

/// Refusals of pods and volumes in a namespace; none if the Events can't be read.
pub(super) async fn refusals(client: &Client, namespace: &str) -> Vec<Refusal> {
    let events = Api::<Event>::namespaced(client.clone(), namespace);
    let failed = ListParams::default().fields("reason=FailedCreate").limit(EVENTS);
    let list = tokio::time::timeout(API_DEADLINE, events.list(&failed)).await;
    let list = list.ok().and_then(Result::ok).map(|list| list.items);
    list.unwrap_or_default()
        .into_iter()
        .filter_map(of_event)
        .collect()
}

fn of_event(event: Event) -> Option<Refusal> {
    Some(Refusal {
        at: time(&event),
        words: event.message?,
    })
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
    use leasehold_planner::provider::offer::refusals::last_refusal;
    use serde_json::{Value, json};

    use super::*;

    fn event(at: &str, message: &str) -> Value {
        json!({"metadata": {"name": at.to_lowercase(), "namespace": "lease-x"}, "involvedObject": {"kind": "StatefulSet"},
            "reason": "FailedCreate", "lastTimestamp": at, "message": message})
    }

    async fn refusals_of(events: Vec<Value>) -> Vec<Refusal> {
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
        tokio::join!(refusals(&client, "lease-x"), serve).0
    }

    #[tokio::test]
    async fn a_pod_that_the_cluster_refuses_is_told_in_the_words_of_the_refusal() {
        let quota = "create Pod lease-0 in StatefulSet lease failed error: pods \"lease-0\" is forbidden: exceeded quota: team";
        let events = vec![
            event("2026-01-01T00:09:59Z", quota),
            event("2026-01-01T00:09:00Z", "an earlier one"),
        ];
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let last = last_refusal(refusals_of(events).await, now).unwrap();
        let at = "2026-01-01T00:09:59Z".parse::<Timestamp>().unwrap();
        assert_eq!((last.words.as_str(), last.at), (quota, at));
        assert_eq!(refusals_of(vec![]).await, []);
    }
}
