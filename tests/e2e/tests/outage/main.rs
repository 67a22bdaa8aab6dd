//! Crashes and outages: operators killed at random moments while two of each act without leadership, a chain that
//! hangs, an API server that stops. Nothing is opened twice, paid workloads continue, and all amounts are exact.

mod endpoints;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use leasehold_crds::{
    GpuLease, GpuReservation, PaymentNetwork,
    lease::{CloseReason, Phase},
    market::allocation::StopReason,
    payment::money::TokenAmount,
    shared::conditions::find,
};
use leasehold_e2e::{GpuNodes, Stack, StackSpec, Tenant, on_stack, outage, timed, within};
use leasehold_planner::{
    escrow::Terms,
    ports::{BlockLevel, Payments as _},
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(120);
const KILLS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn leases_survive_crashes_and_outages() -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("e2e-outage");
    spec.replicas = 2;
    spec.providers[0].nodes = GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 8)]);
    on_stack(spec, stories).await
}

async fn stories(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    all_replicas_act(stack).await?;
    timed("killed at random moments", killed_at_random_moments(&tenant)).await?;
    timed("the chain hangs", chain_hangs(&tenant)).await?;
    timed(
        "the chain hangs beyond the paid time",
        chain_hangs_too_long(&tenant),
    )
    .await?;
    timed("given up during an outage of the chain", given_up(&tenant)).await?;
    timed(
        "one of two RPC endpoints lies and fails",
        endpoints::lie_and_fail(&tenant),
    )
    .await?;
    timed("the API server stops", api_server_dies(&tenant)).await
}

