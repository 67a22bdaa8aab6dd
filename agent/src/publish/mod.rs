//! The agent's writes: the status of the GpuNode, when it changed, and the renewal of the agent's Lease.
//!
//! Both use server-side apply with the agent's own field manager, so that a restart or a second agent changes nothing
//! that is up to date, and fields set by administrators are kept.
//!
//! A GpuNode is deleted with its Node, and created again when the Node registers again. What the administrator set in its
//! spec is kept meanwhile in an annotation of the Lease, which no Node owns.
//!
//! The Lease also shows when the agent was started, and its last report before. If the node was restarted, its containers
//! are known to have run until that report.

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
    ANNOTATION_LAST_REPORT, GpuNode,
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

/// What an earlier run of the agent left in its Lease.
#[derive(Debug, Default)]
struct Left {
    /// The spec of the GpuNode, as JSON.
    spec: Option<String>,
    restart: Option<Restart>,
}

/// The interval in which the agent did not report.
#[derive(Clone, Copy, Debug)]
struct Restart {
    last_report: Timestamp,
    first_report: Timestamp,
}

impl Left {
    /// An agent that is started again within one period has missed no report.
    fn of(lease: Option<Lease>, period: Duration, now: Timestamp) -> Self {
        let Some(lease) = lease else {
            return Self::default();
        };
        let spec = lease.spec.unwrap_or_default();
        let mut annotations = lease.metadata.annotations.unwrap_or_default();
        let last_report = annotations.remove(ANNOTATION_LAST_REPORT);
        let before = last_report
            .and_then(|at| at.parse().ok())
            .zip(spec.acquire_time)
            .map(|(last_report, first)| Restart {
                last_report,
                first_report: first.0,
            });
        let restart = match spec.renew_time {
            Some(last) if now.duration_since(last.0).unsigned_abs() > period => Some(Restart {
                last_report: last.0,
                first_report: now,
            }),
            _ => before,
        };
        Self {
            spec: annotations.remove(SPEC_ANNOTATION),
            restart,
        }
    }
}

/// Writes the GpuNode and the Lease.
pub(crate) struct Publisher {
    node: String,
    gpu_nodes: Api<GpuNode>,
    nodes: Api<Node>,
    leases: Api<Lease>,
    lease_seconds: i32,
    /// Time between two renewals.
    period: Duration,
    /// `None` before the Lease was read.
    left: Option<Left>,
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
    pub(crate) fn new(
        client: &Client,
        node: &str,
        namespace: &str,
        (period, lease): (Duration, Duration),
    ) -> Self {
        Self {
            node: node.to_owned(),
            gpu_nodes: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            leases: Api::namespaced(client.clone(), namespace),
            lease_seconds: i32::try_from(lease.as_secs()).unwrap_or(i32::MAX),
            period,
            left: None,
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
    /// the agent wrote. The first time, it reads what that run left in the Lease.
    pub(crate) async fn refresh(&mut self, now: Timestamp) -> anyhow::Result<GpuNodeStatus> {
        if self.left.is_none() {
            let lease = with_deadline(self.leases.get_opt(&self.node))
                .await
                .context("read the agent's Lease")?;
            self.left = Some(Left::of(lease, self.period, now));
        }
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
        let mut lease_spec = json!({
            "holderIdentity": self.node,
            "leaseDurationSeconds": self.lease_seconds,
            "renewTime": MicroTime(now),
        });
        let mut annotations = json!({SPEC_ANNOTATION: serde_json::to_string(spec)?});
        if let Some(restart) = self.left.as_ref().and_then(|left| left.restart) {
            annotations[ANNOTATION_LAST_REPORT] = json!(restart.last_report.to_string());
            lease_spec["acquireTime"] = json!(MicroTime(restart.first_report));
        }
        let patch = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self.node,
                "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER},
                "annotations": annotations,
            },
            "spec": lease_spec,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        with_deadline(self.leases.patch(&self.node, &params, &Patch::Apply(&patch)))
            .await
            .context("renew the agent's Lease")?;
        Ok(())
    }

    /// The spec of a GpuNode that is created: what an administrator had set, even before a restart of the agent. While that
    /// is unknown, no GpuNode is created. The GPUs of a new node may be offered.
    fn spec_to_create(&self) -> anyhow::Result<GpuNodeSpec> {
        if let Some(spec) = &self.spec {
            return Ok(spec.clone());
        }
        let left = self.left.as_ref().and_then(|left| left.spec.as_deref());
        match left {
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
        let spec = self.spec_to_create()?;
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
