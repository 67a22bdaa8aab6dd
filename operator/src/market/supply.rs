//! Providers and the rows of their offers, parsed once for all leases.

use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease as Liveness;
use kube::{Api, ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{
    GpuLease, GpuOffer, GpuProvider, PROVIDER_NAMESPACE_PREFIX,
    conditions::{Truth, condition, set},
};
use leasehold_planner::{
    health::speaks,
    lease::QUEUED,
    placement::{Candidate, Provider},
};
use leasehold_telemetry::Heartbeat;

use super::{MANAGER, Market, line::Line, wake_pending};
use crate::{
    cache::{self, Wake},
    objects,
};

/// Silence has no event of its own: the snapshot is made anew at least so often.
const REFRESH: std::time::Duration = std::time::Duration::from_secs(5);

/// Tells that an offer or a provider changed.
#[derive(Clone, Default)]
pub(super) struct Changed(Arc<tokio::sync::Notify>);

impl Changed {
    pub(super) fn notify(&self) {
        self.0.notify_one();
    }
}

/// One reading of all offers.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) providers: Arc<[Provider]>,
    pub(super) candidates: Arc<[Candidate]>,
}

/// The offers, and their newest snapshot.
pub(super) struct Supply {
    offers: Store<GpuOffer>,
    providers: Store<GpuProvider>,
    liveness: Store<Liveness>,
    snapshot: RwLock<Snapshot>,
}

impl Supply {
    pub(super) fn new(
        offers: Store<GpuOffer>,
        providers: Store<GpuProvider>,
        liveness: Store<Liveness>,
    ) -> Self {
        let empty = Snapshot {
            providers: Arc::new([]),
            candidates: Arc::new([]),
        };
        Self {
            offers,
            providers,
            liveness,
            snapshot: RwLock::new(empty),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn refresh(&self, line: &Line, now: Timestamp) {
        let mut providers = Vec::new();
        let mut candidates = Vec::new();
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
            let alive = speaks(liveness.and_then(|l| cache::renewed_at(&l)), now);
            let index = providers.len();
            providers.push(Provider {
                name: name.clone(),
                region: object.spec.region.clone(),
                payee,
                controller,
                alive,
                answers: line.is_asked(&name, now),
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
        let next = Snapshot {
            providers: providers.into(),
            candidates: candidates.into(),
        };
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

/// Keeps the snapshot fresh, wakes pending leases when it changed, tells providers how the market sees them.
pub(super) async fn run(market: Arc<Market>, changed: Changed, wake: Wake<GpuLease>, heartbeat: Heartbeat) {
    loop {
        heartbeat.beat();
        let before = market.supply.snapshot();
        market.supply.refresh(&market.line, market.now());
        market.line.tick();
        let after = market.supply.snapshot();
        let others = before.providers != after.providers;
        if before.candidates != after.candidates || others {
            // Who stands in line for a provider looks further when that one isn't asked any more.
            wake_pending(&market.leases, &wake, |reason| {
                reason == "NoOffer" || others && reason == QUEUED
            });
            report(&market, &after).await;
        }
        let _ = tokio::time::timeout(REFRESH, changed.0.notified()).await;
    }
}

async fn report(market: &Market, snapshot: &Snapshot) {
    let api = Api::<GpuProvider>::all(market.client.clone());
    for provider in snapshot.providers.iter() {
        let Some(object) = cache::get(&market.supply.providers, &provider.name, None) else {
            continue;
        };
        let generation = object.metadata.generation.unwrap_or_default();
        let rows = snapshot
            .candidates
            .iter()
            .filter(|c| snapshot.providers[c.provider].name == provider.name)
            .count();
        let next = if !provider.alive {
            condition(
                "Ready",
                Truth::False,
                "Silent",
                "not heard of for a minute: its offers are not considered",
                generation,
            )
        } else if !provider.answers {
            condition(
                "Ready",
                Truth::False,
                "NotAnswering",
                "its last questions lapsed unanswered: its offers are not considered for five minutes",
                generation,
            )
        } else if rows == 0 {
            condition(
                "Ready",
                Truth::False,
                "NothingOffered",
                "it is heard of, and offers nothing now",
                generation,
            )
        } else {
            condition("Ready", Truth::True, "Offering", String::new(), generation)
        };
        let mut status = object.status.clone().unwrap_or_default();
        status.observed_generation = generation;
        set(&mut status.conditions, next, market.now());
        if object.status.as_ref() != Some(&status)
            && let Err(error) = objects::apply_status(&api, object.as_ref(), MANAGER, &status).await
        {
            tracing::debug!(provider = provider.name, %error, "the provider's status was not written");
        }
    }
}
