//! What is offered of a node is what the scheduler has: in random situations, a pod that requests a whole row of the offer is
//! scheduled, and one that requests one unit more of any resource is not. The API server and the scheduler are real; the
//! nodes and their pods are objects without machines. `SEED` and `SITUATIONS` choose others.

mod probes;
mod situation;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    node::v1::RuntimeClass,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use leasehold_crds::{
    market::offer::{OfferRow, PaymentIdentity},
    provider::pool::NotSold,
};
use leasehold_planner::{
    ports::Clock as _,
    provider::offer::{
        cluster::pool_runtime,
        node_seen::node_seen,
        pod_requests::{FullPod, pod_requests},
        supply::{PoolRuntime, pool_supply},
    },
    request::Shape,
};
use leasehold_runtime::SystemClock;
use leasehold_simulator::random::Random;
use leasehold_testcluster::{Cluster, ClusterSpec, Stderr, Unavailable};
use serde_json::json;

use probes::{Probe, ROW, probes_of};
use situation::{BoundPod, Situation, runtime_classes};

const SITUATIONS: u64 = 500;
const BATCH: u64 = 125;
/// Requests under way at once.
const AT_ONCE: usize = 24;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_scheduled_and_one_unit_more_is_not() -> anyhow::Result<()> {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let seed =
        number("SEED").unwrap_or_else(|| u64::from(SystemClock.now().subsec_nanosecond().unsigned_abs()));
    eprintln!("SEED={seed}");
    let cluster = Cluster::up(ClusterSpec::new("e2e-room", 0), &Stderr::default()).await?;
    let result = all(&cluster, seed).await;
    cluster.down().await?;
    result.with_context(|| format!("SEED={seed} repeats these situations"))
}

async fn all(cluster: &Cluster, seed: u64) -> anyhow::Result<()> {
    // It would find out that no kubelet answers for the nodes.
    cluster.controller_manager().suspend()?;
    let client = cluster.client();
    let classes = Api::<RuntimeClass>::all(client.clone());
    for class in runtime_classes() {
        classes
            .create(&PostParams::default(), &serde_json::from_value(class)?)
            .await?;
    }
    let mut random = Random::new(seed);
    let count = number("SITUATIONS").unwrap_or(SITUATIONS);
    let mut counts = BTreeMap::new();
    let mut wrong = Vec::new();
    for first in (0..count).step_by(usize::try_from(BATCH)?) {
        let situations: Vec<_> = (first..count.min(first + BATCH))
            .map(|n| Situation::random(format!("s{n}"), &mut random))
            .collect();
        wrong.extend(batch(&client, &situations, &mut counts).await?);
    }
    for (what, count) in &counts {
        eprintln!("{count:>6} {what}");
    }
    let rows = counts.get(ROW).copied().unwrap_or(0);
    ensure!(
        wrong.is_empty(),
        "{} disagreements:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    ensure!(rows * 2 > count, "only {rows} of {count} situations have a row");
    Ok(())
}

/// What the planner says of a situation.
pub(crate) struct Offered {
    /// The row, or why there is none.
    pub(crate) row: Result<OfferRow, NotSold>,
}

/// Compares the offers of several situations with what the scheduler does. Returns the disagreements.
async fn batch(
    client: &Client,
    situations: &[Situation],
    counts: &mut BTreeMap<String, u64>,
) -> anyhow::Result<Vec<String>> {
    let (nodes, pods) = (
        Api::<Node>::all(client.clone()),
        Api::<Pod>::default_namespaced(client.clone()),
    );
    create(client, situations).await?;
    let offers = offers(client, situations).await?;
    let mut wrong = Vec::new();
    for stage in [Stage::More, Stage::Row] {
        let mut wanted: BTreeMap<String, (usize, Probe)> = BTreeMap::new();
        for (n, (situation, offered)) in situations.iter().zip(&offers).enumerate() {
            for probe in probes_of(situation, offered).filter(|p| p.fits == (stage == Stage::Row)) {
                wanted.insert(probe.pod.name_any(), (n, probe));
            }
        }
        let create = |(_, probe): &(usize, Probe)| {
            let (pods, pod) = (pods.clone(), probe.pod.clone());
            async move { pods.create(&PostParams::default(), &pod).await.map(drop) }
        };
        stream::iter(wanted.values().map(create))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let answers = probes::answers(&pods, wanted.keys().cloned().collect(), stage == Stage::Row).await?;
        for (name, (n, probe)) in &wanted {
            let (answer, situation) = (&answers[name], &situations[*n]);
            if answer.is_none() == probe.fits {
                *counts.entry(probe.what.clone()).or_default() += 1;
                continue;
            }
            let answer = answer.as_deref().unwrap_or("scheduled");
            wrong.push(describe(situation, &offers[*n], probe, answer));
        }
        probes::delete_all(&pods, "of=probe").await?;
    }
    for offered in &offers {
        let what = offered
            .row
            .as_ref()
            .map_or_else(|out| format!("not sold: {}", out.reason), |_| "sold".into());
        *counts.entry(what).or_default() += 1;
    }
    probes::delete_all(&pods, "of=situation").await?;
    nodes
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    Ok(wrong)
}

/// What is tried first: probes of more than a row take nothing of the room if the offers are right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    More,
    Row,
}

