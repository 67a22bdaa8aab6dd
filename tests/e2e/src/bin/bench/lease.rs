//! The time of single leases from `kubectl apply` to Active, and from the deletion to the refund, on a real node and
//! a chain with blocks of 1 s.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::{Api, api::ListParams};
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, Tenant, within};
use leasehold_planner::{
    escrow::{AccountRead, Terms, allocation_name},
    ports::{BlockLevel, Payments as _},
};
use leasehold_testcluster::Stderr;
use serde_json::json;

use crate::report::Report;

/// A lease of one GPU.
fn lease(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<GpuLease> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            // With less CPU, the kernel would throttle the container runtime's start of the pod.
            "perNode": {"cpu": "1", "memory": "32Mi", "ephemeralStorage": "20Mi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"session": {
                "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "sh", "-c"],
                "args": ["trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"],
            }},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    }))?)
}

/// Runs leases, one after the other.
pub(crate) async fn run(report: &Report, leases: usize) -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("bench-lease");
    spec.optimized = vec!["operator"];
    // A lease of one GPU gets its proportion of the node, which is all of it.
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 1)]);
    let stack = Stack::up(spec, &Stderr::default()).await?;
    let measured = measure(&stack, leases).await;
    stack.down().await?;
    let times = measured?;
    let active = times.iter().map(|l| l.active).collect();
    report.quantiles("lease.apply_to_active", active, "s", &[("p50", 50), ("max", 100)]);
    let refund = times.iter().map(|l| l.refund).collect();
    report.quantiles(
        "lease.delete_to_refund",
        refund,
        "s",
        &[("p50", 50), ("max", 100)],
    );
    let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (phase, seconds) in times.iter().flat_map(|l| &l.phases) {
        phases.entry(phase.clone()).or_default().push(*seconds);
    }
    for (phase, seconds) in phases {
        report.quantiles(&format!("lease.phase.{phase}"), seconds, "s", &[("p50", 50)]);
    }
    for step in Step::ALL {
        let reached = times.iter().filter_map(|l| l.steps.get(&step).copied()).collect();
        report.quantiles(
            &format!("lease.until.{}", step.name()),
            reached,
            "s",
            &[("p50", 50)],
        );
    }
    Ok(())
}

/// Times of one lease, in seconds.
struct LeaseTimes {
    active: f64,
    refund: f64,
    /// How long each phase lasted, as far as seen.
    phases: Vec<(String, f64)>,
    /// Time from `kubectl apply` to each step.
    steps: BTreeMap<Step, f64>,
}

/// Steps on the way to Active, as far as they are visible from outside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Named,
    Opened,
    PodMade,
    PodRunning,
    PodReady,
    Started,
}

impl Step {
    const ALL: [Self; 6] = [
        Self::Named,
        Self::Opened,
        Self::PodMade,
        Self::PodRunning,
        Self::PodReady,
        Self::Started,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Opened => "opened",
            Self::PodMade => "pod_made",
            Self::PodRunning => "pod_running",
            Self::PodReady => "pod_ready",
            Self::Started => "started",
        }
    }
}

/// Notes the steps that are seen for the first time.
async fn note_steps(
    tenant: &Tenant<'_>,
    lease: &GpuLease,
    begun: Instant,
    steps: &mut BTreeMap<Step, f64>,
) -> anyhow::Result<()> {
    let Some(escrow) = lease.status.as_ref().and_then(|s| s.escrow.as_ref()) else {
        return Ok(());
    };
    let mut see = |step| {
        steps.entry(step).or_insert_with(|| begun.elapsed().as_secs_f64());
    };
    see(Step::Named);
    let terms = Terms::from_wire(&escrow.terms)?;
    let at = tenant.stack.payments.account(&terms, BlockLevel::Latest).await?;
    if let AccountRead::Present(account) = at.read {
        see(Step::Opened);
        if account.started_at != 0 {
            see(Step::Started);
        }
    }
    let pods = Api::<Pod>::namespaced(tenant.stack.client.clone(), &allocation_name(terms.id(), 0));
    if let Some(pod) = pods.list(&ListParams::default()).await?.items.first() {
        see(Step::PodMade);
        let status = pod.status.clone().unwrap_or_default();
        if status.phase.as_deref() == Some("Running") {
            see(Step::PodRunning);
        }
        let ready = |c: &PodCondition| c.type_ == "Ready" && c.status == "True";
        if status.conditions.iter().flatten().any(ready) {
            see(Step::PodReady);
        }
    }
    Ok(())
}

async fn measure(stack: &Stack, leases: usize) -> anyhow::Result<Vec<LeaseTimes>> {
    let tenant = Tenant::new(stack, "bench")?;
    let mut all = Vec::new();
    // One after the other, so that leases do not wait for each other.
    for index in 0..leases {
        all.push(
            one_lease(&tenant, &format!("bench-{index}"))
                .await
                .with_context(|| format!("lease {index}"))?,
        );
    }
    Ok(all)
}

async fn one_lease(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<LeaseTimes> {
    let api = tenant.leases();
    let begun = Instant::now();
    tenant.apply(&lease(tenant, name)?)?;
    let mut phases: Vec<(Phase, Instant)> = vec![(Phase::Pending, begun)];
    let mut steps = BTreeMap::new();
    loop {
        let lease = api.get(name).await?;
        note_steps(tenant, &lease, begun, &mut steps).await?;
        let status = lease.status.unwrap_or_default();
        let phase = status.phase;
        if phases.last().is_none_or(|(last, _)| *last != phase) {
            phases.push((phase, Instant::now()));
        }
        if phase == Phase::Active {
            break;
        }
        anyhow::ensure!(
            begun.elapsed() < Duration::from_secs(120),
            "{phase:?} after two minutes; conditions {:?}, quote {:?}",
            status.conditions,
            status.quote
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let active = begun.elapsed().as_secs_f64();
    let lease = api.get(name).await?;
    let deleted = Instant::now();
    tenant.delete(name).await?;
    within(Duration::from_secs(60), "the refund", || async {
        let (_, account) = tenant.account(&lease).await?;
        Ok(if account.closed { Ok(()) } else { Err("open") })
    })
    .await?;
    let refund = deleted.elapsed().as_secs_f64();
    tenant.until_gone(name, Duration::from_secs(60)).await?;
    let spans = phases
        .windows(2)
        .map(|w| {
            (
                format!("{:?}", w[0].0).to_lowercase(),
                (w[1].1 - w[0].1).as_secs_f64(),
            )
        })
        .collect();
    Ok(LeaseTimes {
        active,
        refund,
        phases: spans,
        steps,
    })
}
