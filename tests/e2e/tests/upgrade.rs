//! Leasehold is upgraded and rolled back while ten leases run: no workload restarts, and no tenant pays for a second
//! that was not served.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Pod,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_crds::{GpuLease, GpuPool, LABEL_LEASE, lease::Phase, shared::conditions::is_true};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, Tenant, containers_run_since, on_stack, within};
use serde_json::json;

const LEASES: usize = 10;
const LIMIT: Duration = Duration::from_secs(120);
const SYSTEM: &str = "leasehold-system";

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_and_a_rollback_do_not_affect_running_leases() -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("e2e-upgrade");
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), LEASES)]);
    on_stack(spec, story).await
}

async fn story(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    let before = tenant.own_balance().await?;
    for index in 0..LEASES {
        tenant.apply(&lease(&tenant, &format!("box-{index}"))?)?;
    }
    for index in 0..LEASES {
        let ready = |l: &GpuLease| l.status.as_ref().is_some_and(|s| is_true(&s.conditions, "Ready"));
        tenant
            .until(&format!("box-{index}"), LIMIT, "Ready", ready)
            .await?;
    }
    let running = pods(stack).await?;
    ensure!(running.len() == LEASES, "{running:?}");

    let old = rollout(stack).await?;
    upgrade(stack).await?;
    let new = rolled_out(stack, &old).await?;
    unharmed(&tenant, &running).await.context("after the upgrade")?;

    let mut helm = stack.cluster.helm();
    helm.args(["rollback", "leasehold", "1", "--namespace", SYSTEM]);
    succeeded(&mut helm)?;
    rolled_out(stack, &new).await?;
    unharmed(&tenant, &running).await.context("after the rollback")?;

    // Each lease served from its first charged second to its last: the charge equals the account's paid seconds.
    let mut spent = 0;
    for index in 0..LEASES {
        let name = format!("box-{index}");
        let lease = tenant.leases().get(&name).await?;
        let (terms, _) = tenant.account(&lease).await?;
        let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
        let namespace = escrow.context("the lease has an escrow account")?.legs[0]
            .namespace
            .clone();
        let pod = running
            .get(&(namespace, "lease-0".to_owned()))
            .context("the pod of the lease was seen")?;
        tenant.delete(&name).await?;
        let closed = within(LIMIT, "the close", || async {
            let (_, account) = tenant.account(&lease).await?;
            Ok(if account.closed { Ok(account) } else { Err(account) })
        })
        .await?;
        let started = i64::try_from(closed.started_at)?;
        let run_since = pod.run_since.context("the containers of the pod ran")?;
        ensure!(
            started >= run_since,
            "{name}: charged from {started}, running since {run_since}"
        );
        let served = closed.legs[0].served_seconds;
        ensure!(
            served == closed.paid_seconds,
            "{served} s served, but {} s paid",
            closed.paid_seconds
        );
        spent += terms.rate().cost_ceil(served).context("cost")?.0;
        tenant.until_gone(&name, LIMIT).await?;
    }
    let left = before.0 - tenant.own_balance().await?.0;
    ensure!(
        spent.abs_diff(left) <= LEASES as u128,
        "the tenant spent {left}, but {spent} was served (rounding may add one unit per lease)"
    );
    Ok(())
}

/// Installs another version, which restarts every operator and agent, and changes the pool so that new pods would differ.
async fn upgrade(stack: &Stack) -> anyhow::Result<()> {
    let mut helm = stack.cluster.helm();
    helm.args(["upgrade", "leasehold"])
        .arg(leasehold_tasks::root().join("charts/leasehold"))
        .args(["--namespace", SYSTEM, "--reuse-values"])
        .args(["--set", "market.podAnnotations.version=next"])
        .args(["--set", "provider.podAnnotations.version=next"])
        .args(["--set", "agent.podAnnotations.version=next"]);
    succeeded(&mut helm)?;
    let pools = Api::<GpuPool>::all(stack.client.clone());
    let edited = json!({"spec": {
        "pricePerGpuHour": "1.86", "exposure": "LoadBalancer", "runtimeClassName": "another", "storage": {"className": "another", "maxSize": "1Gi"},
    }});
    pools
        .patch(
            &stack.spec.providers[0].name,
            &PatchParams::default(),
            &Patch::Merge(&edited),
        )
        .await?;
    Ok(())
}

