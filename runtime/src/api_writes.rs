//! Writes to the API server. A status is written by server-side apply, with the resource version that was read as a
//! precondition.

use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::error::Error;

/// Writes a status by server-side apply. The resource version that was read is a precondition, so that a decision
/// made on an old reading never overwrites a newer status.
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

/// Sets the finalizers, with the resource version that was read as a precondition.
pub async fn set_finalizers<K>(api: &Api<K>, object: &K, finalizers: &[String]) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map_err(Error::kube("write the finalizers"))
}

/// Sets the finalizers and an annotation that stays when they are removed, with the resource version that was read as
/// a precondition.
pub async fn add_finalizer<K>(api: &Api<K>, object: &K, finalizers: &[String], mark: &str) -> Result<K, Error>
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

/// Errors that can say that an object does not exist.
pub trait NotFound {
    /// Whether the API server answered that the object does not exist.
    fn is_not_found(&self) -> bool;
}

impl NotFound for kube::Error {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(status) if status.code == 404)
    }
}

impl NotFound for Error {
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Kube { source, .. } if source.is_not_found())
    }
}

/// `Ok` also when the object did not exist.
pub fn ignore_not_found<T, E: NotFound>(result: Result<T, E>) -> Result<(), E> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes an object only if it has this UID, and not another one of its name.
pub fn only_uid(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
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

/// The time from now until `wake`, between 20 milliseconds and an hour.
pub fn until(wake: Timestamp, now: Timestamp) -> std::time::Duration {
    let millis = wake.duration_since(now).as_millis().clamp(20, 3_600_000);
    std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(20))
}
