//! Shared caches: one watch a kind, a store to read from, and a call for each object that was touched.

use std::{
    collections::HashMap,
    fmt::Debug,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use anyhow::Context as _;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease as Liveness;
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

/// Calls under way at once: each is a connection, which takes tens of kilobytes, and more of them make no API server
/// faster. A watch counts until it begins.
const CALLS_AT_ONCE: usize = 64;

/// The whole object once more, as `kubectl apply` keeps it; nobody here reads it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A client from a kubeconfig, or from the pod's own ServiceAccount.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("read the kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .context("use the kubeconfig")?
        }
        None => Config::infer()
            .await
            .context("find the cluster: run in a pod, or name a --kubeconfig")?,
    };
    let builder = ClientBuilder::try_from(config).context("make a client of the cluster's API")?;
    Ok(builder
        .with_layer(&ConcurrencyLimitLayer::new(CALLS_AT_ONCE))
        .build())
}

/// Whether a watch's API server answers; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<RwLock<Option<String>>>);

impl Reach {
    /// Why it does not answer, if it does not.
    pub fn error(&self) -> Option<String> {
        self.0
            .read()
            .map_or_else(|e| e.into_inner().clone(), |guard| guard.clone())
    }

    fn set(&self, error: Option<String>) {
        let mut guard = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *guard != error {
            *guard = error;
        }
    }
}

/// Where watches come from: an API server, and whether it answers.
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

/// A watch fills its store until the process ends. `trim` drops what nobody reads, `touched` is called for each object
/// that came, changed, or went.
impl Source {
    /// All objects of a kind.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            reach: Reach::default(),
            config: watcher::Config::default(),
        }
    }

    /// Of the same API server, objects that have such labels.
    pub fn labelled(&self, selector: &str) -> Self {
        Self {
            client: self.client.clone(),
            reach: self.reach.clone(),
            config: self.config.clone().labels(selector),
        }
    }

    /// Whether it answers.
    pub fn reach(&self) -> Reach {
        self.reach.clone()
    }

    /// Watches a kind wherever its objects are.
    pub fn watch<K: Watched>(&self, trim: fn(&mut K), touched: impl Fn(&K) + Send + 'static) -> Store<K> {
        let api = Api::all(self.client.clone());
        self.follow(api, trim, move |object, _| touched(object))
    }

    /// Watches the objects of one namespace.
    pub fn watch_in<K: Watched + Resource<Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
        trim: fn(&mut K),
        touched: impl Fn(&K) + Send + 'static,
    ) -> Store<K> {
        let api = Api::namespaced(self.client.clone(), namespace);
        self.follow(api, trim, move |object, _| touched(object))
    }

    /// Watches a kind whose objects are looked for by namespace.
    pub fn watch_by_namespace<K: Watched>(
        &self,
        trim: fn(&mut K),
        touched: impl Fn(&K) + Send + 'static,
    ) -> ByNamespace<K> {
        let names = Arc::new(Names::default());
        let noted = names.clone();
        let api = Api::all(self.client.clone());
        let all = self.follow(api, trim, move |object, now| {
            noted.note(object, now);
            touched(object);
        });
        ByNamespace { all, names }
    }

    fn follow<K: Watched>(
        &self,
        api: Api<K>,
        trim: fn(&mut K),
        seen: impl Fn(&K, Now) + Send + 'static,
    ) -> Store<K> {
        follow(api, self.config.clone(), self.reach(), trim, seen)
    }
}

/// Drops what nobody here reads, and what held it: there are thousands of each kind.
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
pub fn without_marks<K: Resource>(object: &mut K) {
    object.meta_mut().annotations = None;
    object.meta_mut().labels = None;
}

/// Whether an object is there after what happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    There,
    Gone,
}