fn lease(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<GpuLease> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "perNode": {"cpu": "100m", "memory": "32Mi", "ephemeralStorage": "20Mi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"service": {
                "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "httpd", "-f", "-p", "8080"],
                "ports": [{"name": "http", "port": 8080}], "readiness": {"port": 8080},
            }},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    }))?)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Running {
    uid: String,
    restarts: i32,
    run_since: Option<i64>,
    ready_since: i64,
}

/// Pods of leases, by namespace and name.
async fn pods(stack: &Stack) -> anyhow::Result<BTreeMap<(String, String), Running>> {
    let api = Api::<Pod>::all(stack.client.clone());
    let list = api.list(&ListParams::default().labels(LABEL_LEASE)).await?;
    let of = |pod: Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Ready" && c.status == "True");
        let since = ready.and_then(|c| c.last_transition_time.as_ref());
        let running = Running {
            uid: pod.uid().unwrap_or_default(),
            restarts: status
                .container_statuses
                .iter()
                .flatten()
                .map(|c| c.restart_count)
                .sum(),
            run_since: containers_run_since(&pod),
            ready_since: since.map_or(0, |t| t.0.as_second()),
        };
        ((pod.namespace().unwrap_or_default(), pod.name_any()), running)
    };
    Ok(list.items.into_iter().map(of).collect())
}

/// Checks that the pods are the same, not restarted or unready, and every lease Active and running.
async fn unharmed(tenant: &Tenant<'_>, before: &BTreeMap<(String, String), Running>) -> anyhow::Result<()> {
    let now = pods(tenant.stack).await?;
    ensure!(*before == now, "before {before:?}\nnow {now:?}");
    for lease in tenant.leases().list(&ListParams::default()).await? {
        let status = lease.status.clone().unwrap_or_default();
        ensure!(status.phase == Phase::Active, "{}: {status:?}", lease.name_any());
        let (_, account) = tenant.account(&lease).await?;
        ensure!(account.running == 1 && !account.closed, "{account:?}");
    }
    Ok(())
}

/// Uids of the pods of the operators and the agent.
async fn rollout(stack: &Stack) -> anyhow::Result<Vec<String>> {
    let pods = Api::<Pod>::namespaced(stack.client.clone(), SYSTEM);
    // Jobs of the installation are not restarted.
    let labels = ListParams::default()
        .labels("app.kubernetes.io/name=leasehold,app.kubernetes.io/component in (market,provider,agent)")
        .fields("status.phase!=Succeeded");
    let list = pods.list(&labels).await?;
    Ok(list.items.iter().filter_map(kube::ResourceExt::uid).collect())
}

/// Waits until all old pods are gone and all new ones are ready.
async fn rolled_out(stack: &Stack, old: &[String]) -> anyhow::Result<Vec<String>> {
    let deployments = Api::<Deployment>::namespaced(stack.client.clone(), SYSTEM);
    let sets = Api::<DaemonSet>::namespaced(stack.client.clone(), SYSTEM);
    within(LIMIT, "the rollout", || async {
        let now = rollout(stack).await?;
        let ready = deployments
            .list(&ListParams::default())
            .await?
            .items
            .iter()
            .all(|d| {
                let status = d.status.clone().unwrap_or_default();
                status.observed_generation == d.metadata.generation
                    && status.ready_replicas == d.spec.as_ref().and_then(|s| s.replicas)
            });
        let agents = sets.list(&ListParams::default()).await?.items.iter().all(|d| {
            d.status
                .as_ref()
                .is_some_and(|s| s.number_ready == s.desired_number_scheduled)
        });
        let gone = !now.is_empty() && now.iter().all(|uid| !old.contains(uid));
        Ok(if ready && agents && gone {
            Ok(now)
        } else {
            Err((ready, agents, gone))
        })
    })
    .await
}

fn succeeded(command: &mut std::process::Command) -> anyhow::Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
