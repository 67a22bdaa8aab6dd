//! The market's CRDs are deleted under a paid lease and installed again. The workload runs until its paid deadline
//! and stops, nothing is charged beyond, and both operators continue without intervention.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use k8s_openapi::{
    api::{core::v1::Pod, events::v1::Event},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_crds::{
    GROUP, GpuAllocation, GpuLease, GpuReservation, lease::Phase, market::allocation::StopReason,
    payment::money::TokenAmount, provider::reservation::GpuReservationStatus, shared::conditions::find,
};
use leasehold_e2e::{Split, SplitSpec, Tenant, within};
use leasehold_planner::{
    escrow::{Account, Terms},
    ports::{BlockLevel, Payments as _},
};
use leasehold_testcluster::{Stderr, Unavailable};
use serde::de::DeserializeOwned;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
const TERM_SECONDS: u64 = 60;
const NAME: &str = "afar";
const NAMESPACE: &str = "leasehold-system";

#[tokio::test(flavor = "multi_thread")]
async fn a_paid_lease_survives_the_deletion_of_the_crds() -> anyhow::Result<()> {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let split = Split::up(SplitSpec::new("e2e-reinstall"), &Stderr::default()).await?;
    let result = story(&split).await;
    if let Err(error) = &result {
        let kept = leasehold_testcluster::cache_root()?
            .join("failed")
            .join("e2e-reinstall");
        split.market.dump(&kept.join("market"));
        let _ = split.provider.dump(&kept.join("provider"));
        eprintln!("{error:#}\nlogs are in {}", kept.display());
    }
    split.down().await?;
    result
}

async fn story(split: &Split) -> anyhow::Result<()> {
    let tenant = Tenant::new(&split.market, "team-a")?;
    let before = tenant.own_balance().await?;
    let operators = [
        operators_of(&split.market.client).await?,
        operators_of(&split.client).await?,
    ];
    let lease = tenant.session(NAME, &format!("{TERM_SECONDS}s"))?;
    tenant.apply(&lease)?;
    let active = tenant.until_phase(NAME, Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&active).await?;
    ensure!(
        account.paid_until == account.started_at + TERM_SECONDS,
        "{account:?}"
    );
    let labelled = ListParams::default().labels("leasehold.dev/lease");
    let pods = Api::<Pod>::all(split.client.clone()).list(&labelled).await?.items;
    let pod = pods.first().context("the pod is on the provider's cluster")?;

    let again = tokio::try_join!(served_to_the_end(split, pod, &account), async {
        deleted(split, &tenant, &terms).await?;
        installed(split).await?;
        let status = reservation(split, pod, "AllocationGone", |status| {
            find(&status.conditions, "MarketReachable").is_some_and(|c| c.reason == "AllocationGone")
        })
        .await?;
        ensure!(
            status.stop_reason.is_none(),
            "the reservation is not stopped because of that: {status:?}"
        );
        leased_again(&tenant, &lease).await
    })?
    .1;

    let stopped = reservation(split, pod, "a stop reason", |status| status.stop_reason.is_some()).await?;
    ensure!(stopped.stop_reason == Some(StopReason::FundsSpent), "{stopped:?}");
    let spent = present(split, &terms).await?;
    let leg = &spent.legs[0];
    ensure!(
        leg.served_seconds == TERM_SECONDS && spent.running == 0,
        "exactly the paid time is charged: {spent:?}"
    );
    ensure!(
        before.0 - tenant.own_balance().await?.0 == spent.deposited.0 + again.0,
        "nothing else is spent"
    );
    let after = [
        operators_of(&split.market.client).await?,
        operators_of(&split.client).await?,
    ];
    ensure!(
        after == operators,
        "no operator was restarted: {operators:?}, {after:?}"
    );
    Ok(())
}

/// Uid and restarts of each operator's pod.
async fn operators_of(client: &Client) -> anyhow::Result<Vec<(String, Option<String>, i32)>> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let mut found: Vec<_> = pods
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        // Jobs of the chart apply objects and end.
        .filter(|pod| !pod.labels().contains_key("batch.kubernetes.io/job-name"))
        .map(|pod| (pod.name_any(), pod.uid(), restarts(&pod)))
        .collect();
    found.sort();
    ensure!(!found.is_empty(), "the operators run as pods");
    Ok(found)
}

