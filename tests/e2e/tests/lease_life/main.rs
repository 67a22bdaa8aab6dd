//! The lifecycle of leases on one control plane: served and extended, out of funds, deleted in every phase, without
//! funds, without a matching offer. The stories share one stack and run concurrently, each with its own lease.

mod deleted;
mod finality;
mod funds_end;
mod orphans;
mod payout;
mod pod_lost;
mod served;
mod status_wiped;
mod unmatched;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kube::{Api, api::ListParams};
use leasehold_crds::{
    GpuLease, GpuReservation,
    lease::{CloseReason, Phase},
    payment::money::TokenAmount,
};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, Tenant, on_stack, timed};
use leasehold_planner::ports::Payments as _;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_served_and_end_on_one_control_plane() -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("e2e-life");
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 8)]);
    on_stack(spec, stories).await
}

async fn stories(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    timed("no matching offer", unmatched::no_offer(&tenant)).await?;
    timed("no funds", unmatched::no_funds(stack)).await?;
    timed("no opt-in", unmatched::no_opt_in(stack)).await?;
    timed(
        "served, extended, deleted",
        served::served_extended_deleted(&tenant),
    )
    .await?;
    timed("paid while it runs", payout::paid_while_it_runs(&tenant)).await?;
    timed(
        "served when its payment is final",
        finality::measured_and_waited_for(&tenant),
    )
    .await?;
    let before = tenant.own_balance().await?;
    let ended = tokio::try_join!(
        timed("term over", funds_end::term_over(&tenant)),
        timed("paused and resumed", funds_end::paused_and_resumed(&tenant)),
        timed("topped up by policy", funds_end::topped_up_by_policy(&tenant)),
        timed("status wiped", status_wiped::same_account_is_found(&tenant)),
        timed("lease removed forcibly", orphans::lease_removed_forcibly(&tenant)),
        timed(
            "reservation removed forcibly",
            orphans::reservation_removed_forcibly(&tenant)
        ),
        timed("pod deleted", pod_lost::pod_deleted(&tenant)),
    )?;
    let spent = ended.0.0 + ended.1.0 + ended.2.0 + ended.3.0 + ended.4.0 + ended.5.0 + ended.6.0;
    ensure!(
        before.0 - tenant.own_balance().await?.0 == spent,
        "the tenant paid exactly what the legs earned"
    );
    timed(
        "deleted in each phase",
        deleted::deleted_in_each_phase(stack, &tenant),
    )
    .await?;
    timed("namespace deleted", deleted::namespace_deleted(stack)).await?;
    timed("nothing left", deleted::nothing_left(stack)).await
}

/// A lease of one GPU that serves a port until it ends.
fn service(tenant: &Tenant<'_>, name: &str, term: &str) -> anyhow::Result<GpuLease> {
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "perNode": {"cpu": "200m", "memory": "64Mi", "ephemeralStorage": "50Mi", "gpus": 1},
            "term": {"duration": term},
            "workload": {"service": {
                "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "httpd", "-f", "-p", "8080"],
                "ports": [{"name": "http", "port": 8080}], "readiness": {"port": 8080},
            }},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    });
    Ok(serde_json::from_value(lease)?)
}

async fn reservations(stack: &Stack) -> anyhow::Result<Vec<GpuReservation>> {
    Ok(Api::<GpuReservation>::all(stack.client.clone())
        .list(&ListParams::default())
        .await?
        .items)
}

/// Checks on the chain that the account is closed and each leg earned its rate times its seconds. Returns the sum.
async fn closed_exactly(
    tenant: &Tenant<'_>,
    terms: &leasehold_planner::escrow::Terms,
) -> anyhow::Result<TokenAmount> {
    let read = tenant
        .stack
        .payments
        .account(terms, leasehold_planner::ports::BlockLevel::Latest)
        .await?;
    let account = read.present().context("the account")?.clone();
    ensure!(account.closed, "the account is closed");
    let mut earned = 0;
    for (leg, state) in terms.legs.iter().zip(&account.legs) {
        let due = leg.rate.earned_floor(state.served_seconds).context("in range")?;
        ensure!(
            state.withdrawn.0 + state.owed.0 == due.0,
            "{} s at {} earn {due}",
            state.served_seconds,
            leg.rate
        );
        earned += due.0;
    }
    Ok(TokenAmount(earned))
}

/// Waits for the end and checks it, deletes the lease, and returns what was earned.
async fn ends(
    tenant: &Tenant<'_>,
    name: &str,
    reason: CloseReason,
    limit: Duration,
) -> anyhow::Result<TokenAmount> {
    let lease = tenant.until_phase(name, Phase::Closed, limit).await?;
    let found = lease.status.as_ref().and_then(|s| s.close_reason);
    ensure!(found == Some(reason), "{found:?}, not {reason:?}");
    let (terms, _) = tenant.account(&lease).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    tenant.delete(name).await?;
    tenant.until_gone(name, LIMIT).await?;
    Ok(earned)
}
