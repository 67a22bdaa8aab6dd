//! Many leases at once: how fast they are matched and become Active, what that costs the API server and the
//! operators, and how soon restarted operators are up to date. The nodes are simulated by KWOK; this program writes
//! their GpuNodes.

mod api_writes;
mod nodes;
mod operators;
mod progress;
mod tenants;

use std::time::{Duration, Instant};

use leasehold_e2e::{GpuNodes, ProviderSpec, Stack, StackSpec};
use leasehold_testcluster::{Progress as _, Stderr};

use self::{
    api_writes::ApiWrites,
    operators::Operators,
    progress::{LeaseProgress, Reached},
    tenants::Tenants,
};
use crate::report::Report;

/// Name of the only provider.
const PROVIDER: &str = "plain";
/// GPUs of a node. A lease takes one.
const GPUS_OF_A_NODE: usize = 8;
/// When no further lease has become Active for this long, the benchmark stops waiting.
const STANDSTILL: Duration = Duration::from_secs(90);

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Number of leases, each of one GPU
    #[arg(long, default_value_t = 2_000)]
    leases: usize,
    /// Minutes after which it stops waiting, and continues with the restart
    #[arg(long, default_value_t = 30)]
    minutes: u64,
}

/// Runs the benchmark on a cluster of its own.
pub(crate) async fn run(report: &Report, flags: &Flags) -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("bench-scale");
    spec.optimized = vec!["operator"];
    spec.providers = vec![ProviderSpec {
        name: PROVIDER.into(),
        region: "eu-west".into(),
        price: "1.85".into(),
        nodes: GpuNodes::Kwok(Vec::new()),
    }];
    let mut stack = Stack::up(spec, &Stderr::default()).await?;
    let measured = measure(report, flags, &mut stack).await;
    if measured.is_err() {
        stack.dump(&leasehold_testcluster::cache_root()?.join("failed/bench-scale"));
    }
    stack.down().await?;
    measured
}

async fn measure(report: &Report, flags: &Flags, stack: &mut Stack) -> anyhow::Result<()> {
    let progress = Stderr::default();
    let deadline = Instant::now() + Duration::from_secs(60 * flags.minutes);
    // A tenth more capacity than needed, so that the search for the last free GPU is not measured.
    let count = (flags.leases + flags.leases / 10).div_ceil(GPUS_OF_A_NODE) + 1;
    progress.step(&format!(
        "creating {count} nodes and their GpuNodes, as no agents run"
    ));
    let fleet = nodes::Fleet::make(stack, count).await?;
    progress.step("creating tenants with wallets");
    let tenants = Tenants::make(stack, flags.leases).await?;
    let operators = Operators::find(stack).await?;
    fleet.offered(stack).await?;

    progress.step(&format!("applying {} leases", flags.leases));
    let progress_of_leases = LeaseProgress::watch(stack);
    let writes = ApiWrites::read(&stack.client).await?;
    let applied = tenants.apply(stack, flags.leases).await?;
    progress.step(&format!(
        "applied in {:.1} s; waiting until they are Active",
        applied.as_secs_f64()
    ));
    let reached = progress_of_leases
        .until_active(flags.leases, deadline, STANDSTILL, |line| progress.step(line))
        .await;
    let (active, n) = (reached.active, reached.active.max(1));
    // The last writes follow shortly.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let written = ApiWrites::read(&stack.client).await?.since(&writes);
    for (resource, count) in written.most(30) {
        progress.step(&format!("{:>8.2} per lease: {resource}", count / as_float(n)));
    }
    report_figures(report, &reached, &operators, &written)?;

    for line in progress::not_active(&stack.client).await? {
        progress.step(&line);
    }

    progress.step("killing both operators");
    let converged = operators.restart(stack, &tenants, active).await?;
    report.line("scale.restart_to_converged", converged.as_secs_f64(), "s", active);
    if active < flags.leases {
        progress.step(&format!(
            "stopped waiting: {active} of {} became Active; the values are for those",
            flags.leases
        ));
    }
    fleet.end();
    Ok(())
}

/// Reports values for the leases that became Active.
fn report_figures(
    report: &Report,
    reached: &Reached,
    operators: &Operators,
    written: &ApiWrites,
) -> anyhow::Result<()> {
    let (active, n) = (reached.active, reached.active.max(1));
    report.line(
        "scale.matched_per_second",
        reached.matched_per_second(),
        "/s",
        reached.reserved,
    );
    report.line(
        "scale.active_per_second",
        reached.active_per_second(),
        "/s",
        active,
    );
    report.quantiles(
        "scale.apply_to_active",
        reached.seconds_to_active.clone(),
        "s",
        &[("p50", 50), ("max", 100)],
    );
    for (role, most) in operators.most_resident()? {
        report.line(&format!("scale.operator_rss.{role}"), most, "MiB", active);
    }
    report.line(
        "scale.operator_rss",
        operators
            .most_resident()?
            .into_iter()
            .map(|(_, most)| most)
            .fold(0.0, f64::max),
        "MiB",
        active,
    );
    for (role, spent) in operators.cpu()? {
        report.line(
            &format!("scale.operator_cpu_per_lease.{role}"),
            1e3 * spent.as_secs_f64() / as_float(n),
            "ms",
            active,
        );
    }
    report.line(
        "scale.api_writes_per_lease",
        written.all() / as_float(n),
        "",
        active,
    );
    Ok(())
}

fn as_float(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}
