//! A provider that withdraws its earnings before the end of the lease.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use leasehold_crds::{GpuPool, lease::Phase};
use leasehold_e2e::{Tenant, payee, within};
use leasehold_planner::escrow::Account;
use serde_json::{Value, json};

use super::{LIMIT, closed_exactly, service};

/// Served seconds between two withdrawals, the minimum of a pool.
const EVERY: u64 = 10;

/// Earnings arrive at the payee while the lease runs. Together with those at the end they are what the lease earned.
pub(crate) async fn paid_while_it_runs(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    let pools = Api::<GpuPool>::all(stack.client.clone());
    let policy = async |withdraw: Value| {
        let patch = json!({"spec": {"withdraw": withdraw}});
        let name = &stack.spec.providers[0].name;
        pools
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
    };
    let (before, payee_before) = (tenant.own_balance().await?, tenant.balance(payee(0)).await?);
    tenant.apply(&service(tenant, "steady", "10m")?)?;
    let lease = tenant.until_phase("steady", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let rate = terms.legs[0].rate;
    // The lease is already running: the policy of the pool applies when it is set.
    policy(json!({"every": format!("{EVERY}s"), "above": "0"})).await?;
    let twice = async || -> anyhow::Result<Result<Account, Account>> {
        let (_, account) = tenant.account(&lease).await?;
        let two = rate.earned_floor(2 * EVERY).context("in range")?;
        Ok(if account.legs[0].withdrawn >= two {
            Ok(account)
        } else {
            Err(account)
        })
    };
    let account = within(Duration::from_secs(3 * EVERY) + LIMIT, "two withdrawals", twice).await?;
    policy(Value::Null).await?;
    ensure!(
        account.running == 1 && !account.closed,
        "the lease continues: {account:?}"
    );
    let now = tenant.leases().get("steady").await?;
    ensure!(now.status.context("status")?.phase == Phase::Active);
    let (_, account) = tenant.account(&lease).await?;
    let arrived = tenant.balance(payee(0)).await?.0 - payee_before.0;
    ensure!(
        arrived == account.legs[0].withdrawn.0,
        "the payee got {arrived}, but the leg has paid out {}",
        account.legs[0].withdrawn
    );

    tenant.delete("steady").await?;
    tenant.until_gone("steady", LIMIT).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    let spent = before.0 - tenant.own_balance().await?.0;
    let got = tenant.balance(payee(0)).await?.0 - payee_before.0;
    ensure!(
        earned.0 == spent && earned.0 == got,
        "{earned} were earned, but {spent} spent, and the payee has {got}"
    );
    eprintln!("         {arrived} of {got} base units arrived while it ran");
    Ok(())
}