fn follow<K: Watched>(
    api: Api<K>,
    config: watcher::Config,
    reach: Reach,
    trim: fn(&mut K),
    seen: impl Fn(&K, Now) + Send + 'static,
) -> Store<K> {
    let (store, writer) = reflector::store::<K>();
    let reader = store.clone();
    tokio::spawn(async move {
        let events = watcher(api, config)
            .default_backoff()
            .modify(move |object| {
                trim_meta(object.meta_mut());
                trim(object);
                // A vector that was read has room for more of its kind, a copied one has none to spare.
                *object = object.clone();
            })
            .reflect(writer);
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => {
                    reach.set(None);
                    seen(&object, Now::There);
                }
                Ok(watcher::Event::Delete(object)) => {
                    reach.set(None);
                    seen(&object, Now::Gone);
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => reach.set(None),
                // A list is in the store once it is whole: who looked before would see what was there before.
                Ok(watcher::Event::InitDone) => {
                    reach.set(None);
                    for object in reader.state() {
                        seen(&object, Now::There);
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "the watch is interrupted");
                    reach.set(Some(format!("the API server can't be reached: {error}")));
                }
            }
        }
    });
    store
}

/// A store whose objects are found by namespace, too. To look for one namespace's in a store takes as long as to look at
/// all of them.
pub struct ByNamespace<K: Resource<DynamicType = ()> + 'static> {
    all: Store<K>,
    names: Arc<Names>,
}

/// Names of the objects in each namespace, sorted. One that went while the watch was interrupted is still named.
#[derive(Default)]
struct Names(Mutex<HashMap<String, Vec<String>>>);

impl Names {
    fn note<K: Resource<DynamicType = ()>>(&self, object: &K, now: Now) {
        let Some(namespace) = object.namespace() else {
            return;
        };
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match now {
            Now::There => {
                let there = names.entry(namespace).or_default();
                if let Err(at) = there.binary_search(&object.name_any()) {
                    there.insert(at, object.name_any());
                }
            }
            Now::Gone => {
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
    /// Those of a namespace, by name.
    pub fn of(&self, namespace: &str) -> Vec<Arc<K>> {
        let names = self.names.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = names.get(namespace).into_iter().flatten();
        names
            .filter_map(|name| get(&self.all, name, Some(namespace)))
            .collect()
    }

    /// All of them, wherever they are.
    pub const fn all(&self) -> &Store<K> {
        &self.all
    }
}

/// Keeps an object as it is.
pub const fn whole<K>(_: &mut K) {}

/// Looks an object up by name and namespace.
pub fn get<K>(store: &Store<K>, name: &str, namespace: Option<&str>) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut object = ObjectRef::new(name);
    object.namespace = namespace.map(str::to_owned);
    store.get(&object)
}

/// When a Lease by which somebody says that they live was renewed last.
pub fn renewed_at(lease: &Liveness) -> Option<Timestamp> {
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
    fn objects_are_found_by_namespace_while_they_are_there() {
        let (all, mut writer) = reflector::store::<Pod>();
        let names = Arc::new(Names::default());
        let pods = ByNamespace { all, names };
        let found = |namespace: &str| {
            let found = pods.of(namespace);
            found.iter().map(|p| p.name_any()).collect::<Vec<_>>()
        };
        for pod in [pod("a", "2"), pod("a", "1"), pod("b", "3")] {
            writer.apply_watcher_event(&watcher::Event::Apply(pod.clone()));
            pods.names.note(&pod, Now::There);
        }
        assert_eq!(found("a"), ["1", "2"]);
        assert_eq!(found("b"), ["3"]);
        assert!(found("c").is_empty());

        writer.apply_watcher_event(&watcher::Event::Delete(pod("a", "1")));
        pods.names.note(&pod("a", "1"), Now::Gone);
        assert_eq!(found("a"), ["2"]);
        // Gone while the watch was interrupted: nobody told of it.
        writer.apply_watcher_event(&watcher::Event::Delete(pod("a", "2")));
        assert!(found("a").is_empty());

        pods.names.note(&pod("b", "3"), Now::Gone);
        assert!(!pods.names.0.lock().unwrap().contains_key("b"));
    }
}
