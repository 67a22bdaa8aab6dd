//! The token with which the connector shows the gateway which provider it serves.

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};
use leasehold_crds::PROVIDER_NAMESPACE_PREFIX;
use leasehold_runtime::cache::{self, Deadlines};
use leasehold_tunnel::{
    dial::{TokenSource, token_file},
    wire::AUDIENCE,
};

use futures::FutureExt as _;

use crate::settings::ConnectorArgs;

/// Name of the connector's ServiceAccount in the namespace of its provider at the market.
const ACCOUNT: &str = "connector";
/// A token is used once, when a connection is opened. The API server accepts no shorter time.
const EXPIRES_AFTER_SECONDS: i64 = 600;

/// Where tokens come from: a file that the kubelet renews, or the API server of the market, which makes one for each
/// connection.
pub(super) async fn source(args: &ConnectorArgs) -> anyhow::Result<TokenSource> {
    let Some(kubeconfig) = &args.market_kubeconfig else {
        return Ok(token_file(args.token_file.clone()));
    };
    let client = cache::client(Some(kubeconfig), Deadlines::ORDINARY).await?;
    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{}", args.provider_name);
    let accounts = Api::<ServiceAccount>::namespaced(client, &namespace);
    Ok(std::sync::Arc::new(move || {
        let accounts = accounts.clone();
        async move {
            let request = TokenRequest {
                spec: TokenRequestSpec {
                    audiences: vec![AUDIENCE.to_owned()],
                    expiration_seconds: Some(EXPIRES_AFTER_SECONDS),
                    ..TokenRequestSpec::default()
                },
                ..TokenRequest::default()
            };
            let made = accounts
                .create_token_request(ACCOUNT, &PostParams::default(), &request)
                .await
                .map_err(|error| format!("ask the market for a token: {error}"))?;
            made.status
                .map(|status| status.token)
                .ok_or_else(|| "the market returned no token".to_owned())
        }
        .boxed()
    }))
}
