//! The watches of a provider, their caches, and what each event enqueues.

use std::sync::Arc;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Service},
    node::v1::RuntimeClass,
};
use kube::{ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{GpuNode, GpuPool, GpuReservation, LABEL_PROVIDER, PaymentNetwork};
use leasehold_runtime::{
    Process,
    cache::{self, ByNamespace, Source},
    queue::Queue,
};
use tokio::sync::Notify;

use super::{
    allocation::{capacity::AssumedReservations, seen::AllocationSeen},
    offer,
    workload::{namespaces::NamespaceSeen, pods::PodSeen},
};

/// Label of the agents' liveness Leases.
const AGENT_LABEL: &str = "app.kubernetes.io/managed-by=leasehold-agent";
/// Prefix of the namespaces of leases, and so of the names of their reservations.
const LEASE_PREFIX: &str = "lease-";

/// Work queue of each kind.
#[derive(Clone, Default)]
pub(crate) struct Queues {
    pub(crate) reservations: Queue<GpuReservation>,
    pub(crate) allocations: Queue<AllocationSeen>,
}

/// Caches of everything that is watched.
pub(crate) struct Caches {
    pub(crate) pools: Store<GpuPool>,
    pub(crate) gpu_nodes: Store<GpuNode>,
    pub(crate) nodes: Store<Node>,
    pub(crate) pods: ByNamespace<PodSeen>,
    pub(crate) namespaces: Store<NamespaceSeen>,
    pub(crate) services: ByNamespace<Service>,
    pub(crate) agents: Store<Lease>,
    pub(crate) reservations: Store<GpuReservation>,
    pub(crate) networks: Store<PaymentNetwork>,
    /// Notified when a PaymentNetwork has changed.
    pub(crate) networks_changed: Arc<Notify>,
    pub(crate) runtime_classes: Store<RuntimeClass>,
    pub(crate) allocations: Store<AllocationSeen>,
}

impl Caches {
    /// Opens all watches. `changed` is notified of what the offer depends on.
    pub(crate) fn watch(
        process: &mut Process,
        (provider, at_market, namespace_at_market): (&str, &Source, &str),
        queues: &Queues,
        (changed, assumed): (&Arc<Notify>, &Arc<AssumedReservations>),
    ) -> Self {
        let own = Source::new(process.client());
        let labelled = own.labelled(&format!("{LABEL_PROVIDER}={provider}"));
        let notify = || {
            let changed = changed.clone();
            move || changed.notify_one()
        };
        let networks_changed = Arc::new(Notify::new());
        let caches = Self {
            pools: own.watch(cache::keep_all, notify_of::<GpuPool>(changed)),
            gpu_nodes: {
                let (notify, queue) = (notify(), queues.reservations.clone());
                own.watch(cache::keep_all, move |node: &GpuNode| {
                    notify();
                    let holders = node.status.iter().flat_map(|s| &s.holders);
                    for holder in holders.filter(|h| h.namespace.starts_with(LEASE_PREFIX)) {
                        queue.enqueue_name(&holder.namespace, None);
                    }
                })
            },
            nodes: own.watch(offer::trim_node, notify_of::<Node>(changed)),
            pods: {
                let (notify, queue) = (notify(), queues.reservations.clone());
                own.watch_by_namespace(cache::keep_all, move |pod: &PodSeen| {
                    notify();
                    if let Some(namespace) = pod.namespace().filter(|ns| ns.starts_with(LEASE_PREFIX)) {
                        queue.enqueue_name(&namespace, None);
                    }
                })
            },
            namespaces: {
                let queue = queues.reservations.clone();
                labelled.watch(cache::keep_all, move |namespace: &NamespaceSeen| {
                    queue.enqueue_name(&namespace.name_any(), None);
                })
            },
            services: {
                let queue = queues.reservations.clone();
                labelled.watch_by_namespace(cache::keep_all, move |service: &Service| {
                    queue.enqueue_name(&service.namespace().unwrap_or_default(), None);
                })
            },
            agents: own.labelled(AGENT_LABEL).watch(cache::keep_all, |_: &Lease| {}),
            reservations: Self::reservations(&own, namespace_at_market, queues, (notify(), assumed)),
            networks: {
                let (notify, changed) = (notify(), networks_changed.clone());
                own.watch(cache::keep_all, move |_: &PaymentNetwork| {
                    notify();
                    changed.notify_one();
                })
            },
            networks_changed,
            runtime_classes: own.watch(
                cache::without_annotations_and_labels,
                notify_of::<RuntimeClass>(changed),
            ),
            allocations: {
                let queues = queues.clone();
                at_market.watch_in(namespace_at_market, cache::keep_all, move |allocation| {
                    queues
                        .reservations
                        .enqueue_name(&AllocationSeen::name_any(allocation), None);
                    queues.allocations.enqueue(allocation);
                })
            },
        };
        caches.require(process);
        caches
    }

    fn reservations(
        own: &Source,
        namespace_at_market: &str,
        queues: &Queues,
        (notify, assumed): (impl Fn() + Send + 'static, &Arc<AssumedReservations>),
    ) -> Store<GpuReservation> {
        let (queues, assumed) = (queues.clone(), assumed.clone());
        let namespace = namespace_at_market.to_owned();
        own.watch(
            cache::without_annotations_and_labels,
            move |reservation: &GpuReservation| {
                notify();
                assumed.observed(&reservation.name_any());
                queues.reservations.enqueue(reservation);
                let spec = &reservation.spec;
                if spec.allocation_namespace == namespace {
                    queues
                        .allocations
                        .enqueue_name(&spec.allocation_name, Some(&namespace));
                }
            },
        )
    }

    /// The process waits for all of them but the allocations: the market may be in another cluster that cannot be
    /// reached, and paid workloads run on without it.
    fn require(&self, process: &mut Process) {
        process.require(&self.pools);
        process.require(&self.gpu_nodes);
        process.require(&self.nodes);
        process.require(self.pods.all());
        process.require(&self.namespaces);
        process.require(self.services.all());
        process.require(&self.agents);
        process.require(&self.reservations);
        process.require(&self.networks);
        process.require(&self.runtime_classes);
    }
}

/// Notifies of every change of an object of that kind.
fn notify_of<K>(changed: &Arc<Notify>) -> impl Fn(&K) + Send + Sync + 'static {
    let changed = changed.clone();
    move |_| changed.notify_one()
}
