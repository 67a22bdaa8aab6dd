//! A session needs a node with user namespaces.

use anyhow::{Context as _, ensure};
use leasehold_e2e::Tenant;

use super::{DUBIOUS, LIMIT, lease};

/// A session's tenant is root in a user namespace; nodes that KWOK plays have none.
pub(super) async fn story(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    tenant.apply(&lease(tenant, "rootless", DUBIOUS, "session")?)?;
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
        .find(|m| m.provider == DUBIOUS)
        .context("its rows are the nearest")?;
    let failed: Vec<_> = miss.failed.iter().map(|f| f.dimension.as_str()).collect();
    ensure!(failed == ["rootNotAllowed"], "{failed:?}");
    tenant.delete("rootless").await?;
    tenant.until_gone("rootless", LIMIT).await
}
