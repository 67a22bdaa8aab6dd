//! A first-in-first-out work queue, as in client-go: an object is queued at most once, and has at most one reconcile at a
//! time. kube's own controller takes queued objects in no particular order: under load an object whose deadline is due can
//! wait for a minute while objects that were queued later are reconciled.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{ResourceExt as _, runtime::reflector::Store};
use leasehold_telemetry::metrics::{Controller, Reconcile};
use tokio::{
    sync::Notify,
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    cache::{self, Watched},
    error::Error,
};

/// Concurrent reconciles of leases, and of reservations. Some of them wait for a block; with few of them, all others
/// would wait for it too. Where the order of calls to the chain matters, each key's own queue keeps it.
pub const CONCURRENT_RECONCILES: usize = 256;

/// Longest delay of a requeue, so that no clock overflows.
const REQUEUE_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Delay after which an object is reconciled again without an event; `None` waits for an event.
pub type RequeueAfter = Option<Duration>;

/// A reconcile that failed.
pub struct ReconcileError {
    error: Error,
    requeue_after: RequeueAfter,
}

impl ReconcileError {
    /// Reconciles again after `requeue_after`, or sooner where the error's class retries sooner.
    pub const fn requeue(error: Error, requeue_after: Duration) -> Self {
        Self {
            error,
            requeue_after: Some(requeue_after),
        }
    }
}

impl From<Error> for ReconcileError {
    fn from(error: Error) -> Self {
        Self {
            error,
            requeue_after: None,
        }
    }
}

/// Queued objects of a kind. Clones share it.
pub struct Queue<K>(Arc<Shared>, PhantomData<fn(&K)>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self(Arc::default(), PhantomData)
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    enqueued: Notify,
}

/// `namespace/name`, or the name alone for a cluster-scoped object.
type Key = Arc<str>;

fn key(name: &str, namespace: Option<&str>) -> Key {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    }
}

/// Objects that are queued, being reconciled, or scheduled to be queued later.
#[derive(Default)]
struct State {
    order: VecDeque<Key>,
    objects: HashMap<Key, Entry>,
    scheduled: BTreeSet<(Instant, Key)>,
}

#[derive(Default)]
struct Entry {
    /// When it was queued, also while its reconcile is still running.
    queued_at: Option<Instant>,
    is_running: bool,
    /// When it is queued without an event.
    scheduled_at: Option<Instant>,
}

impl State {
    /// Appends the object unless it is queued already.
    fn enqueue(&mut self, key: Key, now: Instant) {
        let entry = self.objects.entry(key.clone()).or_default();
        if entry.queued_at.is_none() {
            entry.queued_at = Some(now);
            if !entry.is_running {
                self.order.push_back(key);
            }
        }
    }

    /// The next object and how long it was queued; if there is none, when the next one is scheduled.
    fn next(&mut self, now: Instant) -> Result<(Key, Duration), Option<Instant>> {
        while self.scheduled.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.scheduled.pop_first() {
                if let Some(entry) = self.objects.get_mut(&key) {
                    entry.scheduled_at = None;
                }
                self.enqueue(key, now);
            }
        }
        let Some(key) = self.order.pop_front() else {
            return Err(self.scheduled.first().map(|(at, _)| *at));
        };
        let entry = self.objects.entry(key.clone()).or_default();
        entry.is_running = true;
        let queued_at = entry.queued_at.take().unwrap_or(now);
        if let Some(at) = entry.scheduled_at.take() {
            self.scheduled.remove(&(at, key.clone()));
        }
        Ok((key, now.duration_since(queued_at)))
    }

    /// Its reconcile ended.
    fn done(&mut self, key: &Key, scheduled_at: Option<Instant>) {
        let Some(entry) = self.objects.get_mut(key) else {
            return;
        };
        entry.is_running = false;
        entry.scheduled_at = scheduled_at;
        self.scheduled.extend(scheduled_at.map(|at| (at, key.clone())));
        if entry.queued_at.is_some() {
            self.order.push_back(key.clone());
        } else if scheduled_at.is_none() {
            self.objects.remove(key);
        }
    }
}

