//! A PaymentNetwork whose payments must be final before a workload starts.

use anyhow::ensure;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use leasehold_crds::{PaymentNetwork, lease::Phase};
use leasehold_e2e::{Tenant, within};
use serde_json::json;

use super::{LIMIT, closed_exactly, service};

/// anvil reports a block as finalized that is two blocks of a second old. A quarter of a minute is the least that is reported.
const FINALITY_SECONDS: i64 = 15;

/// The lag of finality is measured, and a lease is served when its payment is final.
pub(crate) async fn measured_and_waited_for(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let networks = Api::<PaymentNetwork>::all(tenant.stack.client.clone());
    let provision_at = async |finality: &str| {
        let patch = Patch::Merge(json!({"spec": {"provisionAt": finality}}));
        networks.patch("anvil", &PatchParams::default(), &patch).await
    };
    let measured_is = async |wanted: Option<i64>| {
        within(LIMIT, "the measured finality", || async {
            let status = networks.get("anvil").await?.status.unwrap_or_default();
            let seconds = status.finality_seconds;
            Ok(if seconds == wanted { Ok(()) } else { Err(seconds) })
        })
        .await
    };
    measured_is(None).await?;
    provision_at("Finalized").await?;
    measured_is(Some(FINALITY_SECONDS)).await?;
    tenant.apply(&service(tenant, "final", "10m")?)?;
    let lease = tenant.until_phase("final", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    ensure!(account.running == 1, "{account:?}");
    tenant.delete("final").await?;
    tenant.until_gone("final", LIMIT).await?;
    closed_exactly(tenant, &terms).await?;
    provision_at("Latest").await?;
    measured_is(None).await
}
