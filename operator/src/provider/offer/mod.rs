//! Publishes what this provider sells at the market: its GpuOffer, its liveness Lease, and its GpuProvider.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease as Liveness, LeaseSpec},
        core::v1::{Node, NodeSystemInfo},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
};
use leasehold_crds::{
    GpuOffer, GpuPool, GpuProvider, GpuReservation, LABEL_PROVIDER,
    market::offer::{GpuOfferSpec, PaymentIdentity},
    provider::pool::GpuPoolStatus,
};
use leasehold_planner::{
    payment_network,
    placement::Currency,
    provider::{
        offer::{
            cluster::{gpus_seen, holds, pool_runtime},
            node_seen::node_seen,
            pool_status::{newly_not_sold, pool_status},
            resumption::{Room, room_to_resume},
            rows::within_bound,
            summary::summary,
            supply::{NodeSeen, PoolRuntime, PoolSupply, pool_supply},
        },
        user_namespaces,
    },
    request::Shape,
};
use leasehold_runtime::{Error, Process, api_writes, cache};
use leasehold_telemetry::Heartbeat;
use serde_json::json;

use super::{MANAGER, Provider, workload::pods::PodSeen};
use crate::payments;

/// Hours of sale and agents that stop reporting have no event: the offer is computed at least this often.
const REFRESH: Duration = Duration::from_secs(5);
/// The market considers the provider silent after a minute.
const RENEW_SECONDS: i64 = 10;
/// The offer is written again this often without a change: it may have been deleted at the market, with its CRD.
const REPEAT_SECONDS: i64 = 30;

/// Drops the fields of a Node that nothing here reads.
pub(crate) fn trim_node(node: &mut Node) {
    cache::without_annotations(node);
    if let Some(status) = &mut node.status {
        status.images = None;
        status.capacity = None;
        if let Some(info) = &mut status.node_info {
            *info = NodeSystemInfo {
                boot_id: std::mem::take(&mut info.boot_id),
                kubelet_version: std::mem::take(&mut info.kubelet_version),
                container_runtime_version: std::mem::take(&mut info.container_runtime_version),
                kernel_version: std::mem::take(&mut info.kernel_version),
                ..NodeSystemInfo::default()
            };
        }
        let conditions = status.conditions.iter_mut();
        conditions.for_each(|all| all.retain(|c| c.type_ == "Ready"));
    }
}

/// Supply of each pool, by name.
pub(crate) type Supplies = BTreeMap<String, PoolSupply>;

/// Adds the loop that publishes the offer.
pub(crate) fn register(process: &mut Process, provider: &Arc<Provider>) {
    let provider = provider.clone();
    process.add_loop("offer", Duration::from_secs(120), |heartbeat| {
        run(provider, heartbeat)
    });
}

/// Publishes the offer until the process ends.
async fn run(provider: Arc<Provider>, heartbeat: Heartbeat) {
    let mut renewed = Timestamp::UNIX_EPOCH;
    let mut published: Option<(GpuOfferSpec, Timestamp)> = None;
    loop {
        heartbeat.beat();
        let (now, begun) = (provider.now(), Instant::now());
        let supplies = provider.supplies(&provider.caches.reservations.state(), now);
        let spec = provider.offer(&supplies);
        // Pods come and go in bursts: one offer for the burst, and most of the time for something else.
        let pause = Duration::from_millis(200).max(10 * begun.elapsed());
        // First the sign of life: an offer without one counts for nothing.
        if now.as_second() - renewed.as_second() >= RENEW_SECONDS {
            match provider.renew(now).await {
                Ok(()) => renewed = now,
                Err(error) => error.log("Lease", &provider.args.provider_name),
            }
        }
        let changed = published.as_ref().is_none_or(|(before, _)| *before != spec);
        if changed
            || published
                .as_ref()
                .is_some_and(|(_, at)| now.as_second() - at.as_second() >= REPEAT_SECONDS)
        {
            match provider.publish(&spec).await {
                Ok(()) => {
                    if changed {
                        tracing::info!(
                            rows = spec.rows.len(),
                            nodes = spec.rows.iter().map(|r| r.nodes_free).sum::<i64>(),
                            "offers"
                        );
                    }
                    published = Some((spec, now));
                }
                Err(error) => error.log("GpuOffer", &provider.args.provider_name),
            }
        }
        provider.probe(&supplies, now).await;
        provider.report_pools(&supplies, now).await;
        let _ = tokio::time::timeout(REFRESH, provider.changed.notified()).await;
        tokio::time::sleep(pause).await;
    }
}

