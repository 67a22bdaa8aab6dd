//! The order in which leases ask providers. Each provider has a bounded number of unanswered allocations; further
//! leases are queued at it, oldest first, and enqueued for a reconcile as slots become free. A provider that let
//! allocations time out is skipped for a while.
//!
//! The queue is in memory: after a restart every lease is reconciled and queued again. It only decides which lease asks
//! first, and a slot that is never released expires. What counts against the starts of a provider is kept in its status.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use leasehold_crds::{
    GpuAllocation, GpuLease, PROVIDER_NAMESPACE_PREFIX, market::provider::GpuProviderStatus,
};
use leasehold_planner::market::{
    lease::{OPEN_WITHIN_SECONDS, Plan, UNANSWERED_PER_PROVIDER_MAX},
    providers::responsiveness::{Response, ResponseRecord},
};
use leasehold_runtime::queue::Queue;

/// A slot expires after this long: its allocation has timed out by then.
const SLOT_EXPIRES_AFTER: Duration = Duration::from_secs(OPEN_WITHIN_SECONDS + 30);

/// The queues of all providers.
pub(crate) struct ProviderQueue {
    providers: Mutex<HashMap<String, Provider>>,
    /// Providers whose stored record was read.
    restored: Mutex<HashSet<String>>,
    leases: Queue<GpuLease>,
}

/// Slots of a provider, and the leases that are queued for one.
#[derive(Default)]
struct Provider {
    used: HashMap<Slot, Instant>,
    /// Oldest first: creation time and name.
    queued: BTreeSet<(Timestamp, Name)>,
    responses: ResponseRecord,
}

/// What uses a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Slot {
    /// An unanswered allocation, by its name.
    Allocation(String),
    /// Reserved for a lease that was enqueued because the slot became free.
    Reserved(Name),
}

/// Namespace and name of a lease.
type Name = (String, String);

impl Provider {
    fn expire(&mut self, now: Instant) {
        self.used
            .retain(|_, since| now.duration_since(*since) < SLOT_EXPIRES_AFTER);
    }

    /// Reserves each free slot for the oldest queued lease, and returns these leases.
    fn reserve(&mut self, now: Instant) -> Vec<Name> {
        self.expire(now);
        let free = UNANSWERED_PER_PROVIDER_MAX.saturating_sub(self.used.len());
        let next: Vec<_> = (0..free).map_while(|_| self.queued.pop_first()).collect();
        let next = next.into_iter().map(|(_, name)| name);
        next.inspect(|name| {
            self.used.insert(Slot::Reserved(name.clone()), now);
        })
        .collect()
    }
}

impl ProviderQueue {
    /// Without any provider; leases whose slot became free are added to `leases`.
    pub(crate) fn new(leases: Queue<GpuLease>) -> Self {
        Self {
            providers: Mutex::default(),
            restored: Mutex::default(),
            leases,
        }
    }

    /// Used slots by provider, as `lease` counts them: a slot reserved for it is free.
    pub(crate) fn unanswered(&self, lease: &GpuLease) -> BTreeMap<String, usize> {
        let (now, own) = (Instant::now(), Slot::Reserved(name(lease)));
        let used = |(provider, at): (&String, &mut Provider)| {
            at.expire(now);
            let used = at.used.len() - usize::from(at.used.contains_key(&own));
            (provider.clone(), used)
        };
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        providers.iter_mut().map(used).collect()
    }

    /// Takes the slots of a plan before any of it is written, so that the next reconcile counts them.
    pub(crate) fn begin(&self, lease: &GpuLease, plan: &Plan) {
        self.change(|providers| {
            for at in providers.values_mut() {
                at.used.remove(&Slot::Reserved(name(lease)));
                at.queued.remove(&(created_at(lease), name(lease)));
            }
            if let Some(provider) = &plan.queued_at {
                let at = providers.entry(provider.clone()).or_default();
                at.queued.insert((created_at(lease), name(lease)));
            }
            let before = lease.status.clone().unwrap_or_default();
            for (provider, allocation) in plan.new_allocations(&before) {
                let at = providers.entry(provider.to_owned()).or_default();
                at.used
                    .insert(Slot::Allocation(allocation.to_owned()), Instant::now());
            }
        });
    }

