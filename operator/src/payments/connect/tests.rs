use http::{Request, Response};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Client, client::Body};
use leasehold_telemetry::metrics::{Chain, Metrics};

use super::*;

type Server = tower_test::mock::Handle<Request<Body>, Response<Body>>;

fn clients() -> (PaymentClients, Server) {
    let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let client = Client::new(service, "default");
    let deadline = Duration::from_secs(1);
    let chain = Chain::register(&mut Metrics::new());
    (
        PaymentClients::new(client, "system", deadline, deadline, chain),
        server,
    )
}

fn network(second: Option<&str>) -> PaymentNetwork {
    let mut network: PaymentNetwork = serde_json::from_value(serde_json::json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "PaymentNetwork", "metadata": {"name": "n"},
        "spec": {
            "chainId": 1,
            "rpcSecretName": "rpc",
            "escrow": format!("0x{}", "1".repeat(40)),
            "token": {"address": format!("0x{}", "2".repeat(40)), "symbol": "USDC", "decimals": 6},
        },
    }))
    .unwrap();
    network.spec.second_rpc_url = second.map(str::to_owned);
    network
}

/// Answers one read of the Secret.
async fn serve(server: &mut Server, url: Option<&str>) {
    let (_, reply) = server.next_request().await.expect("the Secret is read");
    let body = match url {
        Some(url) => {
            let data = [("url".to_owned(), ByteString(url.into()))];
            let secret = Secret {
                data: Some(data.into()),
                ..Secret::default()
            };
            Response::new(Body::from(serde_json::to_vec(&secret).unwrap()))
        }
        None => Response::builder()
            .status(500)
            .body(Body::from(b"{}".to_vec()))
            .unwrap(),
    };
    reply.send_response(body);
}

fn make_due(clients: &PaymentClients) {
    let mut connected = clients.connected.lock().unwrap();
    connected.get_mut("n").unwrap().read_at -= SECRET_PERIOD;
}

/// The client after one read of the Secret, which has that URL or can't be read.
async fn client_after(
    (clients, server): (&PaymentClients, &mut Server),
    network: &PaymentNetwork,
    url: Option<&str>,
) -> EvmEscrow {
    tokio::join!(clients.client(network), serve(server, url))
        .0
        .unwrap()
}

#[tokio::test]
async fn a_replaced_rpc_url_is_used_without_a_restart() {
    let (clients, mut server) = clients();
    let network = network(None);
    let (old, new) = (Some("http://first.invalid"), Some("http://second.invalid"));
    let first = client_after((&clients, &mut server), &network, old).await;
    // Until the Secret is due again, it is not read.
    assert!(clients.client(&network).await.unwrap().is(&first));
    // While it is the same, or can't be read, nothing changes.
    for url in [old, None] {
        make_due(&clients);
        let kept = client_after((&clients, &mut server), &network, url).await;
        assert!(kept.is(&first), "{url:?}");
    }
    make_due(&clients);
    let second = client_after((&clients, &mut server), &network, new).await;
    assert!(!second.is(&first));
    let connected = clients.connected.lock().unwrap();
    assert_eq!(Some(connected["n"].urls.0.as_str()), new);
}

#[tokio::test]
async fn each_endpoint_is_the_other_of_the_other() {
    let (clients, mut server) = clients();
    let network = network(Some("http://second.invalid"));
    let first = client_after((&clients, &mut server), &network, Some("http://first.invalid")).await;
    let second = clients.other(&network, &first).unwrap();
    assert!(clients.other(&network, &second).unwrap().is(&first));
    assert_eq!(clients.endpoint(&network, &first), Endpoint::First);
    assert_eq!(clients.endpoint(&network, &second), Endpoint::Second);
    assert_ne!(
        clients.index_name(&network, &first),
        clients.index_name(&network, &second)
    );
}
