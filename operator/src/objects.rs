//! Writes to the API that both roles make: status by server-side apply with the version that was read, Events.

use jiff::Timestamp;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::error::Error;

/// Writes a status by server-side apply. The version that was read is a precondition, so that what was decided on
/// an old reading never overwrites a newer one.
pub async fn apply_status<K, S>(api: &Api<K>, object: &K, manager: &str, status: &S) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    S: Serialize,
{
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "resourceVersion": object.resource_version()},
        "status": status,
    });
    api.patch_status(
        &object.name_any(),
        &PatchParams::apply(manager).force(),
        &Patch::Apply(&patch),
    )
    .await
    .map_err(Error::kube("write the status"))
}

/// Sets the finalizers, with the version that was read as precondition.
pub async fn set_finalizers<K>(api: &Api<K>, object: &K, finalizers: &[String]) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(Error::kube("write the finalizers"))
}

/// Sets the finalizers and a mark that outlives them, with the version that was read as precondition.
pub async fn take_up<K>(api: &Api<K>, object: &K, finalizers: &[String], mark: &str) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let version = object.resource_version();
    let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers, "annotations": {mark: "true"}}});
    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(Error::kube("write the finalizers"))
}

/// Applies an object by server-side apply.
pub async fn apply<K>(api: &Api<K>, object: &K, manager: &str) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.patch(
        &object.name_any(),
        &PatchParams::apply(manager).force(),
        &Patch::Apply(object),
    )
    .await
    .map_err(Error::kube("apply an object"))
}

/// `Ok` also when it was gone already.
pub fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Publishes Events about objects. An Event that can't be written is logged and lost.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events of this controller and replica.
    pub fn new(client: Client, controller: &str, instance: &str) -> Self {
        Self(Recorder::new(
            client,
            Reporter {
                controller: controller.into(),
                instance: Some(instance.into()),
            },
        ))
    }

    /// Publishes one.
    pub async fn publish<K>(&self, object: &K, warning: bool, reason: &str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: if warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: reason.into(),
            note: Some(note.chars().take(1000).collect()),
            action: reason.into(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, &object.object_ref(&())).await {
            tracing::warn!(reason, %error, "an Event was not written");
        }
    }
}

/// Metadata with a name, a namespace, and labels.
pub fn meta(name: &str, namespace: Option<&str>, labels: &[(&str, &str)]) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: namespace.map(Into::into),
        labels: Some(
            labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        ),
        ..ObjectMeta::default()
    }
}

/// From now until `wake`, at least a little.
pub fn until(wake: Timestamp, now: Timestamp) -> std::time::Duration {
    let millis = wake.duration_since(now).as_millis().clamp(20, 3_600_000);
    std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(20))
}
