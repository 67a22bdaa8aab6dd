//! A lease whose provider has a control plane of its own and only a token for the market: served, extended,
//! disconnected from the market, refunded.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use leasehold_crds::{
    GpuAllocation, GpuLease, GpuReservation, LABEL_LEASE, PaymentNetwork, lease::Phase,
    market::allocation::AllocationPhase, payment::money::TokenAmount, shared::conditions::find,
};
use leasehold_e2e::{Split, SplitSpec, Tenant, outage, within};
use leasehold_planner::{
    escrow::Terms,
    ports::{BlockLevel, Payments as _},
};
use leasehold_testcluster::{Stderr, Unavailable};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_served_across_two_control_planes() -> anyhow::Result<()> {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return Ok(());
    }
    let split = Split::up(SplitSpec::new("e2e-split"), &Stderr::default()).await?;
    let result = stories(&split).await;
    if let Err(error) = &result {
        let kept = leasehold_testcluster::cache_root()?
            .join("failed")
            .join("e2e-split");
        split.market.dump(&kept.join("market"));
        let _ = split.provider.dump(&kept.join("provider"));
        eprintln!("{error:#}\nlogs are in {}", kept.display());
    }
    split.down().await?;
    result
}

async fn stories(split: &Split) -> anyhow::Result<()> {
    let tenant = Tenant::new(&split.market, "team-a")?;
    let before = tenant.own_balance().await?;
    let lease = tenant.session("afar", "20m")?;
    tenant.apply(&lease)?;
    let active = tenant.until_phase("afar", Phase::Active, LIMIT).await?;
    let (terms, _) = tenant.account(&active).await?;
    let pods = Api::<Pod>::all(split.client.clone());
    let labelled = ListParams::default().labels("leasehold.dev/lease");
    let pod = pods
        .list(&labelled)
        .await?
        .items
        .first()
        .cloned()
        .context("the pod is on the provider's cluster")?;
    let at_market = Api::<Pod>::all(split.market.client.clone())
        .list(&labelled)
        .await?
        .items
        .len();
    ensure!(at_market == 0, "nothing of the lease runs at the market");

    network_is_reachable(split).await?;
    token_reaches_only_its_own(split).await?;
    extended(split, &tenant, &terms).await?;
    market_outage_leaves_the_workload(split, &tenant, &pods, &pod).await?;
    refunded(split, &tenant, &terms, before).await
}

/// The provider's own PaymentNetwork shows that it is usable.
async fn network_is_reachable(split: &Split) -> anyhow::Result<()> {
    let networks = Api::<PaymentNetwork>::all(split.client.clone());
    within(LIMIT, "the provider's PaymentNetwork", || async {
        let list = networks.list(&ListParams::default()).await?.items;
        let status = list.into_iter().next().and_then(|n| n.status).unwrap_or_default();
        let found = find(&status.conditions, "Reachable").is_some_and(|c| c.status == "True");
        Ok(if found { Ok(()) } else { Err(status.conditions) })
    })
    .await
}

/// The lease is extended across both control planes.
async fn extended(split: &Split, tenant: &Tenant<'_>, terms: &Terms) -> anyhow::Result<()> {
    let longer = json!({"spec": {"term": {"duration": "30m"}}});
    tenant
        .leases()
        .patch("afar", &PatchParams::default(), &Patch::Merge(&longer))
        .await?;
    let wanted = terms.rate().cost_ceil(1800).context("cost")?;
    within(LIMIT, "the extension's funds", || async {
        let read = split.market.payments.account(terms, BlockLevel::Latest).await?;
        let deposited = read.present().map(|a| a.deposited);
        Ok(if deposited == Some(wanted) {
            Ok(())
        } else {
            Err(deposited)
        })
    })
    .await
}

/// During an outage of the market's API server the workload is untouched, and the reservation shows Unknown.
async fn market_outage_leaves_the_workload(
    split: &Split,
    tenant: &Tenant<'_>,
    pods: &Api<Pod>,
    pod: &Pod,
) -> anyhow::Result<()> {
    let server = split.market.cluster.apiserver();
    server.kill().await?;
    let reservations = Api::<GpuReservation>::all(split.client.clone());
    let name = reservations
        .list(&ListParams::default())
        .await?
        .items
        .first()
        .context("a reservation")?
        .name_any();
    let gone = Instant::now();
    let seen = within(LIMIT, "MarketReachable Unknown", || async {
        let status = reservations.get(&name).await?.status.unwrap_or_default();
        let unknown = find(&status.conditions, "MarketReachable")
            .filter(|c| c.status == "Unknown")
            .is_some();
        Ok(if unknown { Ok(()) } else { Err(status.conditions) })
    })
    .await;
    while gone.elapsed() < outage(Duration::from_secs(30), Duration::from_secs(180)) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = pods.get_opt_in(pod).await?;
        ensure!(now == pod.uid(), "the workload is untouched");
    }
    server.start().await?;
    seen?;
    within(LIMIT, "the market", || async {
        Ok(tenant
            .leases()
            .get("afar")
            .await
            .map(|_| ())
            .map_err(|e| e.to_string()))
    })
    .await?;
    ensure!(
        pods.get_opt_in(pod).await? == pod.uid(),
        "the workload is untouched"
    );
    Ok(())
}