/// Two replicas of each operator that both act, as leadership is only an optimisation.
async fn all_replicas_act(stack: &Stack) -> anyhow::Result<()> {
    let deployments =
        Api::<k8s_openapi::api::apps::v1::Deployment>::namespaced(stack.client.clone(), "leasehold-system");
    for name in ["leasehold-market", "leasehold-provider"] {
        let patch = json!([{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--no-leader-election"}]);
        deployments
            .patch(
                name,
                &PatchParams::default(),
                &Patch::<GpuLease>::Json(serde_json::from_value(patch)?),
            )
            .await?;
    }
    within(LIMIT, "four operators that all lead", || async {
        let all = deployments.list(&ListParams::default()).await?.items;
        let waiting: Vec<_> = all
            .iter()
            .filter(|d| {
                let status = d.status.clone().unwrap_or_default();
                status.updated_replicas != Some(2)
                    || status.ready_replicas != Some(2)
                    || status.replicas != Some(2)
            })
            .map(ResourceExt::name_any)
            .collect();
        Ok(if waiting.is_empty() { Ok(()) } else { Err(waiting) })
    })
    .await
}

fn service(tenant: &Tenant<'_>, name: &str, term: &str) -> anyhow::Result<GpuLease> {
    let mut lease = tenant.session(name, term)?;
    lease.spec.per_node.cpu = "200m".into();
    lease.spec.per_node.memory = "64Mi".into();
    Ok(lease)
}

/// Creates and deletes leases in three concurrent sequences, while operators are killed.
async fn killed_at_random_moments(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    let before = tenant.own_balance().await?;
    let killer = async {
        let pods = Api::<Pod>::namespaced(stack.client.clone(), "leasehold-system");
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..KILLS {
            // A fixed sequence of pauses from 0.3 to 2.3 s, and of operators to kill.
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            tokio::time::sleep(Duration::from_millis(300 + (seed >> 33) % 2000)).await;
            let operators: Vec<_> = pods
                .list(&ListParams::default())
                .await?
                .items
                .into_iter()
                .filter(|p| {
                    p.metadata.deletion_timestamp.is_none()
                        && (p.name_any().contains("market") || p.name_any().contains("provider"))
                })
                .collect();
            if let Some(victim) = operators.get(usize::try_from(seed >> 40)? % operators.len().max(1)) {
                // A grace period of 0 is a SIGKILL: nothing is finished and no leadership is released.
                pods.delete(&victim.name_any(), &DeleteParams::default().grace_period(0))
                    .await?;
            }
        }
        anyhow::Ok(())
    };
    let lane = |lane: usize| async move {
        let mut ended = Vec::new();
        for round in 0..2 {
            let name = format!("lease-{lane}-{round}");
            tenant.apply(&service(tenant, &name, "20m")?)?;
            let lease = tenant.until_phase(&name, Phase::Active, LIMIT).await?;
            let longer = json!({"spec": {"term": {"duration": "30m"}}});
            tenant
                .leases()
                .patch(&name, &PatchParams::default(), &Patch::Merge(&longer))
                .await?;
            let (terms, _) = tenant.account(&lease).await?;
            let wanted = terms.rate().cost_ceil(1800).context("cost")?;
            until_deposited(stack, &terms, wanted).await?;
            tenant.delete(&name).await?;
            tenant.until_gone(&name, LIMIT).await?;
            ended.push((lease.uid().context("uid")?, terms, wanted));
        }
        anyhow::Ok(ended)
    };
    let ((), a, b, c) = tokio::try_join!(killer, lane(0), lane(1), lane(2))?;

    let mut earned = 0;
    let (opened, _) = stack.payments.opened_since(stack.money.market_id, None).await?;
    for (uid, terms, wanted) in a.iter().chain(&b).chain(&c) {
        let mine = stack.accounts_of_lease(&opened, uid);
        ensure!(mine == 1, "{mine} accounts were opened for one lease");
        earned += closed(stack, terms, Some(wanted.0)).await?;
    }
    ensure!(
        before.0 - tenant.own_balance().await?.0 == earned,
        "every refund is exact"
    );
    Ok(())
}

/// Waits until so much is deposited in all.
async fn until_deposited(stack: &Stack, terms: &Terms, wanted: TokenAmount) -> anyhow::Result<()> {
    within(LIMIT, "the extension's funds", || async {
        let read = stack.payments.account(terms, BlockLevel::Latest).await?;
        let deposited = read.present().map(|a| a.deposited);
        Ok(if deposited == Some(wanted) {
            Ok(())
        } else {
            Err(deposited)
        })
    })
    .await
}

/// Checks that the account is closed and every leg earned its rate times its seconds. Returns the sum.
async fn closed(stack: &Stack, terms: &Terms, deposited: Option<u128>) -> anyhow::Result<u128> {
    let read = stack.payments.account(terms, BlockLevel::Latest).await?;
    let account = read.present().context("the account")?;
    ensure!(account.closed, "closed");
    ensure!(
        deposited.is_none_or(|d| d == account.deposited.0),
        "deposited {}, wanted {deposited:?}",
        account.deposited
    );
    let mut earned = 0;
    for (leg, state) in terms.legs.iter().zip(&account.legs) {
        let due = leg.rate.earned_floor(state.served_seconds).context("in range")?;
        ensure!(state.withdrawn.0 + state.owed.0 == due.0);
        earned += due.0;
    }
    Ok(earned)
}

/// The pod of the only running lease, and the restarts of its container.
async fn pod(stack: &Stack) -> anyhow::Result<Option<(String, i32)>> {
    let pods = Api::<Pod>::all(stack.client.clone())
        .list(&ListParams::default().labels("leasehold.dev/lease"))
        .await?
        .items;
    Ok(pods.first().map(|p| {
        let restarts = p
            .status
            .as_ref()
            .and_then(|s| s.container_statuses.as_ref()?.first().map(|c| c.restart_count))
            .unwrap_or(0);
        (p.uid().unwrap_or_default(), restarts)
    }))
}

async fn no_pods(stack: &Stack) -> anyhow::Result<()> {
    within(LIMIT, "no pods of leases", || async {
        Ok(match pod(stack).await? {
            None => Ok(()),
            Some(left) => Err(left),
        })
    })
    .await
}

async fn chain_hangs(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    no_pods(stack).await?;
    tenant.apply(&service(tenant, "hung", "30m")?)?;
    let lease = tenant.until_phase("hung", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let before = pod(stack).await?;
    let anvil = stack.cluster.anvil().context("a chain")?;
    anvil.suspend()?;
    let hung = async {
        // The tenant extends while the chain hangs: the extension is paid once, after the outage.
        let longer = json!({"spec": {"term": {"duration": "40m"}}});
        tenant
            .leases()
            .patch("hung", &PatchParams::default(), &Patch::Merge(&longer))
            .await?;
        let unknown = |l: &GpuLease| {
            l.status
                .as_ref()
                .and_then(|s| find(&s.conditions, "ChainReachable"))
                .is_some_and(|c| c.status == "Unknown")
        };
        let lease = tenant
            .until("hung", LIMIT, "ChainReachable Unknown", unknown)
            .await?;
        ensure!(
            lease.status.is_some_and(|s| s.phase == Phase::Active),
            "an unknown state ends nothing"
        );
        tokio::time::sleep(outage(Duration::from_secs(20), Duration::from_secs(60))).await;
        ensure!(pod(stack).await? == before, "the workload is untouched");
        anyhow::Ok(())
    };
    let result = hung.await;
    anvil.resume()?;
    result?;
    let wanted = terms.rate().cost_ceil(2400).context("cost")?;
    until_deposited(stack, &terms, wanted).await?;
    ensure!(pod(stack).await? == before, "the workload is untouched");
    tenant.delete("hung").await?;
    tenant.until_gone("hung", LIMIT).await?;
    closed(stack, &terms, Some(wanted.0)).await?;
    Ok(())
}

/// The workload continues for the paid time and the grace, then stops. Afterwards the paid time is settled exactly.
async fn chain_hangs_too_long(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    const GRACE: i64 = 10;
    let stack = tenant.stack;
    no_pods(stack).await?;
    let networks = Api::<PaymentNetwork>::all(stack.client.clone());
    let grace = json!({"spec": {"outageGrace": format!("{GRACE}s")}});
    networks
        .patch("anvil", &PatchParams::default(), &Patch::Merge(&grace))
        .await?;
    tenant.apply(&service(tenant, "outlasted", "20s")?)?;
    let lease = tenant.until_phase("outlasted", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&lease).await?;
    let paid_until = i64::try_from(account.paid_until)?;
    let anvil = stack.cluster.anvil().context("a chain")?;
    anvil.suspend()?;
    let hung = async {
        let reservations = Api::<GpuReservation>::all(stack.client.clone());
        let name = reservations
            .list(&ListParams::default())
            .await?
            .items
            .iter()
            .map(ResourceExt::name_any)
            .find(|n| n.starts_with(&leasehold_planner::escrow::lease_name(terms.id())))
            .context("the reservation")?;
        within(LIMIT, "the stop after the grace", || async {
            let status = reservations.get(&name).await?.status.unwrap_or_default();
            Ok(if status.stop_reason == Some(StopReason::FundsUnknown) {
                Ok(())
            } else {
                Err(status.stop_reason)
            })
        })
        .await?;
        anyhow::Ok(now())
    };
    let stopped = hung.await;
    anvil.resume()?;
    let late = stopped? - (paid_until + GRACE);
    eprintln!("         stopped {late} s after paidUntil + grace");
    ensure!(
        (0..=8).contains(&late),
        "the workload stopped {late} s after paidUntil + grace"
    );
    let lease = tenant.until_phase("outlasted", Phase::Closed, LIMIT).await?;
    let reason = lease.status.and_then(|s| s.close_reason);
    ensure!(
        matches!(reason, Some(CloseReason::TermOver | CloseReason::ProviderStopped)),
        "{reason:?}"
    );
    let earned = closed(stack, &terms, None).await?;
    ensure!(
        Some(earned) == terms.rate().earned_floor(20).map(|a| a.0),
        "the paid time was earned, and nothing of the grace: {earned}"
    );
    tenant.delete("outlasted").await?;
    tenant.until_gone("outlasted", LIMIT).await
}

/// The tenant deletes the lease during an outage of the chain and gives up its account. The lease is removed and the
/// pods stop. After the outage, the refund is still made.
async fn given_up(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    no_pods(stack).await?;
    let before = tenant.own_balance().await?;
    tenant.apply(&service(tenant, "given-up", "30m")?)?;
    let lease = tenant.until_phase("given-up", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let anvil = stack.cluster.anvil().context("a chain")?;
    anvil.suspend()?;
    let hung = async {
        tenant.delete("given-up").await?;
        let ends = |l: &GpuLease| {
            let reason = l.status.as_ref().and_then(|s| s.close_reason);
            reason == Some(CloseReason::Deleted)
        };
        tenant
            .until("given-up", LIMIT, "an end blocked on the chain", ends)
            .await?;
        no_pods(stack).await?;
        let let_go = |id: String| json!({"metadata": {"annotations": {"leasehold.dev/abandon": id}}});
        let annotate = |id: String| async move {
            let patch = Patch::Merge(let_go(id));
            tenant
                .leases()
                .patch("given-up", &PatchParams::default(), &patch)
                .await
        };
        // The id of another account does not give up this one.
        annotate(format!("0x{}", "0".repeat(64))).await?;
        let unknown = |l: &GpuLease| {
            let status = l.status.as_ref();
            let condition = status.and_then(|s| find(&s.conditions, "ChainReachable"));
            condition.is_some_and(|c| c.status == "Unknown")
        };
        let lease = tenant
            .until("given-up", LIMIT, "ChainReachable Unknown", unknown)
            .await?;
        ensure!(
            lease.status.is_some_and(|s| s.phase != Phase::Closed),
            "the lease waits for the chain"
        );
        annotate(terms.id().to_string()).await?;
        tenant.until_gone("given-up", LIMIT).await?;
        let events =
            Api::<k8s_openapi::api::events::v1::Event>::namespaced(stack.client.clone(), &tenant.namespace);
        within(LIMIT, "an Event that names the refund's call", || async {
            let said = events.list(&ListParams::default()).await?.items;
            let found = said.iter().any(|e| {
                let note = e.note.as_deref().unwrap_or_default();
                e.reason.as_deref() == Some("Abandoned") && note.contains(&terms.id().to_string())
            });
            Ok(if found { Ok(()) } else { Err(said.len()) })
        })
        .await
    };
    let result = hung.await;
    anvil.resume()?;
    result?;
    // The leg's controller ends the leg, and then anyone may close; the search for orphans does.
    within(Duration::from_secs(240), "the refund", || async {
        let read = stack.payments.account(&terms, BlockLevel::Latest).await?;
        let open = read.present().filter(|a| !a.closed).cloned();
        Ok(open.map_or(Ok(()), Err))
    })
    .await?;
    let earned = closed(stack, &terms, None).await?;
    ensure!(
        before.0 - tenant.own_balance().await?.0 == earned,
        "everything except the served time was refunded"
    );
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with times of the kubelet and the chain"
)]
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

async fn api_server_dies(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    no_pods(stack).await?;
    tenant.apply(&service(tenant, "restarted", "30m")?)?;
    let lease = tenant.until_phase("restarted", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&lease).await?;
    let before = pod(stack).await?;
    let server = stack.cluster.apiserver();
    server.kill().await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    server.start().await?;
    within(LIMIT, "the API server", || async {
        Ok(pod(stack).await.map_err(|e| e.to_string()))
    })
    .await?;
    ensure!(pod(stack).await? == before, "the workload is untouched");
    tenant.delete("restarted").await?;
    tenant.until_gone("restarted", LIMIT).await?;
    closed(stack, &terms, None).await?;
    Ok(())
}
