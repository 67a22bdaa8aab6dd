//! Who may connect to the gateway, and as whom.

use kube::Client;
use serde_json::json;

use crate::installation::{Installation, PROVIDER};
use crate::requests::send;

/// Whether the gateway would let the account connect as a provider.
async fn may_connect(who: &Client, provider: &str) -> bool {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
        "resourceAttributes": {"group": "leasehold.dev", "resource": "gpuproviders", "subresource": "tunnel",
            "verb": "create", "name": provider}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = send(who, "POST", path, Some(&review), "application/json")
        .await
        .unwrap();
    answer["status"]["allowed"] == true
}

pub(crate) async fn connectors_connect_as_their_own_provider(it: &Installation) {
    for (who, account, own) in [
        (&it.connector, "connector", Some(PROVIDER)),
        (&it.guest_connector, "connector of elbe", Some("elbe")),
        (&it.market, "market", None),
        (&it.provider, "provider", None),
        (&it.guest, "provider elbe", None),
        (&it.gateway, "gateway", None),
        (&it.agent, "agent", None),
    ] {
        for provider in [PROVIDER, "elbe", "another"] {
            let may = may_connect(who, provider).await;
            assert_eq!(may, own == Some(provider), "{account} as {provider}");
        }
    }
}

pub(crate) async fn a_connector_makes_tokens_for_itself_alone(it: &Installation) {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": ["leasehold-gateway"], "expirationSeconds": 600}});
    let ask = |who, namespace: &str, account: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = request.clone();
        async move { send(who, "POST", &path, Some(&request), "application/json").await }
    };
    let made = ask(&it.guest_connector, "provider-elbe", "connector")
        .await
        .unwrap();
    assert!(
        made["status"]["token"]
            .as_str()
            .is_some_and(|token| !token.is_empty())
    );
    for (namespace, account) in [
        ("provider-elbe", "provider"),
        ("provider-rhine-west", "default"),
        ("leasehold-system", "leasehold-market"),
        ("leasehold-system", "leasehold-gateway"),
        ("leasehold-system", "leasehold-connector"),
    ] {
        let refused = ask(&it.guest_connector, namespace, account).await.unwrap_err();
        assert!(refused.starts_with("403 "), "{namespace}/{account}: {refused}");
    }
}
