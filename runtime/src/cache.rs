//! Shared caches: one watch for each kind, a store to read from, and a callback for each object that changed.

use std::{
    collections::HashMap,
    fmt::Debug,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context as _;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Config, Resource, ResourceExt as _,
    api::ObjectMeta,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tower::limit::ConcurrencyLimitLayer;

/// Concurrent requests: each is a connection, which takes tens of kilobytes, and more of them make no API server
/// faster. A watch counts until its response begins.
const CONCURRENT_REQUESTS: usize = 64;

/// A copy of the whole object that `kubectl apply` stores; nothing here reads it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Seconds after which the API server ends a watch, which is then begun anew where it ended. kube takes a watch for dead five
/// seconds later.
const WATCH_SECONDS: u32 = 10;

/// Limits after which a connection to the API server is given up. Otherwise an operator would receive no events for minutes
/// after a connection died without a FIN, behind a gateway or a load balancer.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    connect: Duration,
    /// Time in which no byte of an answer arrives and no request is sent.
    silence: Duration,
}

impl Deadlines {
    /// Those of ordinary requests. A watch is never silent for longer, because it ends after [`WATCH_SECONDS`].
    pub const ORDINARY: Self = Self {
        connect: Duration::from_secs(5),
        silence: Duration::from_secs(15),
    };
    /// Those of a leader's renewal, of which two must fit into the time before the leadership expires.
    pub const RENEWAL: Self = Self {
        connect: Duration::from_secs(2),
        silence: Duration::from_secs(2),
    };
}

/// A client from a kubeconfig, or from the pod's own ServiceAccount.
pub async fn client(kubeconfig: Option<&Path>, deadlines: Deadlines) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("read the kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .context("use the kubeconfig")?
        }
        None => Config::infer()
            .await
            .context("find the cluster: run in a pod, or set --kubeconfig")?,
    };
    config.connect_timeout = Some(deadlines.connect);
    config.read_timeout = Some(deadlines.silence);
    config.write_timeout = Some(deadlines.silence);
    config.reset_reader_on_write = true;
    let builder = ClientBuilder::try_from(config).context("make a client of the cluster's API")?;
    Ok(builder
        .with_layer(&ConcurrencyLimitLayer::new(CONCURRENT_REQUESTS))
        .build())
}

/// Whether the API server of a watch can be reached; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<RwLock<Option<String>>>);

impl Reach {
    /// Why it cannot be reached, if it cannot.
    pub fn error(&self) -> Option<String> {
        self.0
            .read()
            .map_or_else(|e| e.into_inner().clone(), |guard| guard.clone())
    }

    fn set(&self, error: Option<String>) {
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if *guard != error {
            *guard = error;
        }
    }
}

/// An API server to watch, and whether it can be reached.
pub struct Source {
    client: Client,
    reach: Reach,
    config: watcher::Config,
}

/// Kinds that can be watched here.
pub trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// A watch fills its store until the process ends. `trim` drops fields that nothing reads; `on_change` is called for
/// each object that was added, changed or deleted.
impl Source {
    /// All objects of a kind.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            reach: Reach::default(),
            config: watcher::Config::default().timeout(WATCH_SECONDS),
        }
    }

    /// The same API server, restricted to objects with matching labels.
    pub fn labelled(&self, selector: &str) -> Self {
        Self {
            client: self.client.clone(),
            reach: self.reach.clone(),
            config: self.config.clone().labels(selector),
        }
    }

    /// Whether it can be reached.
    pub fn reach(&self) -> Reach {
        self.reach.clone()
    }

    /// Watches a kind in all namespaces.
    pub fn watch<K: Watched>(&self, trim: fn(&mut K), on_change: impl Fn(&K) + Send + 'static) -> Store<K> {
        let api = Api::all(self.client.clone());
        self.follow(api, trim, move |object, _| on_change(object))
    }

    /// Watches the objects of one namespace.
    pub fn watch_in<K: Watched + Resource<Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
        trim: fn(&mut K),
        on_change: impl Fn(&K) + Send + 'static,
    ) -> Store<K> {
        let api = Api::namespaced(self.client.clone(), namespace);
        self.follow(api, trim, move |object, _| on_change(object))
    }

    /// Watches a kind in all namespaces, indexed by namespace.
    pub fn watch_by_namespace<K: Watched>(
        &self,
        trim: fn(&mut K),
        on_change: impl Fn(&K) + Send + 'static,
    ) -> ByNamespace<K> {
        let names = Arc::new(Names::default());
        let index = names.clone();
        let api = Api::all(self.client.clone());
        let all = self.follow(api, trim, move |object, now| {
            index.note(object, now);
            on_change(object);
        });
        ByNamespace { all, names }
    }

    fn follow<K: Watched>(
        &self,
        api: Api<K>,
        trim: fn(&mut K),
        on_event: impl Fn(&K, Now) + Send + 'static,
    ) -> Store<K> {
        follow(api, self.config.clone(), self.reach(), trim, on_event)
    }
}

