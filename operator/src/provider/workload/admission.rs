//! Whether the cluster admits the pods of a workload: a dry run, before anything is reserved or paid. Admission policies,
//! webhooks, quotas, limits and Pod Security answer it as they would answer the pods of the lease.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::PostParams};
use leasehold_runtime::Error;

use super::observe::API_DEADLINE;
use crate::provider::MANAGER;

/// The words in which the cluster refuses the pod, which is not created. `None` if it admits the pod, or if it does not tell:
/// what is not known declines no lease.
pub(crate) async fn refusal(client: &Client, pod: &Pod) -> Option<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let params = PostParams {
        dry_run: true,
        field_manager: Some(MANAGER.into()),
    };
    let answer = tokio::time::timeout(API_DEADLINE, pods.create(&params, pod)).await;
    let error = match answer {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => Error::kube("check whether the cluster admits a pod")(error),
        Err(_) => Error::Object("the API server does not tell whether it admits a pod".into()),
    };
    let refusal = error.refusal().map(str::to_owned);
    if refusal.is_none() {
        error.log("Namespace", namespace);
    }
    refusal
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    async fn answered(code: u16, answer: Value) -> Option<String> {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = Client::new(service, "default");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "lease-0", "namespace": "lease-checks-a"}, "spec": {"containers": []}
        }))
        .unwrap();
        let serve = async {
            let (request, reply) = server.next_request().await.unwrap();
            assert_eq!(request.uri().path(), "/api/v1/namespaces/lease-checks-a/pods");
            assert!(request.uri().query().unwrap().contains("dryRun=All"));
            let body = Body::from(answer.to_string().into_bytes());
            reply.send_response(Response::builder().status(code).body(body).unwrap());
        };
        tokio::join!(refusal(&client, &pod), serve).0
    }

    fn error(code: u16, reason: &str, message: &str) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
    }

    #[tokio::test]
    async fn a_pod_that_the_cluster_would_refuse_is_refused_before_it_is_paid() {
        let words = "pods \"lease-0\" is forbidden: violates PodSecurity \"restricted:latest\"";
        let refused = answered(403, error(403, "Forbidden", words)).await;
        assert_eq!(refused.as_deref(), Some(words));
        let made = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "lease-0"}});
        assert_eq!(answered(201, made).await, None);
        for (code, reason) in [
            (404, "NotFound"),
            (500, "InternalError"),
            (503, "ServiceUnavailable"),
        ] {
            assert_eq!(answered(code, error(code, reason, "away")).await, None);
        }
    }
}
