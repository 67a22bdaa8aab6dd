//! Providers and the rows of their offers, parsed once for all leases.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{GpuOffer, GpuProvider, LABEL_PROVIDER, PROVIDER_NAMESPACE_PREFIX, lease::Blocker};
use leasehold_planner::{
    market::providers::{liveness::Liveness, ready::provider_status},
    placement::{Candidate, Provider},
};
use leasehold_runtime::{
    Process, api_writes,
    cache::{self, Source},
};
use leasehold_telemetry::Heartbeat;
use tokio::sync::Notify;

use super::provider_queue::ProviderQueue;
use crate::market::{MANAGER, Market, enqueue_pending};

/// A missing renewal has no event: the snapshot is made at least this often.
const REFRESH: Duration = Duration::from_secs(5);

/// One reading of all offers.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) providers: Arc<[Provider]>,
    pub(crate) candidates: Arc<[Candidate]>,
}

/// What a new reading of all offers changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct News {
    providers: bool,
    candidates: bool,
}

/// The offers, and their newest snapshot.
pub(crate) struct Supply {
    offers: Store<GpuOffer>,
    providers: Store<GpuProvider>,
    liveness: Store<Lease>,
    alive: Mutex<Liveness>,
    snapshot: RwLock<Snapshot>,
    /// Notified when an offer or a provider changes.
    changed: Arc<Notify>,
}

impl Supply {
    /// Opens the watches of providers, their offers and their liveness Leases.
    pub(crate) fn watch(source: &Source, process: &mut Process) -> Self {
        let changed = Arc::new(Notify::new());
        let notify = || {
            let changed = changed.clone();
            move || changed.notify_one()
        };
        let (offer_changed, provider_changed) = (notify(), notify());
        let offers = source.watch(cache::keep_all, move |_: &GpuOffer| offer_changed());
        let providers = source.watch(cache::keep_all, move |_: &GpuProvider| provider_changed());
        let liveness = source
            .labelled(LABEL_PROVIDER)
            .watch(cache::keep_all, |_: &Lease| {});
        process.require(&offers);
        process.require(&providers);
        process.require(&liveness);
        Self {
            changed,
            ..Self::new(offers, providers, liveness)
        }
    }

    fn new(offers: Store<GpuOffer>, providers: Store<GpuProvider>, liveness: Store<Lease>) -> Self {
        let empty = Snapshot {
            providers: Arc::new([]),
            candidates: Arc::new([]),
        };
        Self {
            offers,
            providers,
            liveness,
            alive: Mutex::default(),
            snapshot: RwLock::new(empty),
            changed: Arc::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads all offers, and returns what changed.
    fn refresh(&self, queue: &ProviderQueue, now: Timestamp) -> News {
        let mut providers = Vec::new();
        let mut candidates = Vec::new();
        let mut live = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let mut objects = self.providers.state();
        objects.sort_by_key(|p| p.name_any());
        for object in objects {
            let name = object.name_any();
            let (Ok(payee), Ok(controller)) = (object.spec.payee.parse(), object.spec.controller.parse())
            else {
                continue;
            };
            let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{name}");
            let liveness = cache::get(&self.liveness, &name, Some(&namespace));
            let renewed_at = liveness.and_then(|l| cache::renewed_at(&l));
            let alive = live.observe(&name, renewed_at, now);
            let index = providers.len();
            queue.restore(&name, object.status.as_ref());
            providers.push(Provider {
                name: name.clone(),
                region: object.spec.region.clone(),
                payee,
                controller,
                alive,
                answers: queue.is_responsive(&name, now),
                starts: queue.starts(&name, now),
            });
            if let Some(offer) = cache::get(&self.offers, &name, Some(&namespace)) {
                candidates.extend(
                    offer
                        .spec
                        .rows
                        .iter()
                        .take(64)
                        .filter_map(|row| Candidate::from_wire(index, row)),
                );
            }
        }
        live.retain(|name| providers.iter().any(|p| p.name == name));
        drop(live);
        let next = Snapshot {
            providers: providers.into(),
            candidates: candidates.into(),
        };
        let mut snapshot = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        let news = News {
            providers: snapshot.providers != next.providers,
            candidates: snapshot.candidates != next.candidates,
        };
        *snapshot = next;
        news
    }

    /// Reads all offers once, calls `hand_on` if they changed, and writes the status of the providers in any case.
    async fn update(
        &self,
        queue: &ProviderQueue,
        api: &Api<GpuProvider>,
        hand_on: impl FnOnce(News),
        now: Timestamp,
    ) {
        let news = self.refresh(queue, now);
        queue.expire();
        if news.providers || news.candidates {
            hand_on(news);
        }
        self.report(queue, api, now).await;
    }

    /// Writes the status of each provider where it differs, also where the last write failed.
    async fn report(&self, queue: &ProviderQueue, api: &Api<GpuProvider>, now: Timestamp) {
        let snapshot = self.snapshot();
        let mut rows = vec![0; snapshot.providers.len()];
        for candidate in snapshot.candidates.iter() {
            rows[candidate.provider] += 1;
        }
        for (provider, rows) in snapshot.providers.iter().zip(rows) {
            let Some(object) = cache::get(&self.providers, &provider.name, None) else {
                continue;
            };
            let status = provider_status(&object, provider, &queue.record(&provider.name), rows, now);
            if object.status.as_ref() != Some(&status)
                && let Err(error) = api_writes::apply_status(api, object.as_ref(), MANAGER, &status).await
            {
                error.log("GpuProvider", &provider.name);
            }
        }
    }
}

/// Adds the loop that reads offers and reports to providers.
pub(crate) fn register(process: &mut Process, market: &Arc<Market>) {
    let market = market.clone();
    process.add_loop("supply", Duration::from_secs(60), |heartbeat| {
        run(market, heartbeat)
    });
}

/// Reads offers, enqueues pending leases when they changed, and writes the status of providers.
async fn run(market: Arc<Market>, heartbeat: Heartbeat) {
    let api = Api::<GpuProvider>::all(market.client.clone());
    loop {
        heartbeat.beat();
        let woken = |news: News| {
            // A lease that is queued at a provider is matched again when that provider receives no more allocations.
            enqueue_pending(&market.leases, &market.queues.leases, |blocker| {
                blocker == Blocker::NoOffer || news.providers && blocker == Blocker::Queued
            });
        };
        market
            .supply
            .update(&market.provider_queue, &api, woken, market.now())
            .await;
        let _ = tokio::time::timeout(REFRESH, market.supply.changed.notified()).await;
    }
}

#[cfg(test)]
mod tests;
