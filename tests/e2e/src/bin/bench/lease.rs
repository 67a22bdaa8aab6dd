//! A lease's own way: from `kubectl apply` to Active, and from its deletion to the refund, on a real node and a chain
//! with blocks of 1 s.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, Tenant, within};
use leasehold_testcluster::Stderr;
use serde_json::json;

use crate::report::Report;

/// One lease of one GPU.
fn wish(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<GpuLease> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "node": {"cpu": "20m", "memory": "32Mi", "ephemeralStorage": "20Mi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"session": {
                "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "sh", "-c"],
                "args": ["trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"],
            }},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    }))?)
}

/// Lives of leases, one after the other.
pub(crate) async fn run(report: &Report, leases: usize) -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("bench-lease");
    spec.optimized = vec!["operator"];
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 16)]);
    let stack = Stack::up(spec, &Stderr::default()).await?;
    let measured = lives(&stack, leases).await;
    stack.down().await?;
    let lives = measured?;
    let active = lives.iter().map(|l| l.active).collect();
    report.quantiles("lease.apply_to_active", active, "s", &[("p50", 50), ("max", 100)]);
    let refund = lives.iter().map(|l| l.refund).collect();
    report.quantiles(
        "lease.delete_to_refund",
        refund,
        "s",
        &[("p50", 50), ("max", 100)],
    );
    let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (phase, seconds) in lives.iter().flat_map(|l| &l.phases) {
        phases.entry(phase.clone()).or_default().push(*seconds);
    }
    for (phase, seconds) in phases {
        report.quantiles(&format!("lease.phase.{phase}"), seconds, "s", &[("p50", 50)]);
    }
    Ok(())
}

/// One lease's times in seconds.
struct Life {
    active: f64,
    refund: f64,
    /// How long each phase was seen.
    phases: Vec<(String, f64)>,
}

async fn lives(stack: &Stack, leases: usize) -> anyhow::Result<Vec<Life>> {
    let tenant = Tenant::new(stack, "bench")?;
    let mut all = Vec::new();
    // One after the other: what is measured is a lease's own way, not a queue.
    for index in 0..leases {
        all.push(
            life(&tenant, &format!("bench-{index}"))
                .await
                .with_context(|| format!("lease {index}"))?,
        );
    }
    Ok(all)
}

async fn life(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<Life> {
    let api = tenant.leases();
    let begun = Instant::now();
    tenant.apply(&wish(tenant, name)?)?;
    let mut phases: Vec<(Phase, Instant)> = vec![(Phase::Pending, begun)];
    loop {
        let phase = api.get(name).await?.status.unwrap_or_default().phase;
        if phases.last().is_none_or(|(last, _)| *last != phase) {
            phases.push((phase, Instant::now()));
        }
        if phase == Phase::Active {
            break;
        }
        anyhow::ensure!(
            begun.elapsed() < Duration::from_secs(120),
            "{phase:?} after two minutes"
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
    Ok(Life {
        active,
        refund,
        phases: spans,
    })
}
