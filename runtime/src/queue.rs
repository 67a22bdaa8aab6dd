//! Objects to look at, in the order in which they were asked for, as in client-go's work queue: an object waits once,
//! however often it is asked for, and has one pass at a time. kube's own controller takes any of those that wait: under
//! load some of them, with deadlines of their own, wait for a minute while others that came after them go by.

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

/// Passes over leases, and over reservations, under way at once. Some of them wait for a block: were they few, all
/// others would wait for it too. The chain is asked by them one after the other where it matters, by each key's queue.
pub const PASSES_AT_ONCE: usize = 256;

/// A wake-up further ahead is as good as none, and no clock overflows.
const WAKE_AT_MOST: Duration = Duration::from_secs(24 * 3600);

/// In how long an object is to be looked at again though nobody asks for it; never, when `None`.
pub type Again = Option<Duration>;

/// A pass that did not finish.
pub struct Failed {
    error: Error,
    again: Again,
}

impl Failed {
    /// It is to be looked at again in so long, or sooner as the error wants it.
    pub const fn again(error: Error, again: Duration) -> Self {
        Self {
            error,
            again: Some(again),
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, again: None }
    }
}

/// Objects of a kind that wait to be looked at. Clones share it.
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
    asked: Notify,
}

/// Namespace and name, with a slash between, as kubectl writes it; the name alone, where there is no namespace.
type Key = Arc<str>;

fn key(name: &str, namespace: Option<&str>) -> Key {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    }
}

/// Who waits, who is being looked at, and who will wait when.
#[derive(Default)]
struct State {
    order: VecDeque<Key>,
    objects: HashMap<Key, Standing>,
    wakes: BTreeSet<(Instant, Key)>,
}

#[derive(Default)]
struct Standing {
    /// Since when it waits, be it for the pass that is under way to end.
    waits: Option<Instant>,
    has_pass: bool,
    /// When it is asked for if nobody did so before.
    wakes: Option<Instant>,
}

impl State {
    /// Puts it at the end, unless it waits already.
    fn ask(&mut self, key: Key, now: Instant) {
        let standing = self.objects.entry(key.clone()).or_default();
        if standing.waits.is_none() {
            standing.waits = Some(now);
            if !standing.has_pass {
                self.order.push_back(key);
            }
        }
    }

    /// Whose turn it is, and for how long it waited; else when the next one will be asked for.
    fn next(&mut self, now: Instant) -> Result<(Key, Duration), Option<Instant>> {
        while self.wakes.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.wakes.pop_first() {
                if let Some(standing) = self.objects.get_mut(&key) {
                    standing.wakes = None;
                }
                self.ask(key, now);
            }
        }
        let Some(key) = self.order.pop_front() else {
            return Err(self.wakes.first().map(|(at, _)| *at));
        };
        let standing = self.objects.entry(key.clone()).or_default();
        standing.has_pass = true;
        let since = standing.waits.take().unwrap_or(now);
        if let Some(at) = standing.wakes.take() {
            self.wakes.remove(&(at, key.clone()));
        }
        Ok((key, now.duration_since(since)))
    }

    /// Its pass is over.
    fn done(&mut self, key: &Key, wakes: Option<Instant>) {
        let Some(standing) = self.objects.get_mut(key) else {
            return;
        };
        standing.has_pass = false;
        standing.wakes = wakes;
        self.wakes.extend(wakes.map(|at| (at, key.clone())));
        if standing.waits.is_some() {
            self.order.push_back(key.clone());
        } else if wakes.is_none() {
            self.objects.remove(key);
        }
    }
}

impl<K> Queue<K> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look at the object.
    pub fn up(&self, name: &str, namespace: Option<&str>) {
        self.state().ask(key(name, namespace), Instant::now());
        self.0.asked.notify_one();
    }

    /// Those whose turn it is now, each as if it were looked at and done with.
    #[cfg(test)]
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
    /// Asks for a look at an object that was touched.
    pub fn touched(&self, object: &K) {
        self.up(&object.name_any(), object.namespace().as_deref());
    }

    /// Looks at whoever waits, as the store shows them then, until `shutdown`, and at most at so many at once. What is
    /// under way ends first; a panic of a pass is a panic of this.
    pub async fn run<P>(
        &self,
        store: &Store<K>,
        at_once: usize,
        (controller, metrics): (Controller, &Reconcile),
        shutdown: &CancellationToken,
        pass: impl Fn(Arc<K>) -> P,
    ) where
        P: Future<Output = Result<Again, Failed>> + Send + 'static,
    {
        let mut passes = JoinSet::new();
        let done = |ended: Result<(Key, Again), JoinError>| {
            let (key, again) = match ended {
                Ok(ended) => ended,
                Err(panicked) => match panicked.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return,
                },
            };
            let wakes = again.map(|after| Instant::now() + after.min(WAKE_AT_MOST));
            self.state().done(&key, wakes);
        };
        while !shutdown.is_cancelled() {
            let is_full = passes.len() >= at_once;
            let mut wakes = None;
            if !is_full {
                let next = self.state().next(Instant::now());
                match next {
                    Ok((key, waited)) => {
                        metrics.waited(controller, waited);
                        let (namespace, name) = key
                            .split_once('/')
                            .map_or((None, &*key), |(ns, name)| (Some(ns), name));
                        match cache::get(store, name, namespace) {
                            Some(object) => {
                                let span = tracing::info_span!("pass", kind = %K::kind(&()), object = %key);
                                let pass = observed::<K, _>(key, pass(object), controller, metrics.clone());
                                passes.spawn(pass.instrument(span));
                            }
                            None => self.state().done(&key, None),
                        }
                        continue;
                    }
                    Err(at) => wakes = at,
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(ended) = passes.join_next() => done(ended),
                () = self.0.asked.notified(), if !is_full => {}
                () = tokio::time::sleep_until(wakes.unwrap_or_else(Instant::now)), if wakes.is_some() => {}
            }
        }
        while let Some(ended) = passes.join_next().await {
            done(ended);
        }
    }
}

