//! A session needs user namespaces.

use anyhow::{Context as _, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use leasehold_crds::{GpuOffer, GpuPool, PROVIDER_NAMESPACE_PREFIX};
use leasehold_e2e::{Tenant, eventually};
use serde_json::json;

use super::{FALSE_REPORTS, LIMIT, lease};

/// The user of a session is root in a user namespace, which the pool does not permit.
pub(super) async fn story(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    permit_user_namespaces(tenant, "Never").await?;
    tenant.apply(&lease(tenant, "rootless", FALSE_REPORTS, "session")?)?;
    let lease = tenant
        .until("rootless", LIMIT, "reasons", |l| {
            l.status
                .as_ref()
                .and_then(|s| s.quote.as_ref())
                .is_some_and(|q| !q.misses.is_empty())
        })
        .await?;
    let quote = lease.status.and_then(|s| s.quote).context("quote")?;
    let miss = quote
        .misses
        .iter()
        .find(|m| m.provider == FALSE_REPORTS)
        .context("its rows are the closest misses")?;
    let failed: Vec<_> = miss.failed.iter().map(|f| f.dimension.as_str()).collect();
    ensure!(failed == ["rootNotAllowed"], "{failed:?}");
    tenant.delete("rootless").await?;
    tenant.until_gone("rootless", LIMIT).await?;
    permit_user_namespaces(tenant, "Auto").await
}

async fn permit_user_namespaces(tenant: &Tenant<'_>, value: &str) -> anyhow::Result<()> {
    let client = &tenant.stack.client;
    let spec = json!({"spec": {"userNamespaces": value}});
    Api::<GpuPool>::all(client.clone())
        .patch(FALSE_REPORTS, &PatchParams::default(), &Patch::Merge(&spec))
        .await?;
    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{FALSE_REPORTS}");
    let offers = Api::<GpuOffer>::namespaced(client.clone(), &namespace);
    eventually(&format!("an offer with userNamespaces: {value}"), || async {
        let rows = offers.get(FALSE_REPORTS).await?.spec.rows;
        let done = !rows.is_empty() && rows.iter().all(|row| row.root_allowed == (value == "Auto"));
        Ok(if done { Ok(()) } else { Err(rows) })
    })
    .await
}
