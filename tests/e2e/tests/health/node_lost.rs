//! A node fails under a lease: it is disconnected, so that kubelet, agent and containers are unreachable.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::{coordination::v1::Lease as Liveness, core::v1::Event};
use kube::{Api, ResourceExt as _, api::ListParams};
use leasehold_crds::{GpuReservation, lease::Phase, shared::conditions::find};
use leasehold_e2e::{NAMESPACE, Stack, Tenant, outage, within};

use super::{
    LIMIT, LOST_NODE, LOST_PROVIDER, bound, is_offered, lease, not_sold, offered, running, served::Served,
};

/// The cluster takes 50 s to notice that a kubelet is silent, and the silence must last for one minute.
const LOST_WITHIN: Duration = Duration::from_secs(240);
/// How long the node stays disconnected. The full duration exceeds the five minutes after which Kubernetes itself
/// would evict the pod.
const AWAY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(330)];

pub(super) async fn story(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::another(stack, "team-b").await?;
    let before = tenant.own_balance().await?;
    tenant.apply(&lease(&tenant, "lonely", LOST_PROVIDER, "service")?)?;
    let active = tenant.until_phase("lonely", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&active).await?;
    let reservation = bound(&active, stack).await?;
    let served = Served {
        tenant: &tenant,
        name: "lonely",
        gpu: String::new(),
        terms,
    };
    let ran = running(stack, &reservation).await?;
    served.served_at_least(5).await?;

    let node = stack.cluster.node(LOST_NODE);
    node.partition()?;
    let fell = Instant::now();
    let heard = Api::<Liveness>::namespaced(stack.client.clone(), NAMESPACE)
        .get(LOST_NODE)
        .await?
        .spec
        .and_then(|s| s.renew_time)
        .context("the agent's Lease")?;
    let well = u64::try_from(heard.0.as_second())? - account.started_at;
    let reservations = Api::<GpuReservation>::all(stack.client.clone());
    let paused = within(LOST_WITHIN, "the pause and the credit", || async {
        let account = served.account().await?;
        let status = reservations.get(&reservation.name_any()).await?.status;
        let credited = status.as_ref().is_some_and(|s| s.credit_due == Some(0));
        Ok(if account.running == 0 && credited {
            Ok(account)
        } else {
            Err((account.legs[0], status.map(|s| s.conditions)))
        })
    })
    .await?;
    let kept = paused.legs[0].served_seconds;
    eprintln!(
        "         lost: paused and credited after {:.1?}; charged {kept} of the {well} s until its last heartbeat",
        fell.elapsed()
    );
    ensure!(kept == well, "served {kept} s, but heartbeats came for {well} s");

    shown_as_lost(stack, &tenant, &reservation).await?;

    // Nothing is charged while the node is disconnected, and its pod is left alone.
    let [short, full] = AWAY;
    let away = outage(short, full).as_secs();
    let later = within(Duration::from_secs(away) + LIMIT, "time on the chain", || async {
        let account = served.account().await?;
        let gone = account.block_time - paused.block_time;
        Ok(if gone >= away { Ok(account) } else { Err(gone) })
    })
    .await?;
    ensure!(later.legs[0].served_seconds == kept && later.running == 0);
    let left = running(stack, &reservation).await?;
    ensure!(left == ran, "its pod was {ran:?} and is {left:?}");

    node.heal()?;
    let healed = Instant::now();
    let again = served.served_at_least(kept + 3).await?;
    eprintln!(
        "         recovered: charged again for 3 s after {:.1?}",
        healed.elapsed()
    );
    ensure!(again.running == 1);
    ensure!(
        running(stack, &reservation).await? == ran,
        "the pod was not replaced or restarted"
    );
    ready_again(&tenant).await?;
    served.ends_exactly(before).await?;
    is_offered(stack, LOST_PROVIDER, 1).await
}

async fn ready_again(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    tenant
        .until("lonely", LIMIT, "ready again", |l| {
            let status = l.status.as_ref();
            status.is_some_and(|s| find(&s.conditions, "Ready").is_some_and(|c| c.status == "True"))
        })
        .await?;
    Ok(())
}

/// Lease, offer, pool and Events show the lost node.
async fn shown_as_lost(
    stack: &Stack,
    tenant: &Tenant<'_>,
    reservation: &GpuReservation,
) -> anyhow::Result<()> {
    let lonely = tenant.leases().get("lonely").await?.status.context("status")?;
    let ready = find(&lonely.conditions, "Ready").context("Ready")?;
    ensure!(
        lonely.phase == Phase::Active
            && (ready.status.as_str(), ready.reason.as_str()) == ("False", "NodeLost")
            && ready.message.contains(LOST_NODE),
        "{ready:?}"
    );
    ensure!(offered(stack, LOST_PROVIDER).await? == 0);
    ensure!(not_sold(stack, LOST_PROVIDER).await?.contains_key(LOST_NODE));
    for (kind, name, reason) in [
        ("GpuReservation", reservation.name_any(), "NodeLost"),
        ("GpuLease", "lonely".to_owned(), "NotReady"),
    ] {
        within(LIMIT, &format!("{reason} of the {kind}"), || async {
            let events = Api::<Event>::all(stack.client.clone());
            let events = events.list(&ListParams::default()).await?.items;
            let of = |e: &&Event| e.involved_object.name.as_ref() == Some(&name);
            let notes: Vec<_> = events
                .iter()
                .filter(of)
                .map(|e| (e.reason.clone(), e.message.clone()))
                .collect();
            let found = notes.iter().any(|(word, _)| word.as_deref() == Some(reason));
            Ok(if found { Ok(()) } else { Err(notes) })
        })
        .await?;
    }
    Ok(())
}
