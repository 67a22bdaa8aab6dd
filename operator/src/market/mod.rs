//! The market role: GpuLeases in, GpuAllocations and escrow accounts out.

mod allocation;
mod lease;
mod orphans;
mod providers;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use kube::{Client, ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{
    GpuAllocation, GpuLease, PaymentNetwork,
    lease::{Blocker, Phase},
};
use leasehold_planner::{
    escrow::{Address, MarketSecret},
    market::{
        lease::{trim_allocation, trim_lease},
        unfunded::Unfunded,
    },
    payment_network::Serves,
    ports::{Clock as _, SigningKey},
    urls::GatewayAddress,
};
use leasehold_runtime::{
    Events, Process, SystemClock,
    cache::{self, Source},
    queue::Queue,
};
use leasehold_telemetry::metrics::{Operator, Role};
use tokio::sync::Notify;

use self::{
    lease::account_index::AccountIndex,
    providers::{provider_queue::ProviderQueue, supply::Supply},
};
use crate::{
    payment_networks,
    payments::{self, PaymentClients},
    settings::MarketArgs,
};

/// Field manager of everything that this role writes.
pub(crate) const MANAGER: &str = "leasehold-market";

/// What the controllers of this role share.
pub(crate) struct Market {
    client: Client,
    /// Namespace and ServiceAccount that the operator runs as.
    account: String,
    clock: SystemClock,
    payments: PaymentClients,
    closer: SigningKey,
    closer_address: Address,
    secret: MarketSecret,
    gateway: Option<GatewayAddress>,
    queues: Queues,
    leases: Store<GpuLease>,
    allocations: Store<GpuAllocation>,
    networks: Store<PaymentNetwork>,
    networks_changed: Arc<Notify>,
    supply: Supply,
    provider_queue: Arc<ProviderQueue>,
    index: AccountIndex,
    unfunded: Mutex<Unfunded>,
    events: Events,
    metrics: Operator,
}

/// Work queue of each kind.
#[derive(Clone, Default)]
struct Queues {
    leases: Queue<GpuLease>,
    allocations: Queue<GpuAllocation>,
}

/// Runs until a signal.
pub async fn run(args: MarketArgs, telemetry: &leasehold_telemetry::Settings) -> anyhow::Result<ExitCode> {
    let closer = payments::key_file(&args.closer_key_file)?;
    let closer_address = leasehold_chain::address_of(&closer).context("the closer's key")?;
    let mut process = Process::start(Role::Market, &args.common.process, telemetry).await?;
    let market = Arc::new(Market::watch(&mut process, &args, (closer, closer_address)));
    providers::supply::register(&mut process, &market);
    payment_networks::register(
        &mut process,
        payment_networks::NetworkChecks {
            client: market.client.clone(),
            networks: market.networks.clone(),
            changed: market.networks_changed.clone(),
            payments: market.payments.clone(),
            manager: MANAGER,
            serves: Serves::Market,
        },
    );
    orphans::register(&mut process, &market);
    lease::register(&mut process, &market);
    allocation::register(&mut process, &market);
    process.run("leasehold-market").await
}

impl Market {
    /// Opens the watches of this role.
    fn watch(
        process: &mut Process,
        args: &MarketArgs,
        (closer, closer_address): (SigningKey, Address),
    ) -> Self {
        let (client, common) = (process.client().clone(), &args.common);
        let queues = Queues::default();
        let source = Source::new(&client);
        let leases = {
            let queue = queues.leases.clone();
            source.watch(trim_lease, move |lease: &GpuLease| queue.enqueue(lease))
        };
        let provider_queue = Arc::new(ProviderQueue::new(queues.leases.clone()));
        let allocations = {
            let (queues, provider_queue) = (queues.clone(), provider_queue.clone());
            source.watch(trim_allocation, move |allocation: &GpuAllocation| {
                let lease = &allocation.spec.lease;
                queues.leases.enqueue_name(&lease.name, Some(&lease.namespace));
                queues.allocations.enqueue(allocation);
                provider_queue.allocation_changed(allocation, SystemClock.now());
            })
        };
        let supply = Supply::watch(&source, process);
        let networks_changed = Arc::new(Notify::new());
        let networks = {
            let (queue, leases, changed) = (queues.leases.clone(), leases.clone(), networks_changed.clone());
            source.watch(cache::keep_all, move |_: &PaymentNetwork| {
                enqueue_pending(&leases, &queue, |_| true);
                changed.notify_one();
            })
        };
        process.require(&leases);
        process.require(&allocations);
        process.require(&networks);
        let secret = MarketSecret::of(&closer);
        Self {
            account: format!("{}:{}", common.process.namespace, common.service_account),
            clock: SystemClock,
            payments: PaymentClients::new(
                client.clone(),
                &common.process.namespace,
                Duration::from_secs(common.chain_deadline),
                Duration::from_secs(common.mine_deadline),
                process.metrics().chain.clone(),
            ),
            unfunded: Mutex::default(),
            index: AccountIndex::new(secret.clone()),
            secret,
            gateway: args.gateway(),
            closer,
            closer_address,
            queues,
            leases,
            allocations,
            networks,
            networks_changed,
            supply,
            provider_queue,
            events: Events::new(client.clone(), MANAGER, &common.process.identity),
            metrics: process.metrics().clone(),
            client,
        }
    }

    fn now(&self) -> jiff::Timestamp {
        self.clock.now()
    }
}

/// Enqueues the leases that are not matched for such a reason. A lease without status is queued by its own watch.
fn enqueue_pending(leases: &Store<GpuLease>, queue: &Queue<GpuLease>, concerns: impl Fn(Blocker) -> bool) {
    for lease in leases.state() {
        let pending = lease.status.as_ref().filter(|s| s.phase == Phase::Pending);
        if pending.and_then(|s| s.blocked_on).is_some_and(&concerns) {
            queue.enqueue_name(&lease.name_any(), lease.namespace().as_deref());
        }
    }
}
