//! A lease whose status is wiped while it is active.

use anyhow::{Context as _, ensure};
use kube::ResourceExt as _;
use leasehold_crds::{lease::Phase, payment::money::TokenAmount};
use leasehold_e2e::Tenant;
use leasehold_planner::ports::Payments as _;

use super::{LIMIT, closed_exactly, service};

/// When the status is wiped, the same account is found again and no second one is opened.
pub(super) async fn same_account_is_found(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "wiped", "30m")?)?;
    let lease = tenant.until_phase("wiped", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let mut bare = tenant.leases().get("wiped").await?;
    bare.status = None;
    bare.metadata.managed_fields = None;
    tenant
        .leases()
        .replace_status("wiped", &kube::api::PostParams::default(), &bare)
        .await?;
    let again = tenant.until_phase("wiped", Phase::Active, LIMIT).await?;
    ensure!(tenant.account(&again).await?.0 == terms, "the same account");
    let uid = again.uid().context("uid")?;
    let (opened, _) = tenant
        .stack
        .payments
        .opened_since(tenant.stack.money.market_id, None)
        .await?;
    let mine = tenant.stack.accounts_of_lease(&opened, &uid);
    ensure!(mine == 1, "{mine} accounts were opened");
    tenant.delete("wiped").await?;
    tenant.until_gone("wiped", LIMIT).await?;
    closed_exactly(tenant, &terms).await
}
