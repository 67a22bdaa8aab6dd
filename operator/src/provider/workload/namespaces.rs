//! The fields of each lease's namespace that are used here: a provider keeps thousands of them in memory.

use k8s_openapi::api::core::v1::Namespace;
use kube::{Resource, api::ObjectMeta};
use leasehold_crds::{ANNOTATION_APPLIED, ANNOTATION_ESCROW, ANNOTATION_RESULTS_UNTIL};
use serde::Deserialize;

/// A lease's namespace.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Namespace")]
#[serde(from = "Namespace")]
pub(crate) struct NamespaceSeen {
    /// Name and version, and since when it goes; nothing else.
    metadata: ObjectMeta,
    /// The account that pays for what is in it, as it was written there.
    pub(crate) escrow: Option<String>,
    /// Digest of all that was applied, as it was written there.
    pub(crate) applied: Option<String>,
    /// Until when results in it are kept, as it was written there.
    pub(crate) results_until: Option<String>,
}

impl NamespaceSeen {
    /// Whether it is being deleted.
    pub(crate) fn goes(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}

impl From<Namespace> for NamespaceSeen {
    fn from(namespace: Namespace) -> Self {
        let meta = namespace.metadata;
        let mut annotations = meta.annotations.unwrap_or_default();
        Self {
            escrow: annotations.remove(ANNOTATION_ESCROW),
            applied: annotations.remove(ANNOTATION_APPLIED),
            results_until: annotations.remove(ANNOTATION_RESULTS_UNTIL),
            metadata: ObjectMeta {
                name: meta.name,
                resource_version: meta.resource_version,
                deletion_timestamp: meta.deletion_timestamp,
                ..ObjectMeta::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_used_fields_of_a_namespace_are_kept() {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": "lease-x-0", "resourceVersion": "7", "labels": {"a": "b"},
                "annotations": {ANNOTATION_ESCROW: "0x1", ANNOTATION_APPLIED: "d", ANNOTATION_RESULTS_UNTIL: "5"},
            },
            "spec": {"finalizers": ["kubernetes"]},
        });
        let there: NamespaceSeen = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(there.name_any(), "lease-x-0");
        assert_eq!(there.escrow.as_deref(), Some("0x1"));
        assert_eq!(there.applied.as_deref(), Some("d"));
        assert_eq!(there.results_until.as_deref(), Some("5"));
        assert!(!there.goes() && there.labels().is_empty());
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(serde_json::from_value::<NamespaceSeen>(object).unwrap().goes());
    }
}
