//! A session needs a node with user namespaces.

use anyhow::{Context as _, ensure};
use leasehold_e2e::Tenant;

use super::{FALSE_REPORTS, LIMIT, lease};

/// The user of a session is root in a user namespace, which nodes simulated by KWOK do not have.
pub(super) async fn story(tenant: &Tenant<'_>) -> anyhow::Result<()> {
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
    tenant.until_gone("rootless", LIMIT).await
}
