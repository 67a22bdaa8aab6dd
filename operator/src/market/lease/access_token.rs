//! The token for the ports of a lease, from the one Secret that the tenant's namespace lets the operator read.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use leasehold_crds::GpuLease;
use leasehold_planner::{
    market::lease::{AccessToken, Deletion, access_token::token_in, needs_access_token},
    observed::Observed,
};

use crate::{market::Market, payments::entry};

/// What pays and ends a lease does not wait longer for its token.
const READ_DEADLINE: Duration = Duration::from_secs(5);

impl Market {
    /// Reads the token if there is a gateway that asks for it. Only its digest leaves this function.
    pub(super) async fn access_token(&self, lease: &GpuLease, deletion: &Deletion) -> Observed<AccessToken> {
        if self.gateway.is_none() || !needs_access_token(lease, deletion) {
            return Observed::Known(AccessToken::NotRead);
        }
        let access = lease.spec.access.as_ref();
        let Some(named) = access.and_then(|access| access.token_secret.as_ref()) else {
            return Observed::Known(AccessToken::NotNamed);
        };
        let (namespace, name) = (lease.namespace().unwrap_or_default(), &named.name);
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &namespace);
        let Ok(read) = tokio::time::timeout(READ_DEADLINE, secrets.get(name)).await else {
            return Observed::Unknown(format!(
                "Secret {name} can't be read: the API server did not answer in time"
            ));
        };
        match read {
            Ok(secret) => {
                let token = entry(&secret, &named.key);
                Observed::Known(token_in(name, &named.key, token.as_deref()))
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Observed::Known(AccessToken::NotFound(
                format!("there is no Secret {name} in namespace {namespace}"),
            )),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let account = &self.account;
                Observed::Known(AccessToken::NotReadable(format!(
                    "namespace {namespace} has not opted in: run `kubectl -n {namespace} create role leasehold-token --verb=get \
                     --resource=secrets --resource-name={name} && kubectl -n {namespace} create rolebinding leasehold-token \
                     --role=leasehold-token --serviceaccount={account}`"
                )))
            }
            Err(error) => Observed::Unknown(format!("Secret {name} can't be read: {error}")),
        }
    }
}