    /// Releases the slots of a plan that was not written.
    pub(crate) fn cancel(&self, lease: &GpuLease, plan: &Plan) {
        self.change(|providers| {
            let before = lease.status.clone().unwrap_or_default();
            for (provider, allocation) in plan.new_allocations(&before) {
                if let Some(at) = providers.get_mut(provider) {
                    at.used.remove(&Slot::Allocation(allocation.to_owned()));
                }
            }
        });
    }

    /// Whether new allocations may be created at a provider.
    pub(crate) fn is_responsive(&self, provider: &str, now: Timestamp) -> bool {
        let providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        let record = providers.get(provider).map(|at| at.responses);
        record.is_none_or(|record| record.is_responsive(now))
    }

    /// Takes over what an earlier process stored of a provider, the first time that it is seen.
    pub(crate) fn restore(&self, provider: &str, stored: Option<&GpuProviderStatus>) {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = restored.insert(provider.to_owned());
        drop(restored);
        if let Some(stored) = stored.filter(|_| is_first) {
            self.change(|providers| {
                let at = providers.entry(provider.to_owned()).or_default();
                at.responses.restore(stored);
            });
        }
    }

    /// The record of a provider.
    pub(crate) fn record(&self, provider: &str) -> ResponseRecord {
        let providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        providers.get(provider).map(|at| at.responses).unwrap_or_default()
    }

    /// Whether a provider starts what it accepts.
    pub(crate) fn starts(&self, provider: &str, now: Timestamp) -> bool {
        let providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        let record = providers.get(provider).map(|at| at.responses);
        record.is_none_or(|record| record.starts(now))
    }

    /// Records what a plan whose status is stored shows of the starts of providers.
    pub(crate) fn record_starts(&self, plan: &Plan, now: Timestamp) {
        if plan.starts.is_empty() {
            return;
        }
        self.change(|providers| {
            for (provider, start) in &plan.starts {
                let at = providers.entry(provider.clone()).or_default();
                at.responses.record_start(*start, now);
            }
        });
    }

    /// Takes or releases the slot of an allocation that was added, changed or deleted.
    pub(crate) fn allocation_changed(&self, allocation: &GpuAllocation, now: Timestamp) {
        let namespace = allocation.namespace().unwrap_or_default();
        let Some(provider) = namespace.strip_prefix(PROVIDER_NAMESPACE_PREFIX) else {
            return;
        };
        let slot = Slot::Allocation(allocation.name_any());
        self.change(|providers| {
            let at = providers.entry(provider.to_owned()).or_default();
            match Response::of(allocation) {
                Response::Awaited => {
                    at.used.entry(slot).or_insert_with(Instant::now);
                }
                // An allocation counts once: only the event that releases its slot is recorded.
                Response::Received if at.used.remove(&slot).is_some() => at.responses.record_response(),
                Response::TimedOut if at.used.remove(&slot).is_some() => at.responses.record_timeout(now),
                Response::Received | Response::TimedOut | Response::NotWanted => {
                    at.used.remove(&slot);
                }
            }
        });
    }

    /// Enqueues leases for slots that expired: an expiry has no event.
    pub(crate) fn expire(&self) {
        self.change(|_| {});
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<String, Provider>)) {
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut providers);
        let now = Instant::now();
        let next: Vec<_> = providers.values_mut().flat_map(|at| at.reserve(now)).collect();
        providers.retain(|_, at| {
            let has_no_record = at.responses == ResponseRecord::default();
            !at.used.is_empty() || !at.queued.is_empty() || !has_no_record
        });
        drop(providers);
        for (namespace, name) in next {
            self.leases.enqueue_name(&name, Some(&namespace));
        }
    }
}

fn name(lease: &GpuLease) -> Name {
    (lease.namespace().unwrap_or_default(), lease.name_any())
}

fn created_at(lease: &GpuLease) -> Timestamp {
    lease.creation_timestamp().map_or(Timestamp::MAX, |at| at.0)
}

#[cfg(test)]
mod tests;