impl Provider {
    /// What each pool can sell, by these reservations.
    pub(crate) fn supplies(&self, reservations: &[Arc<GpuReservation>], now: Timestamp) -> Supplies {
        let pods = self.caches.pods.all().state();
        let nodes = self.nodes(&pods, now);
        let running = pods.iter().filter(|p| !p.has_ended());
        let placed = running.filter_map(|p| Some((p.meta().namespace.as_deref()?, p.node.as_deref()?)));
        let mut holds = holds(reservations.iter().map(|r| &**r), placed);
        let mut pools = self.pools_with_proofs();
        pools.sort_by_key(|p| p.name_any());
        for pool in pools.iter().filter(|pool| self.owns(pool)) {
            let runtime = self.runtime(pool).unwrap_or_default();
            let bound = pods
                .iter()
                .filter(|p| p.node.is_some())
                .filter_map(|p| p.probe.as_ref());
            holds.extend(user_namespaces::holds(pool, &runtime, bound));
        }
        let mut taken = BTreeSet::new();
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        pools
            .iter()
            .map(|pool| {
                let payment = self.payment(pool).map(|(currency, _)| PaymentIdentity {
                    chain_id: i64::try_from(currency.chain_id).unwrap_or(i64::MAX),
                    escrow: currency.escrow.to_string(),
                    token: currency.token.to_string(),
                });
                let runtime = self.runtime(pool);
                let terms = (runtime.as_ref(), payment.as_ref());
                let mut supply = pool_supply(pool, terms, &nodes, &holds, &mut taken, now);
                if let Some(words) = refusals.pause(&pool.name_any(), now) {
                    supply.pause(words);
                }
                (pool.name_any(), supply)
            })
            .collect()
    }

    /// Room for the pods of a reservation after a pause, beside what others hold.
    pub(crate) async fn room_to_resume(&self, reservation: &GpuReservation) -> Result<Room, Error> {
        let others = self.reserved().await?;
        let pods = self.caches.pods.all().state();
        let nodes = self.nodes(&pods, self.now());
        let running = pods.iter().filter(|p| !p.has_ended());
        let placed: Vec<_> = running
            .filter_map(|p| Some((p.meta().namespace.as_deref()?, p.node.as_deref()?)))
            .collect();
        let name = reservation.name_any();
        let own = placed.iter().filter(|(namespace, _)| *namespace == name);
        let own = own.map(|(_, node)| *node).collect();
        let holds = holds(others.iter().map(|r| &**r), placed.iter().copied());
        Ok(room_to_resume(reservation, &nodes, &holds, &own))
    }

    /// How the pods of a pool run. `None` if its RuntimeClass does not exist.
    fn runtime(&self, pool: &GpuPool) -> Option<PoolRuntime> {
        match &pool.spec.runtime_class_name {
            None => Some(PoolRuntime::default()),
            Some(name) => {
                cache::get(&self.caches.runtime_classes, name, None).map(|class| pool_runtime(&class))
            }
        }
    }

    /// Chain, contract, token, and the token's decimals, by this provider's own PaymentNetwork; none if that does not agree
    /// with its chain, or is too slow for the pool.
    pub(crate) fn payment(&self, pool: &GpuPool) -> Option<(Currency, u32)> {
        let network = cache::get(&self.caches.networks, &pool.spec.network, None)
            .filter(|network| payment_network::unusable(Some(network), pool).is_none())?;
        Some((
            payments::currency(&network.spec)?,
            u32::try_from(network.spec.token.decimals).ok()?,
        ))
    }

