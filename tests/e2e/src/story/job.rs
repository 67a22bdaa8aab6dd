//! Story 01: a job on one GPU, from `kubectl apply` to the refund.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use leasehold_crds::lease::{CloseReason, Phase};
use leasehold_planner::ports::Clock as _;
use leasehold_runtime::SystemClock;

use super::{Outcome, Stage, account_of, follow::Follow, money, views};

/// The example that the story applies.
pub const JOB: &str = "examples/01-job.yaml";
const NAME: &str = "hello";
/// Time limit for each wait.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Result of the story.
#[derive(Clone, Debug)]
pub struct Job {
    /// The lease and its money.
    pub outcome: Outcome,
    /// Time from `kubectl apply` to the first paid second.
    pub to_active: Duration,
    /// The last output of the job.
    pub log_tail: String,
    /// Its exit code.
    pub exit_code: i64,
}

/// Runs the story.
pub async fn job(stage: &Stage<'_>) -> anyhow::Result<Job> {
    let (stack, namespace) = (stage.stack, stage.tenant.namespace.as_str());
    let before = stage.balances().await?;
    let block = stage.ledger.head().await?;
    let had = views::offered(stack).await?;
    let mut follow = Follow::new(stage.console, &stage.tenant, NAME);
    views::kubectl(stage, &["apply", "-n", namespace, "-f", JOB])?;
    follow.begin();
    let applied: Timestamp = SystemClock.now();

    let active = follow
        .until(TIMEOUT, "Active", |s| s.phase == Phase::Active)
        .await?;
    let to_active = follow.elapsed();
    let (terms, _) = account_of(&stage.tenant, &active).await?;
    let legs = views::legs(&terms, &active);
    let (returned, closed) = {
        let returned = views::watch_return(stack, &terms, legs, &had);
        let quote = active
            .status
            .as_ref()
            .and_then(|s| s.quote.clone())
            .context("the status has a quote")?;
        let print_quote = async {
            views::kubectl(stage, &["get", "gpulease", NAME, "-n", namespace])?;
            views::quote(stage, &quote);
            stage.console.line("");
            anyhow::Ok(())
        };
        let (returned, ()) = follow
            .meanwhile(async { tokio::try_join!(returned, print_quote) })
            .await?;
        let closed = follow
            .until(TIMEOUT, "Closed", |s| s.phase == Phase::Closed)
            .await?;
        (returned, closed)
    };
    let status = closed.status.clone().unwrap_or_default();
    ensure!(
        status.close_reason == Some(CloseReason::JobSucceeded),
        "the lease closed with reason {:?} instead of JobSucceeded",
        status.close_reason
    );
    let result = status.job.context("the status contains the job's result")?;
    views::kubectl(
        stage,
        &[
            "get",
            "gpulease",
            NAME,
            "-n",
            namespace,
            "-o",
            "jsonpath={.status.job.logTail}",
        ],
    )?;
    let (terms, account) = account_of(&stage.tenant, &closed).await?;
    let transactions = stage.ledger.since(block).await?;
    let outcome = Outcome {
        served: money::served(&terms, &transactions)?,
        after: stage.balances().await?,
        phases: follow.phases.clone(),
        lease: closed,
        terms,
        account,
        transactions,
        before,
        returned,
    };
    views::events(stage, &outcome.lease, applied).await?;
    views::transactions(stage, &outcome);
    views::bill(stage, &outcome);
    Ok(Job {
        outcome,
        to_active,
        log_tail: result.log_tail,
        exit_code: result.exit_code,
    })
}