impl<K> Queue<K> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an object by its name.
    pub fn enqueue_name(&self, name: &str, namespace: Option<&str>) {
        self.state().enqueue(key(name, namespace), Instant::now());
        self.0.enqueued.notify_one();
    }

    /// Takes all objects that are queued now, as if each had been reconciled: for tests of what enqueues.
    pub fn drain(&self) -> Vec<String> {
        let mut state = self.state();
        let taken = std::iter::from_fn(|| {
            let (key, _) = state.next(Instant::now()).ok()?;
            state.done(&key, None);
            Some(key.to_string())
        });
        taken.collect()
    }
}

impl<K: Watched> Queue<K> {
    /// Queues an object that changed.
    pub fn enqueue(&self, object: &K) {
        self.enqueue_name(&object.name_any(), object.namespace().as_deref());
    }

    /// Reconciles queued objects, as the store has them at that moment, with at most `concurrency` at once, until
    /// `shutdown`. Running reconciles are then awaited. A panic of a reconcile is resumed here.
    pub async fn run<R>(
        &self,
        store: &Store<K>,
        concurrency: usize,
        (controller, metrics): (Controller, &Reconcile),
        shutdown: &CancellationToken,
        reconcile: impl Fn(Arc<K>) -> R,
    ) where
        R: Future<Output = Result<RequeueAfter, ReconcileError>> + Send + 'static,
    {
        let mut running = JoinSet::new();
        let done = |ended: Result<(Key, RequeueAfter), JoinError>| {
            let (key, requeue_after) = match ended {
                Ok(ended) => ended,
                Err(panicked) => match panicked.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return,
                },
            };
            let scheduled_at = requeue_after.map(|after| Instant::now() + after.min(REQUEUE_AFTER_MAX));
            self.state().done(&key, scheduled_at);
        };
        while !shutdown.is_cancelled() {
            let is_full = running.len() >= concurrency;
            let mut scheduled_at = None;
            if !is_full {
                let next = self.state().next(Instant::now());
                match next {
                    Ok((key, queued_for)) => {
                        metrics.waited(controller, queued_for);
                        let (namespace, name) = key
                            .split_once('/')
                            .map_or((None, &*key), |(ns, name)| (Some(ns), name));
                        match cache::get(store, name, namespace) {
                            Some(object) => {
                                let span =
                                    tracing::info_span!("reconcile", kind = %K::kind(&()), object = %key);
                                let observed =
                                    observed::<K, _>(key, reconcile(object), controller, metrics.clone());
                                running.spawn(observed.instrument(span));
                            }
                            None => self.state().done(&key, None),
                        }
                        continue;
                    }
                    Err(at) => scheduled_at = at,
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(ended) = running.join_next() => done(ended),
                () = self.0.enqueued.notified(), if !is_full => {}
                () = tokio::time::sleep_until(scheduled_at.unwrap_or_else(Instant::now)), if scheduled_at.is_some() => {}
            }
        }
        while let Some(ended) = running.join_next().await {
            done(ended);
        }
    }
}

