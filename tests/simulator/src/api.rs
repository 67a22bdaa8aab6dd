//! An API server for one kind, with resource versions, generations, finalizers, deletion timestamps and transition
//! rules, and watch caches that are behind it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use leasehold_crds::{
    GpuAllocation, GpuLease, GpuReservation, lease::GpuLeaseStatus, market::allocation::GpuAllocationStatus,
    provider::reservation::GpuReservationStatus,
};

/// Namespace and name. The namespace is empty for cluster-scoped kinds.
pub type Key = (String, String);

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// The resource version differs from the one that was read.
    Conflict,
    /// No such object.
    NotFound,
    /// A validation rule of the kind rejects it.
    Invalid,
    /// The API server did not answer.
    Unreachable,
}

impl ApiError {
    /// When the edge retries.
    #[must_use]
    pub const fn retry_ms(self) -> u64 {
        match self {
            Self::Conflict => 100,
            Self::NotFound | Self::Unreachable => 2_000,
            Self::Invalid => 30_000,
        }
    }
}

/// A kind that the API server stores.
pub trait Kind: Clone + PartialEq {
    /// Its status.
    type Status: Clone + PartialEq;
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
    /// Its metadata, mutable.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// Its status.
    fn status_mut(&mut self) -> &mut Option<Self::Status>;
    /// Replaces the spec, and returns whether it changed.
    fn take_spec(&mut self, from: &Self) -> bool;
    /// Whether the CRD's transition rules allow the change.
    fn admits(old: &Self, new: &Self) -> bool;
}

macro_rules! kind {
    ($kind:ty, $status:ty, $admits:expr) => {
        impl Kind for $kind {
            type Status = $status;
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
            fn status_mut(&mut self) -> &mut Option<$status> {
                &mut self.status
            }
            fn take_spec(&mut self, from: &Self) -> bool {
                let differs = self.spec != from.spec;
                self.spec = from.spec.clone();
                differs
            }
            fn admits(old: &Self, new: &Self) -> bool {
                let admits: fn(&Self, &Self) -> bool = $admits;
                admits(old, new)
            }
        }
    };
}
kind!(GpuLease, GpuLeaseStatus, |_, _| true);
kind!(GpuAllocation, GpuAllocationStatus, |old, new| {
    let (old, new) = (&old.spec, &new.spec);
    old.lease == new.lease
        && old.escrow == new.escrow
        && (old.leg, old.nodes, old.round) == (new.leg, new.nodes, new.round)
        && new.not_after >= old.not_after
        && (!old.release || new.release)
});
kind!(GpuReservation, GpuReservationStatus, |old, new| {
    let (old, new) = (&old.spec, &new.spec);
    old.allocation_uid == new.allocation_uid && old.allocation.escrow == new.allocation.escrow
});

/// The objects of one kind, and the log of all changes.
pub struct Api<K> {
    objects: BTreeMap<Key, Arc<K>>,
    log: Vec<(Key, Option<Arc<K>>)>,
    uids: u64,
}

impl<K> Default for Api<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            log: Vec::new(),
            uids: 0,
        }
    }
}

