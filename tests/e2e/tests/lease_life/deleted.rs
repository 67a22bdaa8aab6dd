//! Leases that are deleted in each phase, and with their namespace. Nothing remains of them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use leasehold_crds::{GpuAllocation, GpuLease, lease::Phase};
use leasehold_e2e::{Stack, Tenant, within};
use leasehold_planner::{
    market::lease::{LAG_SECONDS, OPEN_WITHIN_SECONDS},
    ports::Payments as _,
};

use super::{LIMIT, closed_exactly, reservations, service};

/// Time until no `open` of a lease can be mined any more. A lease deleted after its intent to open is kept that long.
const UNOPENED: Duration = Duration::from_secs(OPEN_WITHIN_SECONDS + LAG_SECONDS.unsigned_abs());

/// Deletes a lease as soon as each phase is seen. In one of them the Secret is deleted first.
pub(super) async fn deleted_in_each_phase(stack: &Stack, tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let before = tenant.own_balance().await?;
    let mut earned = 0;
    for phase in [
        Phase::Pending,
        Phase::Matched,
        Phase::Funded,
        Phase::Provisioning,
        Phase::Active,
        Phase::Settling,
    ] {
        let name = format!("at-{}", format!("{phase:?}").to_lowercase());
        tenant.apply(&service(tenant, &name, "30m")?)?;
        if phase != Phase::Pending {
            // A phase can be over before it is seen; then the lease is deleted in the next one.
            let last = (phase as u8).min(Phase::Active as u8);
            let reached = |l: &GpuLease| l.status.as_ref().is_some_and(|s| s.phase as u8 >= last);
            tenant.until(&name, LIMIT, &format!("{phase:?}"), reached).await?;
        }
        if phase == Phase::Active {
            Api::<Secret>::namespaced(stack.client.clone(), &tenant.namespace)
                .delete("wallet", &DeleteParams::default())
                .await?;
        }
        let terms = tenant
            .leases()
            .get(&name)
            .await?
            .status
            .and_then(|s| s.escrow)
            .map(|e| leasehold_planner::escrow::Terms::from_wire(&e.terms));
        tenant.delete(&name).await?;
        tenant
            .until_gone(&name, UNOPENED + LIMIT)
            .await
            .with_context(|| format!("deleted at {phase:?}"))?;
        if let Some(Ok(terms)) = terms {
            let read = stack
                .payments
                .account(&terms, leasehold_planner::ports::BlockLevel::Latest)
                .await?;
            if read.present().is_some() {
                earned += closed_exactly(tenant, &terms).await?.0;
            }
        }
        if phase == Phase::Active {
            Tenant::new(stack, &tenant.namespace)?;
        }
    }
    // A lease that was deleted before its terms were seen may have opened an account, which is closed too.
    let mut all = 0;
    let (opened, _) = stack.payments.opened_since(stack.money.market_id, None).await?;
    for account in &opened {
        let read = stack
            .payments
            .account(&account.terms, leasehold_planner::ports::BlockLevel::Latest)
            .await?;
        ensure!(
            read.present().is_some_and(|a| a.closed),
            "every account is closed"
        );
        all += 1;
    }
    eprintln!("         {all} accounts were opened in all, every one is closed");
    ensure!(
        tenant.own_balance().await?.0 == before.0 - earned,
        "each refund is exact"
    );
    Ok(())
}

pub(super) async fn namespace_deleted(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-b")?;
    let before = tenant.own_balance().await?;
    tenant.apply(&service(&tenant, "gone", "30m")?)?;
    let lease = tenant.until_phase("gone", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let namespaces = Api::<Namespace>::all(stack.client.clone());
    namespaces.delete("team-b", &DeleteParams::default()).await?;
    within(LIMIT, "the namespace to be gone", || async {
        Ok(match namespaces.get_opt("team-b").await? {
            None => Ok(()),
            Some(namespace) => Err(namespace.status),
        })
    })
    .await?;
    let earned = closed_exactly(&tenant, &terms).await?;
    ensure!(
        tenant.own_balance().await?.0 == before.0 - earned.0,
        "the refund is exact"
    );
    Ok(())
}

/// Nothing of any lease remains anywhere, and the escrow holds nothing.
pub(super) async fn nothing_left(stack: &Stack) -> anyhow::Result<()> {
    within(LIMIT, "everything to be deleted", || async {
        let namespaces = Api::<Namespace>::all(stack.client.clone())
            .list(&ListParams::default())
            .await?
            .items;
        let allocations = Api::<GpuAllocation>::all(stack.client.clone())
            .list(&ListParams::default())
            .await?
            .items;
        let left: Vec<String> = namespaces
            .iter()
            .map(ResourceExt::name_any)
            .filter(|n| n.starts_with("lease-") && !n.starts_with("lease-checks-"))
            .chain(allocations.iter().map(ResourceExt::name_any))
            .chain(reservations(stack).await?.iter().map(ResourceExt::name_any))
            .collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })
    .await?;
    let held = stack.payments.balances(stack.money.escrow).await?.token;
    ensure!(held.0 == 0, "the escrow still holds {held}");
    Ok(())
}
