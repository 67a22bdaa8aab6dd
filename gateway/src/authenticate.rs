//! Who may connect to the tunnel: decided by the market's API server alone.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use leasehold_tunnel::{Authenticate, Denied, Identity, wire::AUDIENCE};
use tokio::sync::Semaphore;

/// Asks the API server.
#[derive(Clone)]
pub(crate) struct Market {
    pub(crate) client: Client,
    /// Name of this gateway's own account as a user.
    pub(crate) own_user: String,
    /// Number of replicas, as the DNS tells.
    pub(crate) replicas: Arc<AtomicUsize>,
    /// Reviews of tokens at once.
    pub(crate) reviews: Arc<Semaphore>,
}

impl Authenticate for Market {
    type User = UserInfo;

    async fn authenticate(&self, token: &str, identity: &Identity) -> Result<UserInfo, Denied> {
        let user = self.user(token).await?;
        self.permits(&user, identity).await?;
        Ok(user)
    }

    async fn permits(&self, user: &UserInfo, identity: &Identity) -> Result<(), Denied> {
        let is_permitted = match identity {
            Identity::Gateway(_) => user.username.as_deref() == Some(self.own_user.as_str()),
            Identity::Provider(provider) => self.may_serve(user.clone(), provider).await?,
        };
        if is_permitted {
            Ok(())
        } else {
            Err(Denied::Forbidden(identity.clone()))
        }
    }

    fn replicas(&self) -> usize {
        self.replicas.load(Ordering::Relaxed).max(1)
    }
}

impl Market {
    /// Whose token it is, if it is valid and was made for the gateway.
    async fn user(&self, token: &str) -> Result<UserInfo, Denied> {
        // What strangers send must not take the requests that the watches of this process need.
        let _permit = self
            .reviews
            .try_acquire()
            .map_err(|_| Denied::Unknown("too many tokens are being checked".into()))?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let reviewed = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(unknown)?;
        let status = reviewed.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            tracing::debug!(error = status.error, "a token is not valid");
            return Err(Denied::Unauthenticated("it is not valid".into()));
        }
        // An authenticator that knows nothing about audiences leaves them out.
        if !status
            .audiences
            .iter()
            .flatten()
            .any(|audience| audience == AUDIENCE)
        {
            return Err(Denied::Unauthenticated(format!(
                "it is not for the audience {AUDIENCE}"
            )));
        }
        Ok(status.user.unwrap_or_default())
    }

    /// Whether a user may connect as a provider: it may create `gpuproviders/tunnel` of that name.
    async fn may_serve(&self, user: UserInfo, provider: &str) -> Result<bool, Denied> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                uid: user.uid,
                groups: user.groups,
                extra: user.extra,
                resource_attributes: Some(ResourceAttributes {
                    group: Some("leasehold.dev".into()),
                    resource: Some("gpuproviders".into()),
                    subresource: Some("tunnel".into()),
                    name: Some(provider.to_owned()),
                    verb: Some("create".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let reviewed = reviews
            .create(&PostParams::default(), &review)
            .await
            .map_err(unknown)?;
        Ok(reviewed.status.is_some_and(|status| status.allowed))
    }
}

fn unknown(error: kube::Error) -> Denied {
    tracing::warn!(%error, "a token could not be checked");
    Denied::Unknown("the market's API server did not answer".into())
}
