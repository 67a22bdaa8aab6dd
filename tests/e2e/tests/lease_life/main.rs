//! The life of leases on one control plane: served and extended, out of funds, deleted in every phase, without
//! means, without room. One stack, stories side by side, each on its own lease.

mod orphans;
mod payout;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use leasehold_crds::{
    GpuAllocation, GpuLease, GpuOffer, GpuReservation,
    lease::{CloseReason, OnFundsEnd, Phase},
    payment::money::TokenAmount,
    shared::conditions::find,
};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, Tenant, eventually, on_stack, told, within};
use leasehold_planner::{
    escrow::salt,
    market::lease::{LAG_SECONDS, OPEN_WITHIN_SECONDS},
    ports::Payments as _,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// A lease deleted after its intent to open was stored is let go once no `open` of it can be mined any more.
const UNOPENED: Duration = Duration::from_secs(OPEN_WITHIN_SECONDS + LAG_SECONDS.unsigned_abs());

#[tokio::test(flavor = "multi_thread")]
async fn leases_live_and_end_on_one_control_plane() -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("e2e-life");
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 8)]);
    on_stack(spec, stories).await
}

async fn stories(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    told("no room", no_room(&tenant)).await?;
    told("no funds", no_funds(stack)).await?;
    told("no opt-in", no_opt_in(stack)).await?;
    told("served, extended, deleted", served_extended_deleted(&tenant)).await?;
    told("paid while it runs", payout::paid_while_it_runs(&tenant)).await?;
    let before = tenant.own_balance().await?;
    let ended = tokio::try_join!(
        told("term over", term_over(&tenant)),
        told("paused and resumed", paused_and_resumed(&tenant)),
        told("topped up by policy", topped_up_by_policy(&tenant)),
        told("status wiped", status_wiped(&tenant)),
        told("lease torn out", orphans::lease_torn_out(&tenant)),
        told("reservation torn out", orphans::reservation_torn_out(&tenant)),
    )?;
    let spent = ended.0.0 + ended.1.0 + ended.2.0 + ended.3.0 + ended.4.0 + ended.5.0;
    ensure!(
        before.0 - tenant.own_balance().await?.0 == spent,
        "what left the tenant is what legs earned, to the unit"
    );
    told("deleted in each phase", deleted_in_each_phase(stack, &tenant)).await?;
    told("namespace deleted", namespace_deleted(stack)).await?;
    told("nothing left", nothing_left(stack)).await
}

/// A lease of one GPU that serves a port until it ends.
fn service(tenant: &Tenant<'_>, name: &str, term: &str) -> anyhow::Result<GpuLease> {
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "perNode": {"cpu": "200m", "memory": "64Mi", "ephemeralStorage": "50Mi", "gpus": 1},
            "term": {"duration": term},
            "workload": {"service": {
                "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "httpd", "-f", "-p", "8080"],
                "ports": [{"name": "http", "port": 8080}], "readiness": {"port": 8080},
            }},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    });
    Ok(serde_json::from_value(lease)?)
}

