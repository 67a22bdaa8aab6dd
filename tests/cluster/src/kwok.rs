//! Nodes without machines: KWOK answers for them, so that the scheduler and everything that watches nodes
//! and pods can be tried with thousands.

use anyhow::{Context as _, Result};
use futures::{TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;

use crate::control_plane::{Site, flags, text};
use crate::process::{self, Process};
use crate::spec::KwokNode;

const STAGES: &str = include_str!("../kwok-stages.yaml");
/// The annotation by which KWOK knows its nodes.
const ANNOTATION: &str = "kwok.x-k8s.io/node";
/// Requests under way at once while nodes are made.
const AT_ONCE: usize = 32;

pub(crate) async fn start(site: &Site<'_>) -> Result<Process> {
    let stages = site.directory.join("kwok-stages.yaml");
    std::fs::write(&stages, STAGES)?;
    let kubeconfig = site.kubeconfig("kwok", "leasehold:kwok", &["system:masters"])?;
    let arguments = flags(&[
        ("config", &text(&stages)?),
        ("kubeconfig", &kubeconfig),
        ("manage-all-nodes", "false"),
        (
            "manage-nodes-with-annotation-selector",
            &format!("{ANNOTATION}=fake"),
        ),
        ("node-ip", &site.network.control_plane().to_string()),
        ("node-lease-duration-seconds", "40"),
        // Nobody routes it: there is nothing behind the address of a pod that doesn't exist.
        ("cidr", "100.64.0.0/10"),
        ("server-address", "127.0.0.1:10247"),
    ]);
    let launch = site.launch("kwok", &site.tools.kwok, arguments, process::listens_on(10247))?;
    site.roster.start(launch).await
}

/// Makes the nodes. A Node may be created with a status, as kubelets do.
pub(crate) async fn create(client: &Client, nodes: &[KwokNode]) -> Result<()> {
    let api = &Api::<Node>::all(client.clone());
    stream::iter(nodes.iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |node| async move {
            let object = serde_json::from_value(object(node))?;
            api.create(&PostParams::default(), &object)
                .await
                .with_context(|| format!("make KWOK node {}", node.name))
                .map(drop)
        })
        .await
}

fn capacity(node: &KwokNode) -> serde_json::Value {
    let mut capacity = json!({ "pods": "110" });
    for (resource, quantity) in &node.capacity {
        capacity[resource] = json!(quantity);
    }
    capacity
}

fn object(node: &KwokNode) -> serde_json::Value {
    let mut labels = json!({
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "type": "kwok",
    });
    for (label, value) in &node.labels {
        labels[label] = json!(value);
    }
    let taints = node
        .taint
        .iter()
        .map(|key| json!({ "key": key, "value": "present", "effect": "NoSchedule" }));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name, "labels": labels, "annotations": { ANNOTATION: "fake" } },
        "spec": { "taints": taints.collect::<Vec<_>>() },
        "status": {
            "capacity": capacity(node),
            "allocatable": capacity(node),
            "runtimeHandlers": [{ "name": "", "features": { "userNamespaces": true } }],
        },
    })
}
