//! A GPU falls off the bus under a lease, and comes back.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use kube::{Api, ResourceExt as _};
use leasehold_crds::{GpuReservation, lease::Phase};
use leasehold_e2e::{Tenant, eventually};
use leasehold_planner::escrow::Account;
use nvidia_ml_sim::{Fault, Fixture};

use super::{HEALTHY_PROVIDER, LIMIT, NODE, PodState, bound, is_offered, lease, running, served::Served};

/// The limit is 15 s with the agent's default period of 10 s. Here the period is 1 s.
const SHOWN_WITHIN: Duration = Duration::from_secs(15 - 9);

#[allow(
    clippy::disallowed_methods,
    reason = "the agents and the chain use the same clock"
)]
fn unix() -> anyhow::Result<u64> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs())
}

pub(super) async fn story(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    let before = tenant.own_balance().await?;
    tenant.apply(&lease(tenant, "train", HEALTHY_PROVIDER, "service")?)?;
    let active = tenant.until_phase("train", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&active).await?;
    let reservation = bound(&active, stack).await?;
    let served = Served {
        tenant,
        name: "train",
        gpu: reservation.status.as_ref().context("status")?.gpu_uuids[0].clone(),
        terms,
    };
    let ran = running(stack, &reservation).await?;
    is_offered(stack, HEALTHY_PROVIDER, 1).await?;
    served.served_at_least(5).await?;

    // The GPU falls off the bus.
    let fixture = Fixture::open(&stack.cluster.node(NODE).files);
    let gpus = fixture.read()?.gpus;
    let index = gpus
        .iter()
        .position(|g| g.uuid == served.gpu)
        .context("the lease's GPU is one of the node's")?;
    let well = unix()? - account.started_at;
    fixture.fault(index, &Fault::Lost)?;
    let paused = shown_as_lost(&served, well).await?;
    let kept = paused.legs[0].served_seconds;
    nothing_is_charged(&served, &reservation, &paused, &ran).await?;

    fixture.fault(index, &Fault::Clear)?;
    shown_as_healthy(&served, &reservation, kept).await?;
    served.ends_exactly(before).await?;
    is_offered(stack, HEALTHY_PROVIDER, 2).await
}

/// GpuNode, lease, offer and account show the lost GPU in time. Returns the paused account.
async fn shown_as_lost(served: &Served<'_>, well: u64) -> anyhow::Result<Account> {
    let seen = served.watch(true, well).await?;
    let paused = served.account().await?;
    let kept = paused.legs[0].served_seconds;
    eprintln!(
        "         lost: GpuNode {:.1?}, lease {:.1?}, out of sale {:.1?}, paused on chain {:.1?}, credited {:.1?}; \
         charged {kept} of {well} s until then",
        seen.node.unwrap_or_default(),
        seen.lease.unwrap_or_default(),
        seen.sale.unwrap_or_default(),
        seen.leg.unwrap_or_default(),
        seen.credit.unwrap_or_default(),
    );
    for (what, when) in [
        ("the GpuNode", seen.node),
        ("the lease", seen.lease),
        ("the offer", seen.sale),
    ] {
        let when = when.unwrap_or(Duration::MAX);
        ensure!(when < SHOWN_WITHIN, "{what} showed it after {when:?}");
    }
    ensure!(
        kept <= well && kept + 3 >= well,
        "served {kept} s, but the GPU was healthy for {well} s; with a period of one second a provider may lose two seconds"
    );
    Ok(paused)
}

/// While the GPU is lost, nothing is charged and the pods are left alone.
async fn nothing_is_charged(
    served: &Served<'_>,
    reservation: &GpuReservation,
    paused: &Account,
    ran: &[PodState],
) -> anyhow::Result<()> {
    let later = eventually("five more seconds on the chain", || async {
        let account = served.account().await?;
        let gone = account.block_time - paused.block_time;
        Ok(if gone >= 5 { Ok(account) } else { Err(gone) })
    })
    .await?;
    ensure!(later.legs[0].served_seconds == paused.legs[0].served_seconds && later.running == 0);
    ensure!(
        running(served.tenant.stack, reservation).await? == *ran,
        "the workload is left alone"
    );
    Ok(())
}

/// After the GPU came back, charging continues and nothing of the fault remains.
async fn shown_as_healthy(
    served: &Served<'_>,
    reservation: &GpuReservation,
    kept: u64,
) -> anyhow::Result<()> {
    let seen = served.watch(false, 0).await?;
    eprintln!(
        "         recovered: GpuNode {:.1?}, lease {:.1?}, offered {:.1?}, charged again {:.1?}",
        seen.node.unwrap_or_default(),
        seen.lease.unwrap_or_default(),
        seen.sale.unwrap_or_default(),
        seen.leg.unwrap_or_default(),
    );
    let after = served.served_at_least(kept + 3).await?;
    ensure!(
        after.paid_seconds >= after.legs[0].served_seconds + 5,
        "the account's time continued, and the seconds of the fault are not paid: {after:?}"
    );
    let status = Api::<GpuReservation>::all(served.tenant.stack.client.clone())
        .get(&reservation.name_any())
        .await?
        .status
        .context("status")?;
    ensure!(
        status.fault_since.is_none() && status.credit_due.is_none() && status.intent.is_none(),
        "nothing of the fault remains: {status:?}"
    );
    Ok(())
}
