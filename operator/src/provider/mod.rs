//! The provider role: GPUs offered, shares reserved, paid work run and stopped by the one stop rule.

mod allocation;
mod digest;
mod offer;
mod orphans;
mod reservation;
mod workload;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use k8s_openapi::api::{
    coordination::v1::Lease as Liveness,
    core::v1::{Node, Service},
};
use kube::{Client, ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{
    GpuNode, GpuPool, GpuReservation, LABEL_PROVIDER, PROVIDER_NAMESPACE_PREFIX, PaymentNetwork,
};
use leasehold_planner::{
    ports::{Clock, SigningKey, SystemClock},
    provider::{allocation::accept::Identity, health::Answers},
};
use leasehold_telemetry::{
    Health, Metrics,
    metrics::{Controller, Operator, Role},
};

use self::{
    allocation::{accept, capacity, seen::AllocationSeen},
    reservation::{applied, block_watcher},
    workload::{egress_denylist, namespaces::NamespaceSeen, pods::PodSeen},
};
use crate::{
    api_writes::Events,
    cache::{self, ByNamespace, Reach, Source},
    leader, payment_networks,
    payments::{self, Rails},
    queue::{PASSES_AT_ONCE, Queue},
    settings::ProviderArgs,
};

/// Field manager of everything this role writes.
pub(crate) const MANAGER: &str = "leasehold-provider";

/// What every pass of this role can reach.
pub(crate) struct Provider {
    client: Client,
    market: Client,
    market_reach: Reach,
    namespace_at_market: String,
    args: ProviderArgs,
    identity: Identity,
    key: SigningKey,
    clock: SystemClock,
    rails: Rails,
    caches: Caches,
    events: Events,
    metrics: Operator,
    /// Room is given away one question at a time.
    reserving: tokio::sync::Mutex<capacity::Room>,
    made: Arc<capacity::Made>,
    applied: applied::Applied,
    /// Where no pod of a lease may go, and when that was counted.
    forbidden: Mutex<Option<(Instant, Arc<egress_denylist::Forbidden>)>>,
    changed: Arc<tokio::sync::Notify>,
    /// Since when our own API server has answered whoever asked it about a silent node.
    answers: Mutex<Answers>,
}

/// Stores of everything that is watched.
pub(crate) struct Caches {
    pools: Store<GpuPool>,
    gpu_nodes: Store<GpuNode>,
    nodes: Store<Node>,
    pods: ByNamespace<PodSeen>,
    namespaces: Store<NamespaceSeen>,
    services: ByNamespace<Service>,
    agents: Store<Liveness>,
    reservations: Store<GpuReservation>,
    networks: Store<PaymentNetwork>,
    allocations: Store<AllocationSeen>,
}

/// Label that the agents' liveness leases carry.
const AGENT_LABEL: &str = "app.kubernetes.io/managed-by=leasehold-agent";

/// Runs until a signal.
#[expect(
    clippy::too_many_lines,
    reason = "start-up in one fixed order, read from top to bottom"
)]
pub async fn run(args: ProviderArgs, telemetry: &leasehold_telemetry::Settings) -> anyhow::Result<ExitCode> {
    let key = payments::key_file(&args.controller_key_file)?;
    let controller = leasehold_chain::address_of(&key).context("the controller's key")?;
    let identity = Identity {
        market: args.market_name.clone(),
        payee: args.payee,
        controller,
    };
    let mut metrics = Metrics::new();
    let operator = Operator::register(&mut metrics, Role::Provider);
    let health = Health::new();
    let caches_latch = health.latch("caches");
    let shutdown = leasehold_telemetry::shutdown::on_signals()?;
    let admin = leasehold_telemetry::admin::serve(
        telemetry.admin_address,
        Arc::new(metrics),
        health.clone(),
        shutdown.clone(),
    )
    .await?;

    let client = cache::client(args.common.kubeconfig.as_deref()).await?;
    let market = match &args.market_kubeconfig {
        Some(path) => cache::client(Some(path)).await.context("the market's cluster")?,
        None => client.clone(),
    };
    let namespace_at_market = format!("{PROVIDER_NAMESPACE_PREFIX}{}", args.provider_name);

    let (wake_reservation, wake_allocation) = (
        Queue::<GpuReservation>::default(),
        Queue::<AllocationSeen>::default(),
    );
    let made = Arc::new(capacity::Made::default());
    let changed = Arc::new(tokio::sync::Notify::new());
    let notify = || {
        let changed = changed.clone();
        move || changed.notify_one()
    };
    let (own, at_market) = (Source::new(&client), Source::new(&market));
    let mine = own.labelled(&format!("{LABEL_PROVIDER}={}", args.provider_name));
    let caches = Caches {
        pools: {
            let n = notify();
            own.watch(cache::whole, move |_: &GpuPool| n())
        },
        gpu_nodes: {
            let (n, wake) = (notify(), wake_reservation.clone());
            own.watch(cache::whole, move |node: &GpuNode| {
                n();
                let holders = node.status.iter().flat_map(|s| &s.holders);
                for holder in holders.filter(|h| h.namespace.starts_with("lease-")) {
                    wake.up(&holder.namespace, None);
                }
            })
        },
        nodes: {
            let n = notify();
            own.watch(offer::trim_node, move |_: &Node| n())
        },
        pods: {
            let (n, wake) = (notify(), wake_reservation.clone());
            own.watch_by_namespace(cache::whole, move |pod: &PodSeen| {
                n();
                if let Some(namespace) = pod.namespace().filter(|ns| ns.starts_with("lease-")) {
                    wake.up(&namespace, None);
                }
            })
        },
        namespaces: {
            let wake = wake_reservation.clone();
            mine.watch(cache::whole, move |ns: &NamespaceSeen| {
                wake.up(&ns.name_any(), None)
            })
        },
        services: {
            let wake = wake_reservation.clone();
            mine.watch_by_namespace(cache::whole, move |service: &Service| {
                wake.up(&service.namespace().unwrap_or_default(), None);
            })
        },
        agents: own.labelled(AGENT_LABEL).watch(cache::whole, |_: &Liveness| {}),
        reservations: {
            let (n, wake, namespace) = (notify(), wake_allocation.clone(), namespace_at_market.clone());
            let (own_wake, made) = (wake_reservation.clone(), made.clone());
            own.watch(cache::without_marks, move |r: &GpuReservation| {
                n();
                made.told(&r.name_any());
                own_wake.touched(r);
                if r.spec.allocation_namespace == namespace {
                    wake.up(&r.spec.allocation_name, Some(&namespace));
                }
            })
        },
        networks: {
            let n = notify();
            own.watch(cache::whole, move |_: &PaymentNetwork| n())
        },
        allocations: {
            let (wake, own_wake) = (wake_reservation.clone(), wake_allocation.clone());
            at_market.watch_in(&namespace_at_market, cache::whole, move |a: &AllocationSeen| {
                wake.up(&a.name_any(), None);
                own_wake.touched(a);
            })
        },
    };
    let ready = async {
        tokio::try_join!(
            caches.pools.wait_until_ready(),
            caches.gpu_nodes.wait_until_ready(),
            caches.nodes.wait_until_ready(),
            caches.pods.all().wait_until_ready(),
            caches.namespaces.wait_until_ready(),
            caches.services.all().wait_until_ready(),
            caches.agents.wait_until_ready(),
            caches.reservations.wait_until_ready(),
            caches.networks.wait_until_ready(),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
        ready = ready => { ready.context("a watch ended")?; }
    }
    caches_latch.set();

    let common = &args.common;
    let rails = Rails::new(
        client.clone(),
        &common.namespace,
        Duration::from_secs(common.chain_deadline),
        Duration::from_secs(common.mine_deadline),
        operator.chain.clone(),
    );
    let lease_name = format!("leasehold-provider-{}", args.provider_name);
    let Some(mut leadership) = leader::wait(&lease_name, common, &shutdown).await? else {
        admin.stop().await;
        return Ok(ExitCode::SUCCESS);
    };
    operator.leader.set(true);

    let provider = Arc::new(Provider {
        events: Events::new(client.clone(), MANAGER, &common.identity),
        client: client.clone(),
        market: market.clone(),
        market_reach: at_market.reach(),
        namespace_at_market: namespace_at_market.clone(),
        identity,
        key,
        clock: SystemClock,
        rails,
        caches,
        metrics: operator.clone(),
        reserving: tokio::sync::Mutex::default(),
        made,
        applied: applied::Applied::default(),
        forbidden: Mutex::default(),
        changed,
        answers: Mutex::default(),
        args: args.clone(),
    });
    let mut loops = tokio::task::JoinSet::new();
    loops.spawn(offer::run(
        provider.clone(),
        health.heartbeat("offer", Duration::from_secs(120)),
    ));
    loops.spawn(block_watcher::run(
        provider.clone(),
        wake_reservation.clone(),
        health.heartbeat("blocks", Duration::from_secs(120)),
    ));
    if args.market_kubeconfig.is_some() {
        loops.spawn(payment_networks::run(
            payment_networks::Look {
                client: client.clone(),
                networks: provider.caches.networks.clone(),
                rails: provider.rails.clone(),
                manager: MANAGER,
                market: false,
            },
            health.heartbeat("networks", Duration::from_secs(120)),
        ));
    }
    loops.spawn(orphans::run(
        provider.clone(),
        health.heartbeat("sweep", Duration::from_secs(180)),
    ));
    let passes = &operator.reconcile;
    let intake_loop = wake_allocation.run(
        &provider.caches.allocations,
        64,
        (Controller::Allocation, passes),
        &shutdown,
        |allocation| accept::reconcile(allocation, provider.clone()),
    );
    let reservation_loop = wake_reservation.run(
        &provider.caches.reservations,
        PASSES_AT_ONCE,
        (Controller::Reservation, passes),
        &shutdown,
        |reservation| reservation::reconcile(reservation, provider.clone()),
    );
    let lost = tokio::select! {
        _ = futures::future::join(intake_loop, reservation_loop) => Ok(()),
        lost = leadership.lost() => lost,
        Some(ended) = loops.join_next() => Err(anyhow::anyhow!("a loop ended: {ended:?}")),
    };
    health.end();
    loops.shutdown().await;
    leadership.release().await;
    admin.stop().await;
    lost.map(|()| ExitCode::SUCCESS)
}

impl Provider {
    fn now(&self) -> jiff::Timestamp {
        self.clock.now()
    }

    /// Whether a pool is this provider's to sell.
    fn owns(&self, pool: &GpuPool) -> bool {
        pool.spec
            .provider
            .as_ref()
            .is_none_or(|p| *p == self.args.provider_name)
    }

    /// Whether a reservation is this provider's.
    fn holds(&self, reservation: &GpuReservation) -> bool {
        reservation.spec.allocation_namespace == self.namespace_at_market
    }
}
