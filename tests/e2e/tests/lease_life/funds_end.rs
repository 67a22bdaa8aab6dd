//! Leases whose funds run out: they close, pause, or are topped up.

use anyhow::Context as _;
use anyhow::ensure;
use kube::api::{Patch, PatchParams};
use leasehold_crds::{
    lease::{CloseReason, OnFundsEnd, Phase},
    payment::money::TokenAmount,
};
use leasehold_e2e::Tenant;
use serde_json::json;

use super::{LIMIT, closed_exactly, ends, service};

/// The whole term is served and charged, and not a second more.
pub(super) async fn term_over(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "short", "10s")?)?;
    let lease = tenant.until_phase("short", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let earned = ends(tenant, "short", CloseReason::TermOver, LIMIT).await?;
    ensure!(
        Some(earned) == terms.rate().earned_floor(10),
        "ten seconds were charged, {earned}"
    );
    Ok(earned)
}

pub(super) async fn paused_and_resumed(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    let mut lease = service(tenant, "pausing", "10s")?;
    lease.spec.payment.on_funds_end = OnFundsEnd::Pause;
    lease.spec.payment.pause_for = Some("30m".into());
    tenant.apply(&lease)?;
    let lease = tenant.until_phase("pausing", Phase::Suspended, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    ensure!(account.paid_seconds == 10 && !account.closed, "{account:?}");
    let longer = json!({"spec": {"term": {"duration": "20s"}}});
    tenant
        .leases()
        .patch("pausing", &PatchParams::default(), &Patch::Merge(&longer))
        .await?;
    tenant.until_phase("pausing", Phase::Active, LIMIT).await?;
    tenant.until_phase("pausing", Phase::Suspended, LIMIT).await?;
    tenant.delete("pausing").await?;
    tenant.until_gone("pausing", LIMIT).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    ensure!(
        Some(earned) == terms.rate().earned_floor(20),
        "twenty seconds were charged, without the pause: {earned}"
    );
    Ok(earned)
}

pub(super) async fn topped_up_by_policy(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    let mut lease = service(tenant, "topped", "30s")?;
    let rate = 1.85 / 3600.0;
    lease.spec.payment.top_up = Some(leasehold_crds::lease::TopUp {
        when_runway_below: "25s".into(),
        extend_by: "10s".into(),
        total_at_most: format!("{:.6}", rate * 41.0),
    });
    tenant.apply(&lease)?;
    let lease = tenant.until_phase("topped", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    // 30 s, and one top-up of 10 s long before the end. A second top-up would exceed the limit.
    let earned = ends(tenant, "topped", CloseReason::TermOver, 2 * LIMIT).await?;
    let seconds = terms.rate().seconds_floor(earned).context("seconds")?;
    ensure!(
        (39..=40).contains(&seconds),
        "40 s were paid, {seconds} s were served"
    );
    Ok(earned)
}