fn restarts(pod: &Pod) -> i32 {
    let containers = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten());
    containers.map(|c| c.restart_count).sum()
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with times of the kubelet and the chain"
)]
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Polls the pod: it must exist without restarts until the paid time is over, and must be deleted afterwards.
async fn served_to_the_end(split: &Split, pod: &Pod, account: &Account) -> anyhow::Result<()> {
    let paid_until = i64::try_from(account.paid_until)?;
    let pods = Api::<Pod>::namespaced(
        split.client.clone(),
        &pod.namespace().context("it has a namespace")?,
    );
    loop {
        let now = now();
        let seen = pods.get_opt(&pod.name_any()).await?;
        let serves = seen.as_ref().is_some_and(|seen| {
            let running = seen.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
            seen.uid() == pod.uid() && seen.metadata.deletion_timestamp.is_none() && running
        });
        if let Some(seen) = &seen {
            ensure!(
                restarts(seen) == 0,
                "the container was never restarted: {:?}",
                seen.status
            );
        }
        // Block times and this machine's clock agree within a second.
        ensure!(
            serves || now >= paid_until - 1,
            "{} s before its paid time is over: {:?}",
            paid_until - now,
            seen.map(|s| s.status)
        );
        if seen.is_none() {
            eprintln!("the pod was gone {} s after its paid time", now - paid_until);
            return Ok(());
        }
        ensure!(
            now < paid_until + 45,
            "the workload stops at its deadline: {:?}",
            seen.map(|s| s.metadata)
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Deletes all CRDs with the command that deletes everything, and removes the finalizers of objects that hang.
async fn deleted(split: &Split, tenant: &Tenant<'_>, terms: &Terms) -> anyhow::Result<()> {
    let mut kubectl = split.market.cluster.kubectl();
    kubectl.args([
        "delete",
        "crd",
        "-l",
        "app.kubernetes.io/part-of=leasehold",
        "--wait=false",
    ]);
    succeed(&mut kubectl)?;
    let events = Api::<Event>::namespaced(split.market.client.clone(), &tenant.namespace);
    within(
        LIMIT,
        "the market to report why the lease is not deleted",
        || async {
            let all = events.list(&ListParams::default()).await?.items;
            let reasons: Vec<_> = all.into_iter().filter_map(|e| e.reason).collect();
            Ok(if reasons.iter().any(|r| r == "KindDeleted") {
                Ok(())
            } else {
                Err(reasons)
            })
        },
    )
    .await?;
    let account = present(split, terms).await?;
    ensure!(
        !account.closed && account.running != 0,
        "the account is still open: {account:?}"
    );
    let kinds = Api::<CustomResourceDefinition>::all(split.market.client.clone());
    within(LIMIT, "the CRDs to be deleted", || async {
        let client = &split.market.client;
        without_finalizers::<GpuLease>(client).await?;
        without_finalizers::<GpuAllocation>(client).await?;
        let left = kinds.list(&ListParams::default()).await?.items;
        let left: Vec<_> = left
            .iter()
            .filter(|k| k.spec.group == GROUP)
            .map(kube::ResourceExt::name_any)
            .collect();
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })
    .await
}

async fn without_finalizers<K>(client: &Client) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let list = match Api::<K>::all(client.clone()).list(&ListParams::default()).await {
        Ok(list) => list,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    for object in list.items {
        let api = Api::<K>::namespaced(client.clone(), &object.namespace().unwrap_or_default());
        // A missing object is fine.
        let _ = api
            .patch(&object.name_any(), &PatchParams::default(), &none)
            .await;
    }
    Ok(())
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

/// Installs the same release again, with its previous values.
async fn installed(split: &Split) -> anyhow::Result<()> {
    let mut helm = split.market.cluster.helm();
    helm.args(["upgrade", "leasehold"])
        .arg(leasehold_tasks::root().join("charts/leasehold"))
        .args(["--namespace", NAMESPACE, "--reuse-values"]);
    succeed(&mut helm)?;
    let leases = Api::<GpuLease>::all(split.market.client.clone());
    within(LIMIT, "leases to be served again", || async {
        let list = leases.list(&ListParams::default()).await?;
        Ok::<_, anyhow::Error>(if list.items.is_empty() {
            Ok(())
        } else {
            Err(list.items)
        })
    })
    .await
}

/// The reservation's status, once it satisfies a condition.
async fn reservation(
    split: &Split,
    pod: &Pod,
    what: &str,
    wanted: impl Fn(&GpuReservationStatus) -> bool,
) -> anyhow::Result<GpuReservationStatus> {
    let api = Api::<GpuReservation>::all(split.client.clone());
    // Reservation and namespace have the same name.
    let name = pod.namespace().context("it has a namespace")?;
    within(LIMIT, what, || async {
        let status = api.get(&name).await?.status.unwrap_or_default();
        Ok(if wanted(&status) { Ok(status) } else { Err(status) })
    })
    .await
}

/// Applies the same manifest again, which is another lease, and waits until it is served, ended and refunded. Returns
/// its price.
async fn leased_again(tenant: &Tenant<'_>, lease: &GpuLease) -> anyhow::Result<TokenAmount> {
    tenant.apply(lease)?;
    let active = tenant.until_phase(NAME, Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&active).await?;
    tenant.delete(NAME).await?;
    tenant.until_gone(NAME, LIMIT).await?;
    let read = tenant.stack.payments.account(&terms, BlockLevel::Latest).await?;
    let account = read.present().context("its account")?;
    ensure!(account.closed, "the account is closed");
    let leg = &account.legs[0];
    ensure!(leg.served_seconds > 0, "it served");
    terms.legs[0]
        .rate
        .earned_floor(leg.served_seconds)
        .context("in range")
}

async fn present(split: &Split, terms: &Terms) -> anyhow::Result<Account> {
    let read = split.market.payments.account(terms, BlockLevel::Latest).await?;
    Ok(read.present().context("the account exists")?.clone())
}
