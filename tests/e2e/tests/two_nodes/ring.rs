//! A job of two nodes that forms a ring: each rank sends its number to the next one by name, and ends when it has received the
//! number of the previous one.

use anyhow::{Context as _, ensure};
use leasehold_crds::{
    lease::{CloseReason, Phase},
    payment::money::TokenAmount,
};
use leasehold_e2e::Tenant;
use serde_json::json;

use super::{IMAGE, LIMIT, NODES, charged, lease};

/// Rank 0 is reached by `MASTER_ADDR`, any other one by the name of its pod. A listener without input ends its half of the
/// connection at once, and a sender whose input is not there by then sends nothing: a here-document is there before it runs.
const RING: &str = r#"
b=/bin/busybox
next=$(( (PET_NODE_RANK + 1) % PET_NNODES ))
previous=$(( (PET_NODE_RANK + PET_NNODES - 1) % PET_NNODES ))
to=lease-$next.lease
[ "$next" != 0 ] || to=$MASTER_ADDR
until $b nc -w 5 "$to" 7000 <<EOF
$PET_NODE_RANK
EOF
do $b sleep 0.2; done &
received=$($b nc -l -p 7000)
wait
echo "rank $PET_NODE_RANK of $PET_NNODES received $received"
[ "$received" = "$previous" ]
"#;

/// Runs the job to its end. Returns what it cost.
pub(super) async fn story(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    let job = json!({"job": {"image": IMAGE, "command": ["/bin/busybox", "sh", "-c", RING]}});
    tenant.apply(&lease(tenant, "ring", (NODES.len(), 1), &job)?)?;
    let closed = tenant.until_phase("ring", Phase::Closed, LIMIT * 2).await?;
    let status = closed.status.as_ref().context("status")?;
    ensure!(
        status.close_reason == Some(CloseReason::JobSucceeded),
        "{:?}: {:?}",
        status.close_reason,
        status.conditions
    );
    let (terms, _) = tenant.account(&closed).await?;
    tenant.delete("ring").await?;
    tenant.until_gone("ring", LIMIT).await?;
    charged::earned(tenant, &terms).await
}
