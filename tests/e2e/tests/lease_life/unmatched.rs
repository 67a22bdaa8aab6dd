//! Leases that cannot start: no matching offer, no funds, no permission to read the wallet.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use leasehold_crds::{GpuLease, shared::conditions::find};
use leasehold_e2e::{Stack, Tenant};
use serde_json::json;

use super::{LIMIT, reservations, service};

pub(super) async fn no_offer(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let mut lease = service(tenant, "too-large", "1h")?;
    lease.spec.per_node.gpus = 16;
    lease.spec.per_node.memory = "1000Ti".into();
    lease.spec.payment.max_price_per_gpu_hour = "0.10".into();
    let begun = Instant::now();
    tenant.apply(&lease)?;
    let lease = tenant
        .until("too-large", LIMIT, "reasons", |l| {
            l.status
                .as_ref()
                .and_then(|s| s.quote.as_ref())
                .is_some_and(|q| !q.misses.is_empty())
        })
        .await?;
    ensure!(
        begun.elapsed() < Duration::from_secs(2),
        "reasons took {:?}",
        begun.elapsed()
    );
    let status = lease.status.context("status")?;
    let failed: Vec<_> = status.quote.context("quote")?.misses[0]
        .failed
        .iter()
        .map(|f| f.dimension.clone())
        .collect();
    ensure!(
        failed == ["gpus", "memory", "memoryPerGpu", "price"],
        "{failed:?}"
    );
    ensure!(
        find(&status.conditions, "Matched").is_some_and(|c| c.status == "False" && c.reason == "NoOffer")
    );
    ensure!(
        status.escrow.is_none() && reservations(tenant.stack).await?.is_empty(),
        "nothing is reserved"
    );
    tenant.delete("too-large").await?;
    tenant.until_gone("too-large", LIMIT).await
}

pub(super) async fn no_funds(stack: &Stack) -> anyhow::Result<()> {
    let poor = Tenant::new(stack, "poor")?;
    let secrets = Api::<Secret>::namespaced(stack.client.clone(), "poor");
    let empty = json!({"stringData": {"privateKey": format!("0x{}", "7".repeat(64))}});
    secrets
        .patch("wallet", &PatchParams::default(), &Patch::Merge(&empty))
        .await?;
    poor.apply(&service(&poor, "broke", "1h")?)?;
    let lease = poor
        .until("broke", LIMIT, "InsufficientFunds", |l| {
            reason(l, "Funded") == Some("InsufficientFunds".into())
        })
        .await?;
    ensure!(
        lease.status.context("status")?.escrow.is_none() && reservations(stack).await?.is_empty(),
        "nothing is reserved"
    );
    poor.delete("broke").await?;
    poor.until_gone("broke", LIMIT).await
}

pub(super) async fn no_opt_in(stack: &Stack) -> anyhow::Result<()> {
    let shy = Tenant::new(stack, "shy")?;
    let bindings = Api::<k8s_openapi::api::rbac::v1::RoleBinding>::namespaced(stack.client.clone(), "shy");
    bindings
        .delete("leasehold-wallet", &DeleteParams::default())
        .await?;
    shy.apply(&service(&shy, "closed-wallet", "1h")?)?;
    let lease = shy
        .until("closed-wallet", LIMIT, "WalletNotReadable", |l| {
            reason(l, "Funded") == Some("WalletNotReadable".into())
        })
        .await?;
    let message = find(&lease.status.context("status")?.conditions, "Funded")
        .context("Funded")?
        .message
        .clone();
    ensure!(message.contains("kubectl -n shy create rolebinding"), "{message}");
    shy.delete("closed-wallet").await?;
    shy.until_gone("closed-wallet", LIMIT).await
}

fn reason(lease: &GpuLease, kind: &str) -> Option<String> {
    find(&lease.status.as_ref()?.conditions, kind).map(|c| c.reason.clone())
}