/// Runs a reconcile, and records its duration and its failure.
async fn observed<K: Watched, R: Future<Output = Result<RequeueAfter, ReconcileError>>>(
    key: Key,
    reconcile: R,
    controller: Controller,
    metrics: Reconcile,
) -> (Key, RequeueAfter) {
    let started = Instant::now();
    let (requeue_after, failed) = match reconcile.await {
        Ok(requeue_after) => (requeue_after, None),
        Err(ReconcileError { error, requeue_after }) => {
            error.log(&K::kind(&()), &key);
            let retry_after = error.retry_after();
            (
                Some(requeue_after.map_or(retry_after, |after| after.min(retry_after))),
                Some(error.class()),
            )
        }
    };
    metrics.observe(controller, started.elapsed(), failed);
    (key, requeue_after)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::{reflector, watcher};
    use leasehold_telemetry::{Metrics, metrics::Role};
    use tokio::sync::mpsc;

    use super::*;

    type Reconciled = mpsc::UnboundedReceiver<(String, Instant)>;

    fn store(names: &[&str]) -> Store<ConfigMap> {
        let (store, mut writer) = reflector::store();
        for name in names {
            let mut object = ConfigMap::default();
            object.metadata.namespace = Some("a".into());
            object.metadata.name = Some((*name).into());
            writer.apply_watcher_event(&watcher::Event::Apply(object));
        }
        store
    }

    /// Runs reconciles of a second each that report their object and time, and are requeued after `requeue_after`.
    fn run(
        queue: &Queue<ConfigMap>,
        store: Store<ConfigMap>,
        concurrency: usize,
        requeue_after: RequeueAfter,
    ) -> (Reconciled, CancellationToken) {
        let (report, reconciled) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let (queue, end) = (queue.clone(), shutdown.clone());
        tokio::spawn(async move {
            let metrics = Reconcile::register(&mut Metrics::new(), Role::Provider);
            let reconcile = |object: Arc<ConfigMap>| {
                let report = report.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = report.send((object.name_any(), Instant::now()));
                    Ok(requeue_after)
                }
            };
            queue
                .run(
                    &store,
                    concurrency,
                    (Controller::Lease, &metrics),
                    &end,
                    reconcile,
                )
                .await;
        });
        (reconciled, shutdown)
    }

    async fn names(reconciled: &mut Reconciled, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < count {
            names.push(reconciled.recv().await.expect("it runs").0);
        }
        names
    }

    #[tokio::test(start_paused = true)]
    async fn every_object_is_reconciled_however_often_others_are_queued() {
        let queue = Queue::default();
        let (mut reconciled, _shutdown) = run(&queue, store(&["1", "2", "3", "4"]), 1, None);
        for name in ["3", "1", "4", "2", "1"] {
            queue.enqueue_name(name, Some("a"));
        }
        let mut order = Vec::new();
        for _ in 0..8 {
            let name = names(&mut reconciled, 1).await.remove(0);
            // An object is queued again as soon as it was reconciled.
            queue.enqueue_name(&name, Some("a"));
            order.push(name);
        }
        assert_eq!(order, ["3", "1", "4", "2", "3", "1", "4", "2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_queued_during_its_reconcile_has_one_more_and_never_two_at_once() {
        let queue = Queue::default();
        let (mut reconciled, _shutdown) = run(&queue, store(&["1"]), 8, None);
        let started = Instant::now();
        queue.enqueue_name("1", Some("a"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        queue.enqueue_name("1", Some("a"));
        queue.enqueue_name("1", Some("a"));
        for second in 1..=2 {
            let (_, at) = reconciled.recv().await.unwrap();
            assert_eq!(at, started + Duration::from_secs(second));
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(reconciled.try_recv().is_err(), "it was not queued again");
        assert!(queue.state().objects.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_scheduled_object_is_reconciled_under_load_and_unscheduled_when_it_was_queued_before() {
        let queue = Queue::default();
        let (mut reconciled, shutdown) = run(&queue, store(&["1", "2"]), 1, Some(Duration::from_secs(10)));
        queue.enqueue_name("1", Some("a"));
        assert_eq!(names(&mut reconciled, 1).await, ["1"]);
        // The other object is queued again whenever it was reconciled.
        queue.enqueue_name("2", Some("a"));
        let mut others = 0;
        while names(&mut reconciled, 1).await == ["2"] {
            queue.enqueue_name("2", Some("a"));
            others += 1;
        }
        // It was scheduled 10 s after its first reconcile, while one of the other was running or about to start.
        assert!((10..=11).contains(&others), "{others}");
        assert_eq!(names(&mut reconciled, 1).await, ["2"]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(queue.state().scheduled.len(), 2, "each is scheduled once");
        // Running reconciles end.
        queue.enqueue_name("1", Some("a"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        shutdown.cancel();
        assert_eq!(names(&mut reconciled, 1).await, ["1"]);
        assert_eq!(reconciled.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn objects_that_do_not_exist_are_skipped() {
        let queue = Queue::default();
        let (mut reconciled, _shutdown) = run(&queue, store(&["1"]), 1, None);
        queue.enqueue_name("gone", Some("a"));
        queue.enqueue_name("1", None);
        queue.enqueue_name("1", Some("a"));
        assert_eq!(names(&mut reconciled, 1).await, ["1"]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(queue.state().objects.is_empty());
    }
}
