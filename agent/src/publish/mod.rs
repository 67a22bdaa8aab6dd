//! The agent's writes: the status of the GpuNode, when it changed, and the renewal of the agent's Lease.
//!
//! Both use server-side apply with the agent's own field manager, so that a restart or a second agent changes nothing
//! that is up to date, and fields set by administrators are kept.
//!
//! A GpuNode is deleted with its Node, and created again when the Node registers again. What the administrator set in its
//! spec is kept meanwhile in an annotation of the Lease, which no Node owns.

use std::time::Duration;

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use leasehold_crds::{
    GpuNode,
    provider::node::{GpuNodeSpec, GpuNodeStatus},
};
use serde_json::json;

pub(crate) mod status;

/// Field manager of the agent's writes.
pub(crate) const FIELD_MANAGER: &str = "leasehold-agent";
/// Annotation of the agent's Lease with the spec of the GpuNode, as JSON.
const SPEC_ANNOTATION: &str = "leasehold.dev/gpu-node-spec";
/// Time limit of one call.
const DEADLINE: Duration = Duration::from_secs(10);

/// Writes the GpuNode and the Lease.
pub(crate) struct Publisher {
    node: String,
    gpu_nodes: Api<GpuNode>,
    nodes: Api<Node>,
    leases: Api<Lease>,
    lease_seconds: i32,
    /// The status in the API server, as far as is known.
    applied: Option<GpuNodeStatus>,
    generation: i64,
    /// What the administrator had set when the GpuNode was last read; `None` before the first read.
    spec: Option<GpuNodeSpec>,
}

/// Whether a write was needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Now,
    NotNeeded,
}

impl Publisher {
    pub(crate) fn new(client: &Client, node: &str, namespace: &str, lease: Duration) -> Self {
        Self {
            node: node.to_owned(),
            gpu_nodes: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            leases: Api::namespaced(client.clone(), namespace),
            lease_seconds: i32::try_from(lease.as_secs()).unwrap_or(i32::MAX),
            applied: None,
            generation: 0,
            spec: None,
        }
    }

    /// The generation of the GpuNode when it was last read.
    pub(crate) const fn generation(&self) -> i64 {
        self.generation
    }

    /// Reads the stored status, and creates the GpuNode if it is missing. Returns the status that an earlier run of
    /// the agent wrote.
    pub(crate) async fn refresh(&mut self) -> anyhow::Result<GpuNodeStatus> {
        let read = with_deadline(self.gpu_nodes.get_opt(&self.node))
            .await
            .context("read the GpuNode")?;
        let gpu_node = match read {
            Some(gpu_node) => gpu_node,
            None => self.create().await?,
        };
        self.generation = gpu_node.metadata.generation.unwrap_or_default();
        self.spec = Some(gpu_node.spec);
        self.applied.clone_from(&gpu_node.status);
        Ok(gpu_node.status.unwrap_or_default())
    }

    /// Writes the status if it differs from the stored one.
    pub(crate) async fn status(&mut self, wanted: &GpuNodeStatus) -> anyhow::Result<Written> {
        if self.applied.as_ref() == Some(wanted) {
            return Ok(Written::NotNeeded);
        }
        let patch = json!({
            "apiVersion": "leasehold.dev/v1alpha1",
            "kind": "GpuNode",
            "metadata": {"name": self.node},
            "status": wanted,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        // Until the call succeeds, the stored status is unknown.
        self.applied = None;
        let answer = with_deadline(
            self.gpu_nodes
                .patch_status(&self.node, &params, &Patch::Apply(&patch)),
        )
        .await;
        let gpu_node = answer.context("write the GpuNode's status")?;
        self.generation = gpu_node.metadata.generation.unwrap_or_default();
        self.applied = Some(wanted.clone());
        Ok(Written::Now)
    }

    /// Renews the Lease, with microsecond precision. The GpuNode must have been read.
    pub(crate) async fn renew(&self, now: Timestamp) -> anyhow::Result<()> {
        let spec = self.spec.as_ref().context("the GpuNode was not read yet")?;
        let patch = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.node,
                "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER},
                "annotations": {SPEC_ANNOTATION: serde_json::to_string(spec)?},
            },
            "spec": {
                "holderIdentity": self.node,
                "leaseDurationSeconds": self.lease_seconds,
                "renewTime": MicroTime(now),
            },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        with_deadline(self.leases.patch(&self.node, &params, &Patch::Apply(&patch)))
            .await
            .context("renew the agent's Lease")?;
        Ok(())
    }

    /// The spec of a GpuNode that is created: what an administrator had set, even before a restart of the agent. While that
    /// is unknown, no GpuNode is created. The GPUs of a new node may be offered.
    async fn spec_to_create(&self) -> anyhow::Result<GpuNodeSpec> {
        if let Some(spec) = &self.spec {
            return Ok(spec.clone());
        }
        let lease = with_deadline(self.leases.get_opt(&self.node))
            .await
            .context("read the agent's Lease")?;
        let annotations = lease.and_then(|lease| lease.metadata.annotations);
        match annotations.as_ref().and_then(|a| a.get(SPEC_ANNOTATION)) {
            Some(kept) => serde_json::from_str(kept).with_context(|| {
                format!("the annotation {SPEC_ANNOTATION} of the agent's Lease is not the spec of a GpuNode; remove it")
            }),
            None => Ok(GpuNodeSpec {
                sell: true,
                class_override: None,
            }),
        }
    }

    /// Creates a GpuNode that is owned by its Node.
    async fn create(&self) -> anyhow::Result<GpuNode> {
        let spec = self.spec_to_create().await?;
        let node = with_deadline(self.nodes.get(&self.node))
            .await
            .context("read the Node that owns the GpuNode")?;
        let gpu_node = GpuNode {
            metadata: ObjectMeta {
                name: Some(self.node.clone()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: self.node.clone(),
                    uid: node.metadata.uid.ok_or_else(|| anyhow!("the Node has no uid"))?,
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec,
            status: None,
        };
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        with_deadline(self.gpu_nodes.create(&params, &gpu_node))
            .await
            .context("create the GpuNode")
    }
}

async fn with_deadline<T>(call: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(anyhow!("no answer from the API server within {DEADLINE:?}")),
    }
}

#[cfg(test)]
mod tests;