/// Drops metadata that nothing here reads: there are thousands of objects of each kind.
fn trim_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.owner_references = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// Drops annotations.
pub fn without_annotations<K: Resource>(object: &mut K) {
    object.meta_mut().annotations = None;
}

/// Drops annotations and labels.
pub fn without_annotations_and_labels<K: Resource>(object: &mut K) {
    object.meta_mut().annotations = None;
    object.meta_mut().labels = None;
}

/// Whether an object exists after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    Exists,
    Deleted,
}

fn follow<K: Watched>(
    api: Api<K>,
    config: watcher::Config,
    reach: Reach,
    trim: fn(&mut K),
    on_event: impl Fn(&K, Now) + Send + 'static,
) -> Store<K> {
    let (store, writer) = reflector::store::<K>();
    let reader = store.clone();
    tokio::spawn(async move {
        let events = watcher(api, config)
            .default_backoff()
            .modify(move |object| {
                trim_meta(object.meta_mut());
                trim(object);
                // A deserialized vector has spare capacity; a clone has none.
                *object = object.clone();
            })
            .reflect(writer);
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => {
                    reach.set(None);
                    on_event(&object, Now::Exists);
                }
                Ok(watcher::Event::Delete(object)) => {
                    reach.set(None);
                    on_event(&object, Now::Deleted);
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => reach.set(None),
                // A list reaches the store once it is complete: an earlier callback would read the previous state.
                Ok(watcher::Event::InitDone) => {
                    reach.set(None);
                    for object in reader.state() {
                        on_event(&object, Now::Exists);
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted");
                    reach.set(Some(format!("the API server can't be reached: {error}")));
                }
            }
        }
    });
    store
}

/// A store that is indexed by namespace: finding the objects of one namespace in a plain store reads all of them.
pub struct ByNamespace<K: Resource<DynamicType = ()> + 'static> {
    all: Store<K>,
    names: Arc<Names>,
}

/// Names of the objects in each namespace, sorted. An object deleted while the watch was interrupted may still be listed.
#[derive(Default)]
struct Names(Mutex<HashMap<String, Vec<String>>>);

impl Names {
    fn note<K: Resource<DynamicType = ()>>(&self, object: &K, now: Now) {
        let Some(namespace) = object.namespace() else {
            return;
        };
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match now {
            Now::Exists => {
                let there = names.entry(namespace).or_default();
                if let Err(at) = there.binary_search(&object.name_any()) {
                    there.insert(at, object.name_any());
                }
            }
            Now::Deleted => {
                if let Some(there) = names.get_mut(&namespace) {
                    there.retain(|name| *name != object.name_any());
                    if there.is_empty() {
                        names.remove(&namespace);
                    }
                }
            }
        }
    }
}

impl<K: Watched> ByNamespace<K> {
    /// The objects of a namespace, sorted by name.
    pub fn of(&self, namespace: &str) -> Vec<Arc<K>> {
        let names = self.names.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = names.get(namespace).into_iter().flatten();
        names
            .filter_map(|name| get(&self.all, name, Some(namespace)))
            .collect()
    }

    /// The objects of all namespaces.
    pub const fn all(&self) -> &Store<K> {
        &self.all
    }
}

/// Drops nothing.
pub const fn keep_all<K>(_: &mut K) {}

/// Looks an object up by name and namespace.
pub fn get<K>(store: &Store<K>, name: &str, namespace: Option<&str>) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut object = ObjectRef::new(name);
    object.namespace = namespace.map(str::to_owned);
    store.get(&object)
}

/// When a Lease was renewed last.
pub fn renewed_at(lease: &Lease) -> Option<Timestamp> {
    Some(lease.spec.as_ref()?.renew_time.as_ref()?.0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(namespace: &str, name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some(namespace.into());
        pod.metadata.name = Some(name.into());
        pod
    }

    #[test]
    fn objects_are_found_by_namespace_while_they_exist() {
        let (all, mut writer) = reflector::store::<Pod>();
        let names = Arc::new(Names::default());
        let pods = ByNamespace { all, names };
        let found = |namespace: &str| {
            let found = pods.of(namespace);
            found.iter().map(|p| p.name_any()).collect::<Vec<_>>()
        };
        for pod in [pod("a", "2"), pod("a", "1"), pod("b", "3")] {
            writer.apply_watcher_event(&watcher::Event::Apply(pod.clone()));
            pods.names.note(&pod, Now::Exists);
        }
        assert_eq!(found("a"), ["1", "2"]);
        assert_eq!(found("b"), ["3"]);
        assert!(found("c").is_empty());

        writer.apply_watcher_event(&watcher::Event::Delete(pod("a", "1")));
        pods.names.note(&pod("a", "1"), Now::Deleted);
        assert_eq!(found("a"), ["2"]);
        // Deleted while the watch was interrupted: no event was received.
        writer.apply_watcher_event(&watcher::Event::Delete(pod("a", "2")));
        assert!(found("a").is_empty());

        pods.names.note(&pod("b", "3"), Now::Deleted);
        assert!(!pods.names.0.lock().unwrap().contains_key("b"));
    }
}
