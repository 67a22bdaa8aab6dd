//! Who is asked when. A provider has only so many questions to answer at a time; a lease that finds it busy waits in line
//! and is woken, the oldest first, as places come free. Who lets questions lapse is passed over for a while.
//!
//! All of it is this process's own: after a restart every lease gets a pass, and stands in line anew. It decides nothing but
//! whom to ask first; a place that is never given back comes free by itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::ResourceExt as _;
use leasehold_crds::{GpuAllocation, GpuLease, PROVIDER_NAMESPACE_PREFIX};
use leasehold_planner::market::{
    lease::{OPEN_WITHIN_SECONDS, Plan, UNANSWERED_PER_PROVIDER_MAX},
    providers::responsiveness::{Answer, Answering},
};

use crate::queue::Queue;

/// A place is taken for so long at most: the question it was taken for has lapsed by then.
const TAKEN_FOR: Duration = Duration::from_secs(OPEN_WITHIN_SECONDS + 30);

/// The line of every provider.
pub(crate) struct Line {
    providers: Mutex<HashMap<String, Provider>>,
    wake: Queue<GpuLease>,
}

/// Places of a provider and who waits for one.
#[derive(Default)]
struct Provider {
    taken: HashMap<Place, Instant>,
    /// The oldest first: when it was applied, and which it is.
    waiting: BTreeSet<(Timestamp, Name)>,
    answering: Answering,
}

/// What a place is taken by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// A question, by the allocation's name.
    Question(String),
    /// A lease that was woken to ask one.
    Called(Name),
}

/// Namespace and name of a lease.
type Name = (String, String);

impl Provider {
    fn expire(&mut self, now: Instant) {
        self.taken
            .retain(|_, since| now.duration_since(*since) < TAKEN_FOR);
    }

    /// Those whose turn it is now.
    fn call(&mut self, now: Instant) -> Vec<Name> {
        self.expire(now);
        let free = UNANSWERED_PER_PROVIDER_MAX.saturating_sub(self.taken.len());
        let called: Vec<_> = (0..free).map_while(|_| self.waiting.pop_first()).collect();
        let called = called.into_iter().map(|(_, name)| name);
        called
            .inspect(|name| {
                self.taken.insert(Place::Called(name.clone()), now);
            })
            .collect()
    }
}

impl Line {
    pub(crate) fn new(wake: Queue<GpuLease>) -> Self {
        Self {
            providers: Mutex::default(),
            wake,
        }
    }

    /// Questions that wait for an answer, by provider, as that lease is to see it: a place that is kept for it is free.
    pub(crate) fn unanswered(&self, lease: &GpuLease) -> BTreeMap<String, usize> {
        let (now, own) = (Instant::now(), Place::Called(name(lease)));
        let taken = |(provider, at): (&String, &mut Provider)| {
            at.expire(now);
            let taken = at.taken.len() - usize::from(at.taken.contains_key(&own));
            (provider.clone(), taken)
        };
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        providers.iter_mut().map(taken).collect()
    }

    /// Takes note of what a plan begins, before anything of it is written: the next pass counts it.
    pub(crate) fn begin(&self, lease: &GpuLease, plan: &Plan) {
        self.change(|providers| {
            for at in providers.values_mut() {
                at.taken.remove(&Place::Called(name(lease)));
                at.waiting.remove(&(applied(lease), name(lease)));
            }
            if let Some(provider) = &plan.queued_at {
                let at = providers.entry(provider.clone()).or_default();
                at.waiting.insert((applied(lease), name(lease)));
            }
            let before = lease.status.clone().unwrap_or_default();
            for (provider, allocation) in plan.questions(&before) {
                let at = providers.entry(provider.to_owned()).or_default();
                at.taken
                    .insert(Place::Question(allocation.to_owned()), Instant::now());
            }
        });
    }

    /// What a plan was to begin did not begin.
    pub(crate) fn take_back(&self, lease: &GpuLease, plan: &Plan) {
        self.change(|providers| {
            let before = lease.status.clone().unwrap_or_default();
            for (provider, allocation) in plan.questions(&before) {
                if let Some(at) = providers.get_mut(provider) {
                    at.taken.remove(&Place::Question(allocation.to_owned()));
                }
            }
        });
    }

    /// Whether that provider is to be asked.
    pub(crate) fn is_asked(&self, provider: &str, now: Timestamp) -> bool {
        let providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        let record = providers.get(provider).map(|at| at.answering);
        record.is_none_or(|answering| answering.is_asked(now))
    }

    /// A question came, changed, or went.
    pub(crate) fn touched(&self, allocation: &GpuAllocation, now: Timestamp) {
        let namespace = allocation.namespace().unwrap_or_default();
        let Some(provider) = namespace.strip_prefix(PROVIDER_NAMESPACE_PREFIX) else {
            return;
        };
        let place = Place::Question(allocation.name_any());
        self.change(|providers| {
            let at = providers.entry(provider.to_owned()).or_default();
            match Answer::to(allocation) {
                Answer::Awaited => {
                    at.taken.entry(place).or_insert_with(Instant::now);
                }
                // Each is counted once: its place is given back once.
                Answer::There if at.taken.remove(&place).is_some() => at.answering.answered(),
                Answer::Lapsed if at.taken.remove(&place).is_some() => at.answering.let_lapse(now),
                Answer::There | Answer::Lapsed | Answer::NotWanted => {
                    at.taken.remove(&place);
                }
            }
        });
    }

    /// Wakes whose turn has come though nobody told of it: places that expired.
    pub(crate) fn tick(&self) {
        self.change(|_| {});
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<String, Provider>)) {
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut providers);
        let now = Instant::now();
        let called: Vec<_> = providers.values_mut().flat_map(|at| at.call(now)).collect();
        providers.retain(|_, at| {
            let forgotten = at.answering == Answering::default();
            !at.taken.is_empty() || !at.waiting.is_empty() || !forgotten
        });
        drop(providers);
        for (namespace, name) in called {
            self.wake.up(&name, Some(&namespace));
        }
    }
}

fn name(lease: &GpuLease) -> Name {
    (lease.namespace().unwrap_or_default(), lease.name_any())
}

fn applied(lease: &GpuLease) -> Timestamp {
    lease.creation_timestamp().map_or(Timestamp::MAX, |at| at.0)
}

#[cfg(test)]
mod tests;
