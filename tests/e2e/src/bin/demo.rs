//! `cargo xtask demo`: Leasehold on this machine, two stories of a tenant, and all balances to the last unit. It ends
//! with PASS, or with FAIL and the reason. Nothing of it remains unless requested.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use leasehold_chain::deploy;
use leasehold_crds::payment::money::TokenAmount;
use leasehold_e2e::{
    Align, Console, Role, Stack, StackSpec, Table, address, payee,
    story::{self, Balances, Participants, Stage},
};
use leasehold_testcluster::{Progress as _, Unavailable};
use tokio::signal::unix::{SignalKind, signal};

/// Name of the cluster.
const CLUSTER: &str = "demo";
/// Name of the cluster for a demo with a broken step, so that a kept cluster is not affected.
const BROKEN_CLUSTER: &str = "demo-broken";
/// The tenant's namespace.
const NAMESPACE: &str = "team-a";

#[derive(Parser)]
#[command(
    name = "cargo xtask demo",
    about = "Leasehold on this machine, with two stories"
)]
struct Args {
    /// Keep the cluster at the end
    #[arg(long)]
    keep: bool,
    /// Break a step to see the demo fail
    #[arg(long = "break", value_name = "STEP", hide = true)]
    sabotage: Option<Sabotage>,
}

/// Steps that can be broken, to show that the demo can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sabotage {
    /// The tenant has no tokens.
    Funds,
    /// The closer has no native tokens for gas, so that the refund is not sent.
    Refund,
    /// A payee gets one base unit from elsewhere.
    Unit,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let console = Console::terminal();
    match run(&args, &console).await {
        Ok(()) => {
            console.pass(&format!(
                "two leases, every unit accounted for, in {:.0} s",
                console.elapsed().as_secs_f64()
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            console.fail(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    console.title("Leasehold: GPUs from four providers, paid by the second");
    console.line("Kubernetes and a chain, the Helm chart, and simulated GPUs behind the real NVML symbols.");
    console.line("rhine-west has a real node with 2 H100 that runs containers; the nodes of alpine-one,");
    console.line("fjord-gpu and prairie, 4 A100 each, are simulated by KWOK, each with the real agent.");
    console.line("");
    if let Err(why) = Unavailable::check() {
        return Err(anyhow::Error::new(why).context(
            "the demo cannot run here; run it as root, for instance with `sudo -E cargo xtask demo`",
        ));
    }
    let mut terminated = signal(SignalKind::terminate())?;
    // When interrupted, the future is dropped, which takes the cluster down.
    tokio::select! {
        done = play(args, console) => done,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; the cluster is down"),
        _ = terminated.recv() => anyhow::bail!("terminated; the cluster is down"),
    }
}

async fn play(args: &Args, console: &Console) -> anyhow::Result<()> {
    let cluster = match args.sabotage {
        None => CLUSTER,
        Some(_) => BROKEN_CLUSTER,
    };
    let mut spec = StackSpec::four_providers(cluster);
    if args.sabotage == Some(Sabotage::Funds) {
        spec.tenant_tokens = 0;
    }
    let stack = Stack::up(spec, console).await?;
    console.step("four providers offer GPUs");
    let result = stories(args, &stack, console).await;
    if result.is_err() {
        keep_logs(&stack, console);
    }
    if args.keep {
        let state = stack.cluster.detach()?;
        console.title("The cluster keeps running");
        console.line(&format!("export KUBECONFIG={}", state.kubeconfig().display()));
        if let Some(rpc_url) = &state.rpc_url {
            console.line(&format!("export ETH_RPC_URL={rpc_url}"));
        }
        console.line(&format!(
            "cargo xtask cluster shell --name {cluster}   a shell with kubectl, helm and cast"
        ));
        console.line(&format!(
            "cargo xtask cluster down --name {cluster}    takes it down, with the agents of KWOK nodes"
        ));
        console.line("The tokens of these agents are valid for one day.");
    } else {
        stack.down().await.context("take the cluster down")?;
    }
    result
}

/// Keeps logs and objects of a failed run.
fn keep_logs(stack: &Stack, console: &Console) {
    if let Ok(root) = leasehold_testcluster::cache_root() {
        let place = root.join("failed").join(stack.cluster.name());
        stack.dump(&place);
        console.line("");
        console.line(&format!("Logs and objects are kept in {}", place.display()));
    }
}

async fn stories(args: &Args, stack: &Stack, console: &Console) -> anyhow::Result<()> {
    let stage = Stage::set(stack, NAMESPACE, console)?;
    if args.sabotage == Some(Sabotage::Refund) {
        stage.ledger.starve_of_gas(address(Role::Closer)?).await?;
    }
    let before = stage.balances().await?;

    console.title("1  A job on one GPU");
    console.line("It prints the driver's output and ends; the lease closes by itself.");
    let job = story::job(&stage).await.context("story 1 failed")?;
    let between = stage.balances().await?;

    console.title("2  GPUX: one lease over three providers");
    console.line(
        "Three nodes of 32 CPU, 128Gi and 4 GPUs for two hours, extended by three hours, then deleted.",
    );
    let gpux = story::gpux(&stage).await.context("story 2 failed")?;
    if args.sabotage == Some(Sabotage::Unit) {
        let key = leasehold_e2e::key(Role::Deployer)?;
        let stray = [(payee(0), TokenAmount(1))];
        deploy::mint(&stack.money.rpc_url, &key, stack.money.token, &stray).await?;
    }
    let after = stage.balances().await?;

    console.title("The money");
    let columns = [&before, &between, &after];
    console.table(
        "USDC of all participants, according to the token contract",
        &sum(&stage.participants, columns)?,
    );
    figures(console, &job, &gpux);

    // The first failed check is the reason of the failure.
    ensure!(
        job.exit_code == 0,
        "the job ended with exit code {}",
        job.exit_code
    );
    ensure!(
        job.log_tail.contains("H100"),
        "the job's log does not contain the driver's output: {}",
        job.log_tail
    );
    job.outcome.check_money(&stage.participants).context("story 1")?;
    job.outcome.check_returned().context("story 1")?;
    gpux.check().context("story 2")?;
    let whole = story::Outcome {
        after: after.clone(),
        ..gpux.outcome.clone()
    };
    whole.check_money(&stage.participants).context("story 2")?;
    whole.check_returned().context("story 2")?;
    let total = |balances: &Balances| balances.iter().map(|b| b.0).sum::<u128>();
    ensure!(
        total(&before) == total(&after),
        "the total of all balances changed: {} base units before, {} after",
        total(&before),
        total(&after)
    );
    Ok(())
}

/// Balances before, between and after the stories, and the changes by each story.
fn sum(participants: &Participants, [before, between, after]: [&Balances; 3]) -> anyhow::Result<Table> {
    let units = |amount: &TokenAmount| i128::try_from(amount.0).context("a balance in range");
    let mut table = Table::new(&[
        ("", Align::Left),
        ("before", Align::Right),
        ("job", Align::Right),
        ("GPUX", Align::Right),
        ("after", Align::Right),
    ]);
    let mut totals = [0_i128; 4];
    for (index, (name, _)) in participants.rows.iter().enumerate() {
        let [first, second, third] = [
            units(&before[index])?,
            units(&between[index])?,
            units(&after[index])?,
        ];
        let cells = [first, second - first, third - second, third];
        for (total, cell) in totals.iter_mut().zip(cells) {
            *total += cell;
        }
        // Controllers sign and pay gas, but never hold tokens. They are listed only if they do.
        if name.starts_with("controller") && cells == [0; 4] {
            continue;
        }
        table.row(row(name, &before[index], cells, &after[index]));
    }
    let amount = |units: i128| TokenAmount(units.unsigned_abs());
    table.row(row("together", &amount(totals[0]), totals, &amount(totals[3])));
    Ok(table)
}

fn row(name: &str, before: &TokenAmount, cells: [i128; 4], after: &TokenAmount) -> [String; 5] {
    let change = |units: i128| match units {
        0 => "0".to_owned(),
        units => story::change_text(units),
    };
    [
        name.to_owned(),
        story::amount_text(*before),
        change(cells[1]),
        change(cells[2]),
        story::amount_text(*after),
    ]
}

/// Measurements of the stories.
fn figures(console: &Console, job: &story::Job, gpux: &story::Gpux) {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("measured", Align::Right),
        ("promised", Align::Right),
    ]);
    let seconds = |duration: std::time::Duration| format!("{:.1} s", duration.as_secs_f64());
    let slowest = |outcome: &story::Outcome| {
        let times = outcome.returned.iter().map(story::Returned::after_pod);
        seconds(times.max().unwrap_or_default())
    };
    table.row([
        "job: from apply to the first paid second",
        &seconds(job.to_active),
        "",
    ]);
    table.row([
        "job: GPU offered again after the pod's end",
        &slowest(&job.outcome),
        "≤ 5 s",
    ]);
    table.row([
        "GPUX: from apply until all three nodes serve",
        &seconds(gpux.to_ready),
        "",
    ]);
    table.row([
        "GPUX: from delete to refunded and gone",
        &seconds(gpux.to_refund),
        "",
    ]);
    table.row([
        "GPUX: GPUs offered again after their pods' end",
        &slowest(&gpux.outcome),
        "≤ 5 s",
    ]);
    table.row([
        "GPUX: transactions by the tenant",
        &gpux.tenant_transactions.to_string(),
        "≤ 3",
    ]);
    table.row([
        "GPUX: transactions in all, payouts included",
        &gpux.outcome.transactions.len().to_string(),
        "≤ 6",
    ]);
    table.row([
        "GPUX: the tenant's gas",
        &story::grouped(gpux.tenant_gas),
        "≤ 300,000",
    ]);
    console.table("The figures", &table);
}
