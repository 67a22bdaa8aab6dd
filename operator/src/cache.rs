//! Shared caches: one watch a kind, a store to read from, and a call for each object that was touched.

use std::{
    fmt::Debug,
    path::Path,
    pin::pin,
    sync::{Arc, RwLock},
};

use anyhow::Context as _;
use futures::{Stream, StreamExt as _};
use kube::{
    Api, Client, Config, Resource, ResourceExt as _,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

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
    Client::try_from(config).context("make a client of the cluster's API")
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

/// Watches a kind into a store until the process ends. `trim` drops what nobody reads, `touched` is called for each
/// object that came, changed, or went.
pub fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    reach: Reach,
    trim: fn(&mut K),
    touched: impl Fn(&K) + Send + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store::<K>();
    tokio::spawn(async move {
        let events = watcher(api, config)
            .default_backoff()
            .modify(move |object| {
                object.managed_fields_mut().clear();
                trim(object);
            })
            .reflect(writer);
        let mut events = pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(
                    watcher::Event::Apply(object)
                    | watcher::Event::Delete(object)
                    | watcher::Event::InitApply(object),
                ) => {
                    reach.set(None);
                    touched(&object);
                }
                Ok(watcher::Event::Init | watcher::Event::InitDone) => reach.set(None),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "the watch is interrupted");
                    reach.set(Some(format!("the API server can't be reached: {error}")));
                }
            }
        }
    });
    store
}

/// Keeps an object as it is.
pub const fn whole<K>(_: &mut K) {}

/// A bounded queue of objects to look at. What does not fit is looked at when its own deadline comes.
pub fn queue<K>() -> (Wake<K>, impl Stream<Item = ObjectRef<K>> + Send + 'static)
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let (sender, receiver) = mpsc::channel(4096);
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    });
    (Wake(sender), stream)
}

/// The sending end of [`queue`].
pub struct Wake<K: Resource<DynamicType = ()>>(mpsc::Sender<ObjectRef<K>>);

impl<K: Resource<DynamicType = ()>> Clone for Wake<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Resource<DynamicType = ()>> Wake<K> {
    /// Asks for a look at the object.
    pub fn up(&self, name: &str, namespace: Option<&str>) {
        let mut object = ObjectRef::new(name);
        object.namespace = namespace.map(str::to_owned);
        if self.0.try_send(object).is_err() {
            tracing::debug!(name, "the queue is full: the object waits for its own deadline");
        }
    }
}

/// Looks an object up by name and namespace.
pub fn get<K>(store: &Store<K>, name: &str, namespace: Option<&str>) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut object = ObjectRef::new(name);
    object.namespace = namespace.map(str::to_owned);
    store.get(&object)
}
