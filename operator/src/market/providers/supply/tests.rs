use http::{Method, Request, Response, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{
    Client, Resource,
    client::Body,
    runtime::{reflector, watcher},
};
use leasehold_crds::market::{
    offer::{GpuOfferSpec, OfferRow, OfferSummary, PaymentIdentity},
    provider::GpuProviderSpec,
};
use leasehold_runtime::queue::Queue;
use serde_json::json;

use super::*;

const NOW: i64 = 1_700_000_000;

fn store<K>(object: K) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Apply(object));
    store
}

fn provider() -> GpuProvider {
    let mut provider = GpuProvider::new(
        "prairie",
        GpuProviderSpec {
            payee: format!("0x{:040x}", 2),
            controller: format!("0x{:040x}", 3),
            region: "us-central".into(),
        },
    );
    provider.metadata.generation = Some(1);
    provider
}

/// Everything the market knows of one provider, which offers one row and was just heard of.
fn supply() -> Supply {
    let namespace = Some(format!("{PROVIDER_NAMESPACE_PREFIX}prairie"));
    let mut offer = GpuOffer::new(
        "prairie",
        GpuOfferSpec {
            region: "us-central".into(),
            summary: OfferSummary::default(),
            rows: vec![OfferRow {
                pool: "a100".into(),
                class: "a100-80g-pcie".into(),
                nodes_free: 1,
                gpus: 4,
                cpu: "32".into(),
                memory: "128Gi".into(),
                ephemeral_storage: "500Gi".into(),
                gpu_memory: "80Gi".into(),
                compute_capability: "8.0".into(),
                cuda: "13.0".into(),
                price_per_gpu_hour: "1.05".into(),
                payment: PaymentIdentity {
                    chain_id: 31337,
                    escrow: format!("0x{:040x}", 4),
                    token: format!("0x{:040x}", 5),
                },
                max_duration: "720h".into(),
                max_pause: "1h".into(),
                max_keep_results_for: "24h".into(),
                max_start_within: "1h".into(),
                ..OfferRow::default()
            }],
        },
    );
    offer.metadata.namespace.clone_from(&namespace);
    let mut liveness = Lease::default();
    liveness.metadata.name = Some("prairie".into());
    liveness.metadata.namespace = namespace;
    liveness.spec.get_or_insert_default().renew_time = Some(MicroTime(now()));
    Supply::new(store(offer), store(provider()), store(liveness))
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_status_that_could_not_be_written_is_written_again() {
    let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let api = Api::<GpuProvider>::all(Client::new(service, "default"));
    let (supply, queue) = (supply(), ProviderQueue::new(Queue::default()));

    // The provider's own entry changed meanwhile; nothing of its offer does from here on.
    let conflict =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409});
    let answers = [
        (StatusCode::CONFLICT, conflict),
        (StatusCode::OK, serde_json::to_value(provider()).unwrap()),
    ];
    for (look, (status, body)) in answers.into_iter().enumerate() {
        let mut handed_on = false;
        let serve = async {
            let request = tokio::time::timeout(REFRESH, server.next_request()).await;
            let (request, reply) = request.expect("the status is written").expect("a request");
            let body = Body::from(body.to_string().into_bytes());
            reply.send_response(Response::builder().status(status).body(body).unwrap());
            let (parts, sent) = request.into_parts();
            assert_eq!(parts.method, Method::PATCH);
            let path = "/apis/leasehold.dev/v1alpha1/gpuproviders/prairie/status";
            assert_eq!(parts.uri.path(), path);
            let sent = sent.collect_bytes().await.unwrap();
            let sent: serde_json::Value = serde_json::from_slice(&sent).unwrap();
            assert_eq!(sent["status"]["conditions"][0]["reason"], "Offering", "{sent}");
        };
        tokio::join!(supply.update(&queue, &api, |_| handed_on = true, now()), serve);
        assert_eq!(handed_on, look == 0);
    }
}
