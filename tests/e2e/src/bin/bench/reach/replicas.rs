//! Replicas of the gateway and of the connector, and the end of one of them.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use leasehold_e2e::{NAMESPACE, within};

/// Replicas of each component in tests.
const REPLICAS: usize = 2;

fn selector(component: &str) -> ListParams {
    ListParams::default().labels(&format!("app.kubernetes.io/component={component}"))
}

/// Kills one replica of a component without a time to end, and returns when.
pub(crate) async fn kill_one(client: &Client, component: &str) -> anyhow::Result<Instant> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let all = pods.list(&selector(component)).await?.items;
    let victim = all.first().context("a replica")?.name_any();
    pods.delete(&victim, &DeleteParams::default().grace_period(0))
        .await?;
    Ok(Instant::now())
}

/// Waits until all replicas of a component are ready and no other pods of it are left, and returns their pods.
pub(crate) async fn all_ready(client: &Client, component: &str, limit: Duration) -> anyhow::Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    within(limit, &format!("the replicas of {component}"), || async {
        let all = pods.list(&selector(component)).await?.items;
        let ready = all.iter().filter(|pod| is_ready(pod)).count();
        Ok(if ready == REPLICAS && all.len() == REPLICAS {
            Ok(all)
        } else {
            Err(ready)
        })
    })
    .await
}

fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none() && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}
