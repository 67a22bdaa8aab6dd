//! Resources that the agent uses on a node: the chart's DaemonSet with a release image, a real kubelet and API
//! server, the simulated driver with eight GPUs, and the chart's default period.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, within};
use leasehold_testcluster::Stderr;

use leasehold_e2e::Watched;

use crate::report::Report;

const PROGRAM: &str = "leasehold-agent";
/// The start, with the first reading of all facts, is not measured.
const SETTLE: Duration = Duration::from_secs(25);

/// Measures the agent's process.
pub(crate) async fn run(report: &Report, seconds: u64) -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("bench-agent");
    spec.optimized = vec!["agent"];
    spec.agent_args = vec!["--period=10s".into()];
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 8)]);
    let stack = Stack::up(spec, &Stderr::default()).await?;
    let measured = watch(&stack, Duration::from_secs(seconds.max(60))).await;
    stack.down().await?;
    let cost = measured?;
    report.line("agent.rss", cost.resident, "MiB", 1);
    report.line("agent.rss_anonymous", cost.anonymous, "MiB", 1);
    report.line("agent.cpu", cost.cpu_percent, "%", 1);
    Ok(())
}

struct Cost {
    resident: f64,
    anonymous: f64,
    /// Percent of one core.
    cpu_percent: f64,
}

async fn watch(stack: &Stack, span: Duration) -> anyhow::Result<Cost> {
    let pods = Api::<Pod>::all(stack.client.clone());
    let agent = ListParams::default().labels("app.kubernetes.io/component=agent");
    let process = within(Duration::from_secs(60), "the agent's process", || async {
        let pod = pods.list(&agent).await?.items.into_iter().next();
        Ok(Watched::of(&pod.context("the DaemonSet has a pod")?, PROGRAM).map_err(|e| e.to_string()))
    })
    .await?;
    tokio::time::sleep(SETTLE).await;
    let (begun, cpu) = (Instant::now(), process.cpu()?);
    let mut resident = process.resident()?;
    while begun.elapsed() < span {
        tokio::time::sleep(Duration::from_secs(1)).await;
        resident = resident.max(process.resident()?);
    }
    let spent = process.cpu()? - cpu;
    Ok(Cost {
        resident,
        anonymous: process.anonymous()?,
        cpu_percent: 100.0 * spent.as_secs_f64() / begun.elapsed().as_secs_f64(),
    })
}
