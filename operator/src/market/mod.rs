//! The market role: tenants' leases in, allocations and escrow accounts out.

mod allocation;
mod lease;
mod orphans;
mod providers;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease as Liveness;
use kube::{Client, ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{
    GpuAllocation, GpuLease, GpuOffer, GpuProvider, PaymentNetwork, lease::Phase, shared::conditions::find,
};
use leasehold_planner::{
    escrow::Address,
    market::lease::{trim_allocation, trim_lease},
    ports::{Clock, SigningKey, SystemClock},
};
use leasehold_telemetry::{
    Health, Metrics,
    metrics::{Controller, Operator, Role},
};

use self::{
    lease::account_index,
    providers::{provider_queue, supply},
};
use crate::{
    api_writes::Events,
    cache::{self, Source},
    leader, payment_networks,
    payments::{self, Rails},
    queue::{PASSES_AT_ONCE, Queue},
    settings::MarketArgs,
};

/// Field manager of everything this role writes.
pub(crate) const MANAGER: &str = "leasehold-market";

/// What every pass of this role can reach.
pub(crate) struct Market {
    client: Client,
    /// Namespace and ServiceAccount it runs as.
    account: String,
    clock: SystemClock,
    rails: Rails,
    closer: SigningKey,
    closer_address: Address,
    leases: Store<GpuLease>,
    allocations: Store<GpuAllocation>,
    networks: Store<PaymentNetwork>,
    supply: supply::Supply,
    line: Arc<provider_queue::Line>,
    index: account_index::AccountIndex,
    events: Events,
    metrics: Operator,
}

/// Runs until a signal.
pub async fn run(args: MarketArgs, telemetry: &leasehold_telemetry::Settings) -> anyhow::Result<ExitCode> {
    let closer = payments::key_file(&args.closer_key_file)?;
    let closer_address = leasehold_chain::address_of(&closer).context("the closer's key")?;
    let mut metrics = Metrics::new();
    let operator = Operator::register(&mut metrics, Role::Market);
    let health = Health::new();
    let caches = health.latch("caches");
    let shutdown = leasehold_telemetry::shutdown::on_signals()?;
    let admin = leasehold_telemetry::admin::serve(
        telemetry.admin_address,
        Arc::new(metrics),
        health.clone(),
        shutdown.clone(),
    )
    .await?;

    let client = cache::client(args.common.kubeconfig.as_deref()).await?;
    let (wake_lease, wake_allocation) = (Queue::<GpuLease>::default(), Queue::<GpuAllocation>::default());
    let source = Source::new(&client);
    let leases = {
        let wake = wake_lease.clone();
        source.watch(trim_lease, move |lease: &GpuLease| wake.touched(lease))
    };
    let line = Arc::new(provider_queue::Line::new(wake_lease.clone()));
    let allocations = {
        let (wake, wake_allocation, line) = (wake_lease.clone(), wake_allocation.clone(), line.clone());
        source.watch(trim_allocation, move |a: &GpuAllocation| {
            wake.up(&a.spec.lease.name, Some(&a.spec.lease.namespace));
            wake_allocation.touched(a);
            line.touched(a, SystemClock.now());
        })
    };
    let changed = supply::Changed::default();
    let offers = {
        let changed = changed.clone();
        source.watch(cache::whole, move |_: &GpuOffer| changed.notify())
    };
    let providers = {
        let changed = changed.clone();
        source.watch(cache::whole, move |_: &GpuProvider| changed.notify())
    };
    let liveness = source
        .labelled(leasehold_crds::LABEL_PROVIDER)
        .watch(cache::whole, |_: &Liveness| {});
    let networks = {
        let (wake, leases) = (wake_lease.clone(), leases.clone());
        source.watch(cache::whole, move |_: &PaymentNetwork| {
            wake_pending(&leases, &wake, |_| true);
        })
    };
    let ready = async {
        tokio::try_join!(
            leases.wait_until_ready(),
            allocations.wait_until_ready(),
            offers.wait_until_ready(),
            providers.wait_until_ready(),
            liveness.wait_until_ready(),
            networks.wait_until_ready(),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
        ready = ready => { ready.context("a watch ended")?; }
    }
    caches.set();

    let common = &args.common;
    let rails = Rails::new(
        client.clone(),
        &common.namespace,
        Duration::from_secs(common.chain_deadline),
        Duration::from_secs(common.mine_deadline),
        operator.chain.clone(),
    );
    let Some(mut leadership) = leader::wait("leasehold-market", common, &shutdown).await? else {
        admin.stop().await;
        return Ok(ExitCode::SUCCESS);
    };
    operator.leader.set(true);

    let supply = supply::Supply::new(offers, providers, liveness);
    let market = Arc::new(Market {
        events: Events::new(client.clone(), MANAGER, &common.identity),
        client: client.clone(),
        account: format!("{}:{}", common.namespace, common.service_account),
        clock: SystemClock,
        rails,
        closer,
        closer_address,
        leases,
        allocations,
        networks,
        supply,
        line,
        index: account_index::AccountIndex::default(),
        metrics: operator.clone(),
    });
    let loops = tokio::task::JoinSet::new();
    let mut loops = loops;
    loops.spawn(supply::run(
        market.clone(),
        changed,
        wake_lease.clone(),
        health.heartbeat("supply", Duration::from_secs(60)),
    ));
    loops.spawn(payment_networks::run(
        payment_networks::Look {
            client: client.clone(),
            networks: market.networks.clone(),
            rails: market.rails.clone(),
            manager: MANAGER,
            market: true,
        },
        health.heartbeat("networks", Duration::from_secs(120)),
    ));
    loops.spawn(orphans::run(
        market.clone(),
        health.heartbeat("sweep", Duration::from_secs(300)),
    ));
    let passes = &operator.reconcile;
    let lease_loop = wake_lease.run(
        &market.leases,
        PASSES_AT_ONCE,
        (Controller::Lease, passes),
        &shutdown,
        |lease| lease::reconcile(lease, market.clone()),
    );
    let allocation_loop = wake_allocation.run(
        &market.allocations,
        8,
        (Controller::Allocation, passes),
        &shutdown,
        |allocation| allocation::reconcile(allocation, market.clone()),
    );
    let lost = tokio::select! {
        _ = futures::future::join(lease_loop, allocation_loop) => Ok(()),
        lost = leadership.lost() => lost,
        Some(ended) = loops.join_next() => Err(anyhow::anyhow!("a loop ended: {ended:?}")),
    };
    health.end();
    loops.shutdown().await;
    leadership.release().await;
    admin.stop().await;
    lost.map(|()| ExitCode::SUCCESS)
}

/// Wakes the leases that are not matched for such a reason. One that nobody has looked at yet is the controller's.
fn wake_pending(leases: &Store<GpuLease>, wake: &Queue<GpuLease>, concerns: impl Fn(&str) -> bool) {
    for lease in leases.state() {
        let pending = lease.status.as_ref().filter(|s| s.phase == Phase::Pending);
        let matched = pending.and_then(|s| find(&s.conditions, "Matched"));
        if matched.is_some_and(|c| concerns(&c.reason)) {
            wake.up(&lease.name_any(), lease.namespace().as_deref());
        }
    }
}

impl Market {
    fn now(&self) -> jiff::Timestamp {
        self.clock.now()
    }
}
