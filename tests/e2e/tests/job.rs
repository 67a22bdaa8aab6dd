//! A job on one simulated GPU, from `kubectl apply` to the refund.

use std::time::Duration;

use leasehold_crds::lease::{CloseReason, Phase};
use leasehold_e2e::{Stack, StackSpec, Tenant, on_stack};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_is_paid_by_the_second_and_refunded() -> anyhow::Result<()> {
    on_stack(StackSpec::one_node("e2e-job"), story).await
}

async fn story(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    let before = tenant.own_balance().await?;
    let mut lease = tenant.example("examples/01-job.yaml", None)?;
    let job = lease.spec.workload.job.as_mut().expect("the example is a job");
    // Bytes that are not UTF-8 in the log must not hold up the end of the lease.
    let script = job.container.args.last_mut().expect("the example's script");
    script.push_str(r" && printf '\377\376\n'");
    tenant.apply(&lease)?;
    let closed = tenant
        .until_phase("hello", Phase::Closed, Duration::from_secs(60))
        .await?;
    let status = closed.status.clone().unwrap_or_default();
    assert_eq!(status.close_reason, Some(CloseReason::JobSucceeded));
    let job = status.job.expect("the job's end");
    assert_eq!(job.exit_code, 0);
    assert!(job.log_tail.contains("H100"), "{}", job.log_tail);
    assert!(
        job.log_tail.contains("done\n\u{FFFD}\u{FFFD}"),
        "{}",
        job.log_tail
    );
    let (terms, account) = tenant.account(&closed).await?;
    assert!(account.closed);
    let earned = terms.legs[0]
        .rate
        .earned_floor(account.legs[0].served_seconds)
        .expect("in range");
    assert_eq!(
        tenant.own_balance().await?.0,
        before.0 - earned.0,
        "the refund is exact"
    );
    assert_eq!(
        tenant.balance(terms.legs[0].payee).await?,
        earned,
        "the payee has the earned amount"
    );
    assert_eq!(
        tenant.balance(stack.money.escrow).await?.0,
        0,
        "the escrow holds nothing"
    );
    Ok(())
}
