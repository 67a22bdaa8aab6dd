//! What a cluster holds before a test's first object: the name service's address, and a default
//! StorageClass.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::network::{DNS_SERVICE, Network};
use crate::process::POLL;
use crate::spec::ClusterSpec;

/// The default StorageClass.
pub const STORAGE_CLASS: &str = "local";

/// Who owns the fields of the objects that come with a cluster.
pub(crate) const FIELD_MANAGER: &str = "leasehold-testcluster";

const READY_WITHIN: Duration = Duration::from_secs(60);

/// Applies the objects. Right after the API server's start their namespace may not exist yet.
pub(crate) async fn objects(client: &Client, network: Network) -> Result<()> {
    let ports = json!([
        { "name": "dns", "port": 53, "protocol": "UDP" },
        { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
    ]);
    let system = "kube-system";
    tokio::try_join!(
        apply(
            Api::<StorageClass>::all(client.clone()),
            STORAGE_CLASS,
            json!({
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": { "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
                "provisioner": "leasehold.test/local",
                "reclaimPolicy": "Delete",
                "volumeBindingMode": "WaitForFirstConsumer",
            }),
        ),
        apply(
            Api::<Service>::namespaced(client.clone(), system),
            "kube-dns",
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" } },
                "spec": { "clusterIP": DNS_SERVICE, "ports": ports },
            }),
        ),
        apply(
            Api::<EndpointSlice>::namespaced(client.clone(), system),
            "kube-dns-testcluster",
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": { "labels": {
                    "kubernetes.io/service-name": "kube-dns",
                    "endpointslice.kubernetes.io/managed-by": FIELD_MANAGER,
                } },
                "addressType": "IPv4",
                "endpoints": [{ "addresses": [network.name_server()], "conditions": { "ready": true } }],
                "ports": ports,
            }),
        ),
    )?;
    Ok(())
}

pub(crate) async fn apply<K>(api: Api<K>, name: &str, mut object: Value) -> Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    object["metadata"]["name"] = json!(name);
    let how = PatchParams::apply(FIELD_MANAGER).force();
    until(&format!("apply {name}"), || async {
        api.patch(name, &how, &Patch::Apply(&object)).await?;
        Ok(())
    })
    .await
}

/// Waits until every node is ready and pods can be made, and labels the real nodes.
pub(crate) async fn usable(client: &Client, spec: &ClusterSpec) -> Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    stream::iter(&spec.nodes)
        .map(|node| label(&nodes, node))
        .buffer_unordered(8)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<()>>()?;
    let wanted = spec.nodes.len() + spec.kwok_nodes.len();
    until("wait for the nodes", || async {
        let list = nodes.list(&ListParams::default()).await?;
        let unready: Vec<String> = list.items.iter().filter_map(unready).collect();
        if list.items.len() < wanted || !unready.is_empty() {
            bail!(
                "{} of {wanted} nodes there, not ready: {}",
                list.items.len(),
                unready.join("; ")
            );
        }
        Ok(())
    })
    .await?;
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    until("wait for the first ServiceAccount", || async {
        accounts.get("default").await?;
        Ok(())
    })
    .await
}

async fn label(nodes: &Api<Node>, node: &crate::spec::NodeSpec) -> Result<()> {
    if node.labels.is_empty() {
        return Ok(());
    }
    let labels = json!({ "metadata": { "labels": node.labels } });
    until(&format!("label {}", node.name), || async {
        nodes
            .patch(&node.name, &PatchParams::default(), &Patch::Merge(&labels))
            .await?;
        Ok(())
    })
    .await
}

/// The node's name and reason, if it isn't ready for pods.
fn unready(node: &Node) -> Option<String> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let ready = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => {
            // A taint of its beginnings keeps pods away for a moment longer.
            let tainted = node
                .spec
                .iter()
                .flat_map(|spec| spec.taints.iter().flatten())
                .any(|taint| taint.key.starts_with("node.kubernetes.io/"));
            tainted.then(|| format!("{name} (tainted)"))
        }
        Some(condition) => Some(format!(
            "{name} ({})",
            condition.message.clone().unwrap_or_default()
        )),
        None => Some(format!("{name} (no condition yet)")),
    }
}

/// Tries until it works, or the deadline has passed; then the last error says what was missing.
pub(crate) async fn until<F: Future<Output = Result<()>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error)
                    .with_context(|| format!("{what}: not within {} s", READY_WITHIN.as_secs()));
            }
            Err(_) => tokio::time::sleep(POLL * 5).await,
        }
    }
}