/// The lease is deleted, the refund is exact, and nothing remains at the provider.
async fn refunded(
    split: &Split,
    tenant: &Tenant<'_>,
    terms: &Terms,
    before: TokenAmount,
) -> anyhow::Result<()> {
    let reservations = Api::<GpuReservation>::all(split.client.clone());
    tenant.delete("afar").await?;
    tenant.until_gone("afar", LIMIT).await?;
    let read = split.market.payments.account(terms, BlockLevel::Latest).await?;
    let account = read.present().context("the account")?;
    ensure!(account.closed, "closed");
    let earned = terms.legs[0]
        .rate
        .earned_floor(account.legs[0].served_seconds)
        .context("in range")?;
    ensure!(
        before.0 - tenant.own_balance().await?.0 == earned.0,
        "the refund is exact"
    );
    ensure!(
        tenant.balance(terms.legs[0].payee).await? == earned,
        "the payee has the earned amount"
    );
    within(LIMIT, "nothing to remain at the provider", || async {
        let left = reservations.list(&ListParams::default()).await?.items.len()
            + Api::<Namespace>::all(split.client.clone())
                .list(&ListParams::default())
                .await?
                .items
                .iter()
                .filter(|n| n.labels().contains_key(LABEL_LEASE))
                .count();
        Ok(if left == 0 { Ok(()) } else { Err(left) })
    })
    .await
}

trait SamePod {
    async fn get_opt_in(&self, pod: &Pod) -> anyhow::Result<Option<String>>;
}

impl SamePod for Api<Pod> {
    async fn get_opt_in(&self, pod: &Pod) -> anyhow::Result<Option<String>> {
        let all = self
            .list(&ListParams::default().fields(&format!("metadata.name={}", pod.name_any())))
            .await?
            .items;
        Ok(all.first().and_then(ResourceExt::uid))
    }
}

/// The provider's token reaches only its own objects at the market: the status of its allocations, its offer, its
/// provider.
async fn token_reaches_only_its_own(split: &Split) -> anyhow::Result<()> {
    let client = &split.token_at_market;
    let namespace = format!("provider-{}", split.market.spec.providers[0].name);
    let allocations = Api::<GpuAllocation>::namespaced(client.clone(), &namespace);
    let mine = allocations.list(&ListParams::default()).await?.items;
    let allocation = mine
        .first()
        .context("the token can read the provider's allocations")?;
    ensure!(
        allocation
            .status
            .as_ref()
            .is_some_and(|s| s.phase == AllocationPhase::Active)
    );
    let forbidden = |result: Result<(), kube::Error>, what: &str| match result {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        other => Err(anyhow::anyhow!("{what}: {other:?}, but it should be forbidden")),
    };
    let spec = json!({"spec": {"release": true}});
    forbidden(
        allocations
            .patch(
                &allocation.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&spec),
            )
            .await
            .map(|_| ()),
        "an allocation's spec",
    )?;
    forbidden(
        allocations
            .delete(&allocation.name_any(), &DeleteParams::default())
            .await
            .map(|_| ()),
        "an allocation's deletion",
    )?;
    forbidden(
        Api::<GpuLease>::all(client.clone())
            .list(&ListParams::default())
            .await
            .map(|_| ()),
        "leases",
    )?;
    forbidden(
        Api::<Secret>::namespaced(client.clone(), "team-a")
            .list(&ListParams::default())
            .await
            .map(|_| ()),
        "the tenant's Secrets",
    )?;
    forbidden(
        Api::<GpuAllocation>::namespaced(client.clone(), "provider-somebody")
            .list(&ListParams::default())
            .await
            .map(|_| ()),
        "another provider's allocations",
    )?;
    forbidden(
        Api::<Pod>::all(client.clone())
            .list(&ListParams::default())
            .await
            .map(|_| ()),
        "pods of the market",
    )
}
