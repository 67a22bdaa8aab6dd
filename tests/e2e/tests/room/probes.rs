//! Pods by which the scheduler is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use leasehold_crds::{provider::pool::NotSoldReason, shared::quantity};
use leasehold_planner::request::Shape;
use serde_json::{Value, json};

use crate::{
    Offered,
    situation::{GPU, Situation},
};

/// How long the scheduler may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// For how long a pod that should be scheduled may be refused: the scheduler may not have seen everything yet.
const REFUSED: Duration = Duration::from_secs(15);

/// What is counted for a pod that requests the whole row.
pub(crate) const ROW: &str = "rows: all of it is scheduled";

/// A pod, and whether it should be scheduled.
pub(crate) struct Probe {
    pub(crate) pod: Pod,
    pub(crate) fits: bool,
    pub(crate) what: String,
}

/// A pod that requests the whole row, and one for each resource that requests one unit more of it. If the node is full or
/// keeps pods away, one that requests the least that a lease can.
pub(crate) fn probes_of(situation: &Situation, offered: &Offered) -> impl Iterator<Item = Probe> {
    let mut probes = Vec::new();
    match &offered.row {
        Ok(row) => {
            let room = Shape {
                gpus: row.gpus.unsigned_abs(),
                millicores: quantity::millicores(&row.cpu).unwrap_or(0),
                memory: quantity::bytes(&row.memory).unwrap_or(0),
                scratch: quantity::bytes(&row.ephemeral_storage).unwrap_or(0),
            };
            let one = [
                (
                    "GPU",
                    Shape {
                        gpus: 1,
                        ..Shape::default()
                    },
                ),
                (
                    "millicore",
                    Shape {
                        millicores: 1,
                        ..Shape::default()
                    },
                ),
                (
                    "byte of memory",
                    Shape {
                        memory: 1,
                        ..Shape::default()
                    },
                ),
                (
                    "byte of disk",
                    Shape {
                        scratch: 1,
                        ..Shape::default()
                    },
                ),
            ];
            probes.push((true, ROW.to_owned(), room));
            probes.extend(one.map(|(unit, more)| {
                (
                    false,
                    format!("rows: one more {unit} is not scheduled"),
                    room.plus(&more),
                )
            }));
        }
        Err(out) => {
            let keeps_away = [
                NotSoldReason::NotSchedulable,
                NotSoldReason::Tainted,
                NotSoldReason::NoGpuFree,
                NotSoldReason::NoPodFree,
                NotSoldReason::NoRoomFree,
            ];
            if keeps_away.iter().any(|reason| reason.to_string() == out.reason) {
                let least = Shape {
                    gpus: 1,
                    millicores: 1,
                    memory: 1,
                    scratch: 0,
                };
                probes.push((
                    false,
                    format!("not sold, {}: no pod is scheduled", out.reason),
                    least,
                ));
            }
        }
    }
    let pod = |n: usize, shape: &Shape| -> Pod {
        serde_json::from_value(pod(&format!("probe-{}-{n}", situation.name), situation, shape))
            .expect("a Pod")
    };
    let probes: Vec<_> = probes
        .iter()
        .enumerate()
        .map(|(n, (fits, what, shape))| Probe {
            pod: pod(n, shape),
            fits: *fits,
            what: what.clone(),
        })
        .collect();
    probes.into_iter()
}

/// A pod of a lease, as far as the scheduler reads it.
fn pod(name: &str, situation: &Situation, shape: &Shape) -> Value {
    let mut tolerations = vec![json!({"key": GPU, "operator": "Exists"})];
    tolerations.extend(situation.pool.spec.tolerations.iter().map(|t| {
        let operator = if t.value.is_some() { "Equal" } else { "Exists" };
        json!({"key": t.key, "operator": operator, "value": t.value, "effect": t.effect})
    }));
    let requests = json!({
        "cpu": quantity::millicores_text(shape.millicores),
        "memory": shape.memory.to_string(),
        "ephemeral-storage": shape.scratch.to_string(),
        GPU: shape.gpus.to_string(),
    });
    let on_node = json!({"key": "metadata.name", "operator": "In", "values": [situation.name]});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"of": "probe"}},
        "spec": {
            "containers": [{"name": "main", "image": "none", "resources": {"requests": requests, "limits": requests}}],
            "tolerations": tolerations,
            "runtimeClassName": situation.pool.spec.runtime_class_name,
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchFields": [on_node]}]}}},
        },
    })
}

/// What became of each pod: nothing if it is scheduled, or in the scheduler's words why it is not.
pub(crate) async fn answers(
    pods: &Api<Pod>,
    names: BTreeSet<String>,
    should_fit: bool,
) -> anyhow::Result<BTreeMap<String, Option<String>>> {
    let begun = Instant::now();
    loop {
        let list = pods.list(&ListParams::default().labels("of=probe")).await?;
        let mut answers = BTreeMap::new();
        for pod in list.items.iter().filter(|pod| names.contains(&pod.name_any())) {
            if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
                answers.insert(pod.name_any(), None);
                continue;
            }
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let mut refused = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False");
            let patient = should_fit && begun.elapsed() < REFUSED;
            if let Some(refused) = refused.next().filter(|_| !patient) {
                answers.insert(pod.name_any(), Some(refused.message.clone().unwrap_or_default()));
            }
        }
        if answers.len() == names.len() {
            return Ok(answers);
        }
        let silent = names
            .iter()
            .find(|name| !answers.contains_key(*name))
            .context("a pod")?;
        anyhow::ensure!(
            begun.elapsed() < PATIENCE,
            "the scheduler does not answer for {silent}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Deletes all pods with that label, and waits until they are gone.
pub(crate) async fn delete_all(pods: &Api<Pod>, label: &str) -> anyhow::Result<()> {
    let all = ListParams::default().labels(label);
    let begun = Instant::now();
    loop {
        pods.delete_collection(&DeleteParams::default().grace_period(0), &all)
            .await?;
        if pods.list(&all).await?.items.is_empty() {
            return Ok(());
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "pods with the label {label} remain");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
