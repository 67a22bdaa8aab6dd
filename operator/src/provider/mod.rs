//! The provider role: offers GPUs, reserves nodes for allocations, and runs and stops paid workloads by one stop rule.

mod allocation;
mod caches;
mod digest;
mod offer;
mod orphans;
mod reservation;
mod user_namespaces;
mod workload;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kube::Client;
use leasehold_crds::{GpuPool, GpuReservation, PROVIDER_NAMESPACE_PREFIX};
use leasehold_planner::{
    payment_network::Serves,
    ports::{Clock as _, SigningKey},
    provider::{
        allocation::accept::Identity,
        health::Answers,
        offer::refusals::Refusals,
        reservation::holds,
        workload::{ConnectorPods, EgressDenylist},
    },
};
use leasehold_runtime::{
    Events, Process, SystemClock,
    cache::{self, Deadlines, Reach, Source},
};
use leasehold_telemetry::metrics::{Operator, Role};
use tokio::sync::Notify;

use self::{
    allocation::capacity::{AssumedReservations, CapacitySnapshot},
    caches::{Caches, Queues},
    reservation::applied::Applied,
    user_namespaces::Probes,
};
use crate::{
    payment_networks,
    payments::{self, PaymentClients},
    settings::ProviderArgs,
};

/// Field manager of everything that this role writes.
pub(crate) const MANAGER: &str = "leasehold-provider";

/// What the controllers of this role share.
pub(crate) struct Provider {
    client: Client,
    market: Client,
    market_reach: Reach,
    namespace_at_market: String,
    args: ProviderArgs,
    identity: Identity,
    key: SigningKey,
    clock: SystemClock,
    payments: PaymentClients,
    caches: Caches,
    queues: Queues,
    events: Events,
    metrics: Operator,
    /// Capacity is reserved for one allocation at a time.
    reserving: tokio::sync::Mutex<CapacitySnapshot>,
    assumed: Arc<AssumedReservations>,
    applied: Applied,
    /// Pods from which leases are reached through a tunnel.
    connector: ConnectorPods,
    /// Addresses that no pod of a lease may reach, and when they were computed.
    denylist: Mutex<Option<(Instant, Arc<EgressDenylist>)>>,
    changed: Arc<Notify>,
    /// Refusals of pods by this cluster, by which pools are paused.
    refusals: Mutex<Refusals>,
    /// What the probes of user namespaces have shown.
    probes: Probes,
    /// Since when this cluster's API server has answered reads about unresponsive nodes.
    answers: Mutex<Answers>,
}

/// Runs until a signal.
pub async fn run(args: ProviderArgs, telemetry: &leasehold_telemetry::Settings) -> anyhow::Result<ExitCode> {
    let key = payments::key_file(&args.controller_key_file)?;
    let identity = Identity {
        market: args.market_name.clone(),
        payee: args.payee,
        controller: leasehold_chain::address_of(&key).context("the controller's key")?,
    };
    let leader_lease = format!("leasehold-provider-{}", args.provider_name);
    let mut process = Process::start(Role::Provider, &args.common.process, telemetry).await?;
    let provider = Arc::new(Provider::watch(&mut process, args, (key, identity)).await?);
    offer::register(&mut process, &provider);
    reservation::block_watcher::register(&mut process, &provider);
    if let Some(networks) = provider.network_checks() {
        payment_networks::register(&mut process, networks);
    }
    orphans::register(&mut process, &provider);
    allocation::accept::register(&mut process, &provider);
    reservation::register(&mut process, &provider);
    process.run(&leader_lease).await
}

impl Provider {
    /// Connects to the market, and opens the watches of this role.
    async fn watch(
        process: &mut Process,
        args: ProviderArgs,
        (key, identity): (SigningKey, Identity),
    ) -> anyhow::Result<Self> {
        let client = process.client().clone();
        let market = match &args.market_kubeconfig {
            Some(path) => cache::client(Some(path), Deadlines::ORDINARY)
                .await
                .context("the market's cluster")?,
            None => client.clone(),
        };
        let namespace_at_market = format!("{PROVIDER_NAMESPACE_PREFIX}{}", args.provider_name);
        let (queues, changed) = (Queues::default(), Arc::new(Notify::new()));
        let assumed = Arc::new(AssumedReservations::default());
        let at_market = Source::new(&market);
        let caches = Caches::watch(
            process,
            (&args.provider_name, &at_market, &namespace_at_market),
            &queues,
            (&changed, &assumed),
        );
        let common = &args.common;
        Ok(Self {
            payments: PaymentClients::new(
                client.clone(),
                &common.process.namespace,
                Duration::from_secs(common.chain_deadline),
                Duration::from_secs(common.mine_deadline),
                process.metrics().chain.clone(),
            ),
            events: Events::new(client.clone(), MANAGER, &common.process.identity),
            client,
            market,
            market_reach: at_market.reach(),
            namespace_at_market,
            identity,
            key,
            clock: SystemClock,
            caches,
            queues,
            metrics: process.metrics().clone(),
            reserving: tokio::sync::Mutex::default(),
            assumed,
            applied: Applied::default(),
            connector: args.connector_pods(),
            denylist: Mutex::default(),
            changed,
            refusals: Mutex::default(),
            probes: Probes::default(),
            answers: Mutex::default(),
            args,
        })
    }

    /// The PaymentNetworks that this role checks: none where the market is in the same cluster and does so.
    fn network_checks(&self) -> Option<payment_networks::NetworkChecks> {
        self.args.market_kubeconfig.as_ref()?;
        Some(payment_networks::NetworkChecks {
            changed: self.caches.networks_changed.clone(),
            client: self.client.clone(),
            networks: self.caches.networks.clone(),
            payments: self.payments.clone(),
            manager: MANAGER,
            serves: Serves::Provider,
        })
    }

    fn now(&self) -> jiff::Timestamp {
        self.clock.now()
    }

    /// Whether a pool is this provider's.
    fn owns(&self, pool: &GpuPool) -> bool {
        pool.spec
            .provider
            .as_ref()
            .is_none_or(|p| *p == self.args.provider_name)
    }

    /// Whether a reservation is this provider's.
    fn holds(&self, reservation: &GpuReservation) -> bool {
        holds(reservation, &self.namespace_at_market)
    }
}
