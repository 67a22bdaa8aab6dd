//! Transactions and gas of the story with three providers, from the chain.

use leasehold_e2e::{
    Console, Stack, StackSpec,
    story::{self, Gpux, Stage},
};
use leasehold_testcluster::Stderr;

use crate::report::Report;

/// Runs the story with output on standard error, and checks its limits.
pub(crate) async fn run(report: &Report) -> anyhow::Result<()> {
    let stack = Stack::up(StackSpec::three_providers("bench-story"), &Stderr::default()).await?;
    let result = run_story(&stack).await;
    stack.down().await?;
    let gpux = result?;
    let transactions = u32::try_from(gpux.outcome.transactions.len())?;
    let tenant = u32::try_from(gpux.tenant_transactions)?;
    let gas = u32::try_from(gpux.tenant_gas)?;
    report.line("story.gpux.tenant_transactions", tenant.into(), "", 1);
    report.line("story.gpux.transactions", transactions.into(), "", 1);
    report.line("story.gpux.tenant_gas", gas.into(), "gas", 1);
    report.line("story.gpux.apply_to_ready", gpux.to_ready.as_secs_f64(), "s", 1);
    report.line("story.gpux.delete_to_gone", gpux.to_refund.as_secs_f64(), "s", 1);
    Ok(())
}

async fn run_story(stack: &Stack) -> anyhow::Result<Gpux> {
    let console = Console::log();
    let stage = Stage::set(stack, "bench", &console)?;
    let gpux = story::gpux(&stage).await?;
    gpux.check()?;
    gpux.outcome.check_money(&stage.participants)?;
    Ok(gpux)
}