fn describe(situation: &Situation, offered: &Offered, probe: &Probe, answer: &str) -> String {
    let row = match &offered.row {
        Ok(row) => format!(
            "{} GPUs, cpu {}, memory {}, disk {}",
            row.gpus, row.cpu, row.memory, row.ephemeral_storage
        ),
        Err(out) => format!("not sold: {} {}", out.reason, out.message),
    };
    let pods: Vec<_> = situation
        .pods
        .iter()
        .map(|pod| json!({"spec": pod.object["spec"], "status": pod.status, "terminating": pod.is_terminating}))
        .collect();
    format!(
        "{}: {}: {answer}\n  offered: {row}\n  node: {}\n  pool: {}\n  pods: {}",
        situation.name,
        probe.what,
        situation.node,
        json!(situation.pool.spec),
        json!(pods)
    )
}

/// Creates the nodes and the pods that are bound to them.
async fn create(client: &Client, situations: &[Situation]) -> anyhow::Result<()> {
    let (nodes, pods) = (
        Api::<Node>::all(client.clone()),
        Api::<Pod>::default_namespaced(client.clone()),
    );
    let node = async |situation: &Situation| {
        let node = serde_json::from_value(situation.node.clone())?;
        nodes
            .create(&PostParams::default(), &node)
            .await
            .context("create a Node")?;
        // Every new Node gets the taint of one that is not ready.
        let taints = json!({"spec": {"taints": situation.node["spec"]["taints"]}});
        nodes
            .patch(&situation.name, &PatchParams::default(), &Patch::Merge(&taints))
            .await?;
        anyhow::Ok(())
    };
    let pod = async |pod: &BoundPod| {
        let object: Pod = serde_json::from_value(pod.object.clone())?;
        let name = object.name_any();
        let created = pods.create(&PostParams::default(), &object).await;
        created.with_context(|| format!("create {}", pod.object))?;
        // As JSON: the fields of newer versions of the API are not in the type.
        let status = json!({"status": pod.status});
        let patched = pods
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
            .await;
        patched.with_context(|| format!("write the status {status} of {}", pod.object))?;
        if pod.is_terminating {
            pods.delete(&name, &DeleteParams::default().grace_period(3_600))
                .await?;
        }
        anyhow::Ok(())
    };
    stream::iter(situations)
        .map(node)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    stream::iter(situations.iter().flat_map(|s| &s.pods))
        .map(pod)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// What the planner offers of each node, by the objects as the API server stored them.
async fn offers(client: &Client, situations: &[Situation]) -> anyhow::Result<Vec<Offered>> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await?;
    let nodes: BTreeMap<String, Node> = nodes.items.into_iter().map(|n| (n.name_any(), n)).collect();
    let bound = ListParams::default().labels("of=situation");
    let mut requested: BTreeMap<String, Vec<Shape>> = BTreeMap::new();
    // As JSON: the type of an older version of the API lacks fields that the scheduler reads.
    let pods = Api::<DynamicObject>::default_namespaced_with(client.clone(), &ApiResource::erase::<Pod>(&()));
    for object in pods.list(&bound).await? {
        let seen: FullPod = serde_json::from_value(serde_json::to_value(object)?)?;
        let (requests, pod) = (pod_requests(&seen), &seen.pod);
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if !matches!(phase, Some("Succeeded" | "Failed"))
            && let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.clone())
        {
            requested.entry(node).or_default().push(requests);
        }
    }
    let classes = Api::<RuntimeClass>::all(client.clone())
        .list(&ListParams::default())
        .await?;
    let classes: BTreeMap<String, PoolRuntime> = classes
        .iter()
        .map(|class| (class.name_any(), pool_runtime(class)))
        .collect();
    let mut offers = Vec::new();
    for situation in situations {
        let requested = requested.remove(&situation.name).unwrap_or_default();
        let seen = node_seen(&nodes[&situation.name], requested, Some(situation.gpus.clone()));
        let class = situation.pool.spec.runtime_class_name.as_ref();
        let runtime = class.map_or_else(PoolRuntime::default, |name| classes[name].clone());
        let supply = pool_supply(
            &situation.pool,
            (Some(&runtime), Some(&PaymentIdentity::default())),
            &[seen],
            &[],
            &mut BTreeSet::new(),
            Timestamp::UNIX_EPOCH,
        );
        let out = || supply.not_sold.first().cloned().context("a node is sold or not");
        let row = match supply.rows.first() {
            Some(row) => Ok(row.clone()),
            None => Err(out()?),
        };
        offers.push(Offered { row });
    }
    Ok(offers)
}