impl<K: Kind> Api<K> {
    /// The object as it is now.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    /// All objects as they are now.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Arc<K>)> {
        self.objects.iter()
    }

    /// All changes, in order.
    #[must_use]
    pub fn log(&self) -> &[(Key, Option<Arc<K>>)] {
        &self.log
    }

    fn store(&mut self, key: &Key, mut object: K) -> Arc<K> {
        object.meta_mut().resource_version = Some((self.log.len() + 1).to_string());
        let object = Arc::new(object);
        self.objects.insert(key.clone(), object.clone());
        self.log.push((key.clone(), Some(object.clone())));
        object
    }

    fn erase(&mut self, key: &Key) {
        self.objects.remove(key);
        self.log.push((key.clone(), None));
    }

    fn at(&self, key: &Key, version: Option<&str>) -> Result<Arc<K>, ApiError> {
        let object = self.objects.get(key).ok_or(ApiError::NotFound)?;
        match version {
            Some(version) if object.meta().resource_version.as_deref() != Some(version) => {
                Err(ApiError::Conflict)
            }
            _ => Ok(object.clone()),
        }
    }

    /// Server-side apply of spec and finalizers: creates or changes the object.
    pub fn apply(&mut self, key: &Key, wanted: &K) -> Result<Arc<K>, ApiError> {
        let version = wanted.meta().resource_version.clone();
        match self.objects.get(key) {
            None if version.is_some() => Err(ApiError::NotFound),
            None => {
                self.uids += 1;
                let mut object = wanted.clone();
                let meta = object.meta_mut();
                meta.namespace = Some(key.0.clone()).filter(|n| !n.is_empty());
                meta.name = Some(key.1.clone());
                meta.uid = Some(format!("uid-{}-{}", key.1, self.uids));
                meta.generation = Some(1);
                *object.status_mut() = None;
                Ok(self.store(key, object))
            }
            Some(_) => {
                let old = self.at(key, version.as_deref())?;
                let mut object = (*old).clone();
                let differs = object.take_spec(wanted);
                if !K::admits(&old, &object) {
                    return Err(ApiError::Invalid);
                }
                let mut finalizers = object.meta().finalizers.clone().unwrap_or_default();
                for finalizer in wanted.meta().finalizers.iter().flatten() {
                    if !finalizers.contains(finalizer) {
                        if object.meta().deletion_timestamp.is_some() {
                            return Err(ApiError::Invalid);
                        }
                        finalizers.push(finalizer.clone());
                    }
                }
                object.meta_mut().finalizers = Some(finalizers);
                if object == *old {
                    return Ok(old);
                }
                if differs {
                    object.meta_mut().generation = object.meta().generation.map(|g| g + 1);
                }
                Ok(self.store(key, object))
            }
        }
    }

    /// A merge patch of the spec, without a precondition.
    pub fn patch(&mut self, key: &Key, change: impl FnOnce(&mut K)) -> Result<Arc<K>, ApiError> {
        let old = self.at(key, None)?;
        let mut object = (*old).clone();
        change(&mut object);
        if object == *old {
            return Ok(old);
        }
        if !K::admits(&old, &object) {
            return Err(ApiError::Invalid);
        }
        object.meta_mut().generation = object.meta().generation.map(|g| g + 1);
        Ok(self.store(key, object))
    }

    /// Writes the status, if the object has not changed since it was read.
    pub fn set_status(&mut self, read: &K, key: &Key, status: K::Status) -> Result<Arc<K>, ApiError> {
        let old = self.at(key, read.meta().resource_version.as_deref())?;
        let mut object = (*old).clone();
        *object.status_mut() = Some(status);
        if object == *old {
            return Ok(old);
        }
        Ok(self.store(key, object))
    }

    /// The object as it was when the log had that length.
    #[must_use]
    pub fn get_at(&self, key: &Key, length: usize) -> Option<Arc<K>> {
        let mut before = self.log[..length.min(self.log.len())].iter().rev();
        before
            .find(|(k, _)| k == key)
            .and_then(|(_, object)| object.clone())
    }

    /// Replaces an object by an earlier version of it, as a backup does. `None` removes it.
    pub fn restore(&mut self, key: &Key, object: Option<Arc<K>>) {
        match object {
            Some(object) => drop(self.store(key, (*object).clone())),
            None if self.objects.contains_key(key) => self.erase(key),
            None => {}
        }
    }

    /// Removes the status, as a person or a restored backup could.
    pub fn wipe_status(&mut self, key: &Key) {
        if let Some(old) = self.objects.get(key) {
            let mut object = (**old).clone();
            *object.status_mut() = None;
            self.store(key, object);
        }
    }

    /// Sets the finalizers, with a precondition if a version is given. A deleted object is removed with its last
    /// finalizer.
    pub fn set_finalizers(
        &mut self,
        key: &Key,
        version: Option<&str>,
        finalizers: Vec<String>,
    ) -> Result<Arc<K>, ApiError> {
        let old = self.at(key, version)?;
        let had = old.meta().finalizers.clone().unwrap_or_default();
        let deleting = old.meta().deletion_timestamp.is_some();
        if deleting && finalizers.iter().any(|f| !had.contains(f)) {
            return Err(ApiError::Invalid);
        }
        let mut object = (*old).clone();
        object.meta_mut().finalizers = Some(finalizers.clone());
        if deleting && finalizers.is_empty() {
            self.erase(key);
            return Ok(Arc::new(object));
        }
        if object == *old {
            return Ok(old);
        }
        Ok(self.store(key, object))
    }

    /// Sets finalizers and an annotation, if the object has not changed since it was read.
    pub fn add_finalizers(
        &mut self,
        read: &K,
        key: &Key,
        finalizers: Vec<String>,
        mark: &str,
    ) -> Result<Arc<K>, ApiError> {
        let mut object = (*self.at(key, read.meta().resource_version.as_deref())?).clone();
        if object.meta().deletion_timestamp.is_some() {
            return Err(ApiError::Invalid);
        }
        let meta = object.meta_mut();
        meta.finalizers = Some(finalizers);
        meta.annotations
            .get_or_insert_default()
            .insert(mark.to_owned(), "true".into());
        Ok(self.store(key, object))
    }

    /// Deletes the object: immediately if it has no finalizers, otherwise when the last one is removed.
    pub fn delete(&mut self, key: &Key, now: Timestamp) -> Result<(), ApiError> {
        let old = self.at(key, None)?;
        if old.meta().finalizers.as_ref().is_none_or(Vec::is_empty) {
            self.erase(key);
        } else if old.meta().deletion_timestamp.is_none() {
            let mut object = (*old).clone();
            object.meta_mut().deletion_timestamp = Some(Time(now));
            object.meta_mut().generation = object.meta().generation.map(|g| g + 1);
            self.store(key, object);
        }
        Ok(())
    }
}

/// A watch cache: the API server's state at an earlier moment.
pub struct Cache<K> {
    objects: BTreeMap<Key, Arc<K>>,
    at: usize,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            at: 0,
        }
    }
}

impl<K: Kind> Cache<K> {
    /// The object in this cache.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    /// All objects in this cache.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Arc<K>)> {
        self.objects.iter()
    }

    /// Reads up to `events` further changes. Returns the changed objects.
    pub fn follow(&mut self, api: &Api<K>, events: usize) -> Vec<(Key, Arc<K>)> {
        let to = api.log.len().min(self.at.saturating_add(events));
        let mut touched = Vec::new();
        for (key, object) in &api.log[self.at..to] {
            match object {
                Some(object) => {
                    self.objects.insert(key.clone(), object.clone());
                    touched.push((key.clone(), object.clone()));
                }
                None => {
                    if let Some(last) = self.objects.remove(key) {
                        touched.push((key.clone(), last));
                    }
                }
            }
        }
        self.at = to;
        touched
    }

    /// Whether the cache is up to date.
    #[must_use]
    pub const fn is_fresh(&self, api: &Api<K>) -> bool {
        self.at == api.log.len()
    }
}
