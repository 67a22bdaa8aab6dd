//! Objects to try to write: valid, so that only permissions can refuse them.

use serde_json::{Value, json};

pub(crate) fn gpu_node(name: &str) -> Value {
    json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": name}, "spec": {}})
}

pub(crate) fn lease(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": namespace},
        "spec": {"holderIdentity": "trial"}})
}

pub(crate) fn namespace(name: &str, provider: &str) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    if !provider.is_empty() {
        object["metadata"]["labels"] =
            json!({"leasehold.dev/provider": provider, "pod-security.kubernetes.io/enforce": "baseline"});
    }
    object
}

pub(crate) fn reservation(name: &str, provider: &str) -> Value {
    let address = format!("0x{}", "2".repeat(40));
    let hash = format!("0x{}", "3".repeat(64));
    json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuReservation", "metadata": {"name": name},
        "spec": {
            "market": "default", "allocationNamespace": format!("provider-{provider}"), "allocationName": name,
            "allocationUid": "u", "deadline": 1, "allocation": allocation_spec(&address, &hash),
        },
    })
}

/// A pool that a provider sells, or all providers of the cluster.
pub(crate) fn pool(provider: Option<&str>) -> Value {
    let name = format!("pool-{}", provider.unwrap_or("of-all"));
    let mut pool = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": name},
        "spec": {"network": "base", "pricePerGpuHour": "1.85", "maxDuration": "2h"},
    });
    if let Some(provider) = provider {
        pool["spec"]["provider"] = json!(provider);
    }
    pool
}

pub(crate) fn allocation(namespace: &str, name: &str) -> Value {
    let (address, hash) = (format!("0x{}", "2".repeat(40)), format!("0x{}", "3".repeat(64)));
    json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuAllocation",
        "metadata": {"name": name, "namespace": namespace}, "spec": allocation_spec(&address, &hash),
    })
}

pub(crate) fn allocation_spec(address: &str, hash: &str) -> Value {
    json!({
        "lease": {"namespace": "team-a", "name": "train", "uid": "u"}, "round": 1, "leg": 0, "nodes": 1, "pool": "h100",
        "class": "h100-80g-sxm", "pricePerGpuHour": "1.85", "deposit": "1", "notAfter": 1, "openBy": 1, "onFundsEnd": "Close",
        "perNode": {"cpu": "1", "memory": "1Gi", "gpus": 1}, "workload": {"job": {"image": "busybox"}},
        "escrow": {
            "chainId": 1, "contract": address, "token": address, "payer": address, "market": address, "closer": address,
            "salt": hash, "id": hash, "startBy": 1, "noticeSeconds": 0, "pauseFor": 0,
            "legs": [{"payee": address, "controller": address, "rate": "1"}],
        },
    })
}

/// Objects of every kind that the provider's operator makes.
pub(crate) fn contents(namespace: &str) -> Vec<Value> {
    let object = |version: &str, kind: &str, more: Value| {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "trial", "namespace": namespace}});
        object
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        object
    };
    let pods = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}], "securityContext": {"runAsNonRoot": true}, "restartPolicy": "Never"}});
    let volume = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let access = json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "leasehold-tenant-access"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tenant"}]});
    vec![
        object("v1", "ConfigMap", json!({"data": {"a": "b"}})),
        object("v1", "ServiceAccount", json!({})),
        object("v1", "LimitRange", json!({"spec": {"limits": []}})),
        object("v1", "PersistentVolumeClaim", json!({"spec": volume})),
        object(
            "v1",
            "Service",
            json!({"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}),
        ),
        object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}}}),
        ),
        object(
            "policy/v1",
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}}),
        ),
        object("v1", "Pod", json!({"spec": pods["spec"]})),
        object("batch/v1", "Job", json!({"spec": {"template": pods}})),
        object("rbac.authorization.k8s.io/v1", "RoleBinding", access),
    ]
}