/// Runs a pass, and says how it went and how long it took.
async fn observed<K: Watched, P: Future<Output = Result<Again, Failed>>>(
    key: Key,
    pass: P,
    controller: Controller,
    metrics: Reconcile,
) -> (Key, Again) {
    let begun = Instant::now();
    let (again, failed) = match pass.await {
        Ok(again) => (again, None),
        Err(Failed { error, again }) => {
            error.log(&K::kind(&()), &key);
            let soon = error.retry_after();
            (
                Some(again.map_or(soon, |again| again.min(soon))),
                Some(error.class()),
            )
        }
    };
    metrics.observe(controller, begun.elapsed(), failed);
    (key, again)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::{reflector, watcher};
    use leasehold_telemetry::{Metrics, metrics::Role};
    use tokio::sync::mpsc;

    use super::*;

    type Told = mpsc::UnboundedReceiver<(String, Instant)>;

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

    /// Runs passes of a second each that tell who it was and when, and want to be made again in so long.
    fn run(
        queue: &Queue<ConfigMap>,
        store: Store<ConfigMap>,
        at_once: usize,
        again: Again,
    ) -> (Told, CancellationToken) {
        let (tell, told) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let (queue, end) = (queue.clone(), shutdown.clone());
        tokio::spawn(async move {
            let metrics = Reconcile::register(&mut Metrics::new(), Role::Provider);
            let pass = |object: Arc<ConfigMap>| {
                let tell = tell.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = tell.send((object.name_any(), Instant::now()));
                    Ok(again)
                }
            };
            queue
                .run(&store, at_once, (Controller::Lease, &metrics), &end, pass)
                .await;
        });
        (told, shutdown)
    }

    async fn names(told: &mut Told, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < count {
            names.push(told.recv().await.expect("it runs").0);
        }
        names
    }

    #[tokio::test(start_paused = true)]
    async fn everyone_has_their_turn_however_often_others_are_asked_for() {
        let queue = Queue::default();
        let (mut told, _shutdown) = run(&queue, store(&["1", "2", "3", "4"]), 1, None);
        for name in ["3", "1", "4", "2", "1"] {
            queue.up(name, Some("a"));
        }
        let mut turns = Vec::new();
        for _ in 0..8 {
            let name = names(&mut told, 1).await.remove(0);
            // Whoever was looked at is asked for again at once.
            queue.up(&name, Some("a"));
            turns.push(name);
        }
        assert_eq!(turns, ["3", "1", "4", "2", "3", "1", "4", "2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_asked_for_during_a_pass_has_one_more_and_never_two_at_once() {
        let queue = Queue::default();
        let (mut told, _shutdown) = run(&queue, store(&["1"]), 8, None);
        let begun = Instant::now();
        queue.up("1", Some("a"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        queue.up("1", Some("a"));
        queue.up("1", Some("a"));
        for second in 1..=2 {
            let (_, at) = told.recv().await.unwrap();
            assert_eq!(at, begun + Duration::from_secs(second));
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(told.try_recv().is_err(), "nobody asked any more");
        assert!(queue.state().objects.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_up_has_its_turn_under_load_and_is_forgotten_when_it_was_asked_for_before() {
        let queue = Queue::default();
        let (mut told, shutdown) = run(&queue, store(&["1", "2"]), 1, Some(Duration::from_secs(10)));
        queue.up("1", Some("a"));
        assert_eq!(names(&mut told, 1).await, ["1"]);
        // The other is asked for again whenever it was looked at.
        queue.up("2", Some("a"));
        let mut others = 0;
        while names(&mut told, 1).await == ["2"] {
            queue.up("2", Some("a"));
            others += 1;
        }
        // Its time came 10 s after its first pass, while one of the other was under way or about to begin.
        assert!((10..=11).contains(&others), "{others}");
        assert_eq!(names(&mut told, 1).await, ["2"]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(queue.state().wakes.len(), 2, "one wake-up each");
        // What is under way ends.
        queue.up("1", Some("a"));
        tokio::time::sleep(Duration::from_millis(500)).await;
        shutdown.cancel();
        assert_eq!(names(&mut told, 1).await, ["1"]);
        assert_eq!(told.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_is_passed_over() {
        let queue = Queue::default();
        let (mut told, _shutdown) = run(&queue, store(&["1"]), 1, None);
        queue.up("gone", Some("a"));
        queue.up("1", None);
        queue.up("1", Some("a"));
        assert_eq!(names(&mut told, 1).await, ["1"]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(queue.state().objects.is_empty());
    }
}