async fn no_room(tenant: &Tenant<'_>) -> anyhow::Result<()> {
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
    ensure!(failed == ["gpus", "memory", "price"], "{failed:?}");
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

async fn no_funds(stack: &Stack) -> anyhow::Result<()> {
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

async fn no_opt_in(stack: &Stack) -> anyhow::Result<()> {
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

async fn reservations(stack: &Stack) -> anyhow::Result<Vec<GpuReservation>> {
    Ok(Api::<GpuReservation>::all(stack.client.clone())
        .list(&ListParams::default())
        .await?
        .items)
}

async fn served_extended_deleted(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    let before = tenant.own_balance().await?;
    let free = free_gpus(stack).await?;
    tenant.apply(&service(tenant, "web", "10m")?)?;
    let lease = tenant.until_phase("web", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    ensure!(account.deposited == terms.rate().cost_ceil(600).context("cost")?);

    // Nothing was charged before the workload was ready.
    let namespace = reservations(stack)
        .await?
        .first()
        .context("a reservation")?
        .name_any();
    let pods = Api::<Pod>::namespaced(stack.client.clone(), &namespace)
        .list(&ListParams::default())
        .await?
        .items;
    let ready = pods[0]
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .and_then(|c| c.iter().find(|c| c.type_ == "Ready"));
    let ready = ready
        .and_then(|c| c.last_transition_time.as_ref())
        .context("the pod is ready")?
        .0
        .as_second();
    let started = lease
        .status
        .as_ref()
        .and_then(|s| s.money.as_ref()?.started_at.clone())
        .context("startedAt")?;
    let started = started.parse::<jiff::Timestamp>()?.as_second();
    ensure!(started >= ready, "charged from {started}, ready at {ready}");

    // The port answers at the address in status.
    let lease = tenant
        .until("web", LIMIT, "an endpoint", |l| {
            l.status.as_ref().is_some_and(|s| !s.endpoints.is_empty())
        })
        .await?;
    let endpoint = lease.status.context("status")?.endpoints[0].clone();
    eventually("the port to answer", || async {
        let address = format!("{}:{}", endpoint.host, endpoint.port);
        Ok(
            tokio::time::timeout(Duration::from_secs(2), tokio::net::TcpStream::connect(&address))
                .await?
                .map(|_| ()),
        )
    })
    .await?;

    // Extended: the term grew, funds follow, to the unit.
    let longer = json!({"spec": {"term": {"duration": "20m"}}});
    tenant
        .leases()
        .patch("web", &PatchParams::default(), &Patch::Merge(&longer))
        .await?;
    let wanted = terms.rate().cost_ceil(1200).context("cost")?;
    eventually("the extension's funds", || async {
        let lease = tenant.leases().get("web").await?;
        let (_, account) = tenant.account(&lease).await?;
        Ok(if account.deposited == wanted {
            Ok(())
        } else {
            Err(account.deposited)
        })
    })
    .await?;

    tenant.delete("web").await?;
    tenant.until_gone("web", LIMIT).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    ensure!(
        tenant.own_balance().await?.0 == before.0 - earned.0,
        "the refund is exact"
    );

    // The pod's end, and the GPU back in the offer.
    within(LIMIT, "the pods' end", || async {
        let left = Api::<Pod>::namespaced(stack.client.clone(), &namespace)
            .list(&ListParams::default())
            .await?
            .items
            .len();
        Ok(if left == 0 { Ok(()) } else { Err(left) })
    })
    .await?;
    let ended = Instant::now();
    within(Duration::from_secs(5), "the GPU to be offered again", || async {
        let now = free_gpus(stack).await?;
        Ok(if now == free { Ok(()) } else { Err(now) })
    })
    .await?;
    eprintln!(
        "         the GPU is back in the offer {:.1}s after the pod's end",
        ended.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn free_gpus(stack: &Stack) -> anyhow::Result<i64> {
    let offers = Api::<GpuOffer>::all(stack.client.clone())
        .list(&ListParams::default())
        .await?
        .items;
    Ok(offers
        .iter()
        .flat_map(|o| &o.spec.rows)
        .map(|r| r.gpus * r.nodes_free)
        .sum())
}

/// Asks the chain: closed, and each leg earned its rate times its seconds. Returns what all legs earned.
async fn closed_exactly(
    tenant: &Tenant<'_>,
    terms: &leasehold_planner::escrow::Terms,
) -> anyhow::Result<TokenAmount> {
    let read = tenant
        .stack
        .rail
        .account(terms, leasehold_planner::ports::BlockLevel::Latest)
        .await?;
    let account = read.present().context("the account")?.clone();
    ensure!(account.closed, "the account is closed");
    let mut earned = 0;
    for (leg, state) in terms.legs.iter().zip(&account.legs) {
        let due = leg.rate.earned_floor(state.served_seconds).context("in range")?;
        ensure!(
            state.withdrawn.0 + state.owed.0 == due.0,
            "{} s at {} earn {due}",
            state.served_seconds,
            leg.rate
        );
        earned += due.0;
    }
    Ok(TokenAmount(earned))
}

/// Waits for the end, checks it, deletes the lease, returns what was earned.
async fn ends(
    tenant: &Tenant<'_>,
    name: &str,
    reason: CloseReason,
    limit: Duration,
) -> anyhow::Result<TokenAmount> {
    let lease = tenant.until_phase(name, Phase::Closed, limit).await?;
    let found = lease.status.as_ref().and_then(|s| s.close_reason);
    ensure!(found == Some(reason), "{found:?}, not {reason:?}");
    let (terms, _) = tenant.account(&lease).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    tenant.delete(name).await?;
    tenant.until_gone(name, LIMIT).await?;
    Ok(earned)
}

/// The whole term is served and charged, not a second more.
async fn term_over(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "short", "10s")?)?;
    let lease = tenant.until_phase("short", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let earned = ends(tenant, "short", CloseReason::TermOver, LIMIT).await?;
    ensure!(
        Some(earned) == terms.rate().earned_floor(10),
        "ten seconds were charged, {earned}"
    );
    Ok(earned)
}

async fn paused_and_resumed(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    let mut lease = service(tenant, "pausing", "10s")?;
    lease.spec.payment.on_funds_end = OnFundsEnd::Pause;
    lease.spec.payment.pause_for = Some("30m".into());
    tenant.apply(&lease)?;
    let lease = tenant.until_phase("pausing", Phase::Suspended, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    ensure!(account.paid_seconds == 10 && !account.closed, "{account:?}");
    let longer = json!({"spec": {"term": {"duration": "20s"}}});
    tenant
        .leases()
        .patch("pausing", &PatchParams::default(), &Patch::Merge(&longer))
        .await?;
    tenant.until_phase("pausing", Phase::Active, LIMIT).await?;
    tenant.until_phase("pausing", Phase::Suspended, LIMIT).await?;
    tenant.delete("pausing").await?;
    tenant.until_gone("pausing", LIMIT).await?;
    let earned = closed_exactly(tenant, &terms).await?;
    ensure!(
        Some(earned) == terms.rate().earned_floor(20),
        "twenty seconds were charged, the gap was not: {earned}"
    );
    Ok(earned)
}

async fn topped_up_by_policy(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    let mut lease = service(tenant, "topped", "30s")?;
    let rate = 1.85 / 3600.0;
    lease.spec.payment.top_up = Some(leasehold_crds::lease::TopUp {
        when_runway_below: "25s".into(),
        extend_by: "10s".into(),
        total_at_most: format!("{:.6}", rate * 41.0),
    });
    tenant.apply(&lease)?;
    let lease = tenant.until_phase("topped", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    // 30 s, and 10 s more once, long before the end; a second top-up would pass the cap.
    let earned = ends(tenant, "topped", CloseReason::TermOver, 2 * LIMIT).await?;
    let seconds = terms.rate().seconds_floor(earned).context("seconds")?;
    ensure!(
        (39..=40).contains(&seconds),
        "40 s were paid, {seconds} s were served"
    );
    Ok(earned)
}

/// The status is wiped mid-life: the same account is found again, no second one is opened.
async fn status_wiped(tenant: &Tenant<'_>) -> anyhow::Result<TokenAmount> {
    tenant.apply(&service(tenant, "wiped", "30m")?)?;
    let lease = tenant.until_phase("wiped", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let mut bare = tenant.leases().get("wiped").await?;
    bare.status = None;
    bare.metadata.managed_fields = None;
    tenant
        .leases()
        .replace_status("wiped", &kube::api::PostParams::default(), &bare)
        .await?;
    let again = tenant.until_phase("wiped", Phase::Active, LIMIT).await?;
    ensure!(tenant.account(&again).await?.0 == terms, "the same account");
    let uid = again.uid().context("uid")?;
    let (opened, _) = tenant
        .stack
        .rail
        .opened_since(tenant.stack.money.market_id, None)
        .await?;
    let mine = (1..64)
        .filter(|round| {
            opened
                .iter()
                .any(|o| o.terms.salt == salt(tenant.stack.money.market_id, &uid, *round))
        })
        .count();
    ensure!(mine == 1, "{mine} accounts were opened");
    tenant.delete("wiped").await?;
    tenant.until_gone("wiped", LIMIT).await?;
    closed_exactly(tenant, &terms).await
}

/// Deleted as soon as each phase is seen; the Secret is deleted first in one of them.
async fn deleted_in_each_phase(stack: &Stack, tenant: &Tenant<'_>) -> anyhow::Result<()> {
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
            // A phase may be over before it is seen; then the deletion comes in the one after it.
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
                .rail
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
    // A lease that was deleted before its terms were seen may have opened an account after all: it is closed too.
    let mut all = 0;
    let (opened, _) = stack.rail.opened_since(stack.money.market_id, None).await?;
    for account in &opened {
        let read = stack
            .rail
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

async fn namespace_deleted(stack: &Stack) -> anyhow::Result<()> {
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

/// Nothing of any lease is left anywhere, and the escrow holds nothing.
async fn nothing_left(stack: &Stack) -> anyhow::Result<()> {
    within(LIMIT, "everything to be gone", || async {
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
            .filter(|n| n.starts_with("lease-"))
            .chain(allocations.iter().map(ResourceExt::name_any))
            .chain(reservations(stack).await?.iter().map(ResourceExt::name_any))
            .collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })
    .await?;
    let held = stack.rail.balances(stack.money.escrow).await?.token;
    ensure!(held.0 == 0, "the escrow still holds {held}");
    Ok(())
}