    fn nodes(&self, pods: &[Arc<PodSeen>], now: Timestamp) -> Vec<NodeSeen> {
        let mut requested: BTreeMap<&str, Vec<Shape>> = BTreeMap::new();
        for pod in pods.iter().filter(|p| !p.has_ended()) {
            if let Some(node) = pod.node.as_deref() {
                requested.entry(node).or_default().push(pod.requests);
            }
        }
        let heard = self.agents_heard(now);
        let mut nodes: Vec<_> = self.caches.nodes.state();
        nodes.sort_by_key(|n| n.name_any());
        nodes
            .iter()
            .map(|node| {
                let name = node.name_any();
                let gpus = cache::get(&self.caches.gpu_nodes, &name, None)
                    .map(|g| gpus_seen(&g, node.labels(), heard.contains(&name)));
                let requested = requested.get(name.as_str()).into_iter().flatten().copied();
                node_seen(node, requested, gpus)
            })
            .collect()
    }

    fn offer(&self, supplies: &Supplies) -> GpuOfferSpec {
        let own = |name: &str| cache::get(&self.caches.pools, name, None).is_some_and(|p| self.owns(&p));
        let rows: Vec<_> = supplies
            .iter()
            .filter(|(name, _)| own(name))
            .flat_map(|(_, s)| s.rows.clone())
            .collect();
        let rows = within_bound(rows);
        GpuOfferSpec {
            region: self.args.region.clone(),
            summary: summary(&rows),
            rows,
        }
    }

    async fn publish(&self, spec: &GpuOfferSpec) -> Result<(), Error> {
        let name = &self.args.provider_name;
        let api = Api::<GpuOffer>::namespaced(self.market.clone(), &self.namespace_at_market);
        let mut offer = GpuOffer::new(name, spec.clone());
        offer.metadata = api_writes::meta(name, Some(&self.namespace_at_market), &[(LABEL_PROVIDER, name)]);
        api_writes::apply(&api, &offer, MANAGER).await.map(|_| ())
    }

    async fn renew(&self, now: Timestamp) -> Result<(), Error> {
        let name = &self.args.provider_name;
        let api = Api::<Liveness>::namespaced(self.market.clone(), &self.namespace_at_market);
        let liveness = Liveness {
            metadata: api_writes::meta(name, Some(&self.namespace_at_market), &[(LABEL_PROVIDER, name)]),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.args.common.process.identity.clone()),
                lease_duration_seconds: Some(60),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        };
        api_writes::apply(&api, &liveness, MANAGER).await?;
        let patch = json!({
            "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuProvider", "metadata": {"name": name},
            "spec": {"payee": self.identity.payee.to_string(), "controller": self.identity.controller.to_string(), "region": self.args.region},
        });
        Api::<GpuProvider>::all(self.market.clone())
            .patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch))
            .await
            .map(|_| ())
            .map_err(Error::kube("write our GpuProvider (the market's owner makes it)"))
    }

    /// Publishes an Event about the GpuNode of each node that is newly not sold.
    async fn publish_not_sold(&self, before: Option<&GpuPoolStatus>, now: &GpuPoolStatus) {
        for out in newly_not_sold(before, now) {
            if let Some(node) = cache::get(&self.caches.gpu_nodes, &out.node, None) {
                let note = format!("not sold: {}", out.message);
                self.events.publish(node.as_ref(), true, &out.reason, note).await;
            }
        }
    }

    async fn report_pools(&self, supplies: &Supplies, now: Timestamp) {
        let api = Api::<GpuPool>::all(self.client.clone());
        for pool in self.caches.pools.state().iter().filter(|p| self.owns(p)) {
            let Some(supply) = supplies.get(&pool.name_any()) else {
                continue;
            };
            let network = cache::get(&self.caches.networks, &pool.spec.network, None);
            let unusable = payment_network::unusable(network.as_deref(), pool);
            let status = pool_status(&self.with_decided_proofs(pool), supply, unusable, now);
            if pool.status.as_ref() == Some(&status) {
                continue;
            }
            match api_writes::apply_status(&api, pool.as_ref(), MANAGER, &status).await {
                Ok(_) => self.publish_not_sold(pool.status.as_ref(), &status).await,
                Err(error) => error.log("GpuPool", &pool.name_any()),
            }
        }
    }
}
