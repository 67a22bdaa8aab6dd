//! The manifests that are right, with as many fields as a kind has: each bad one is one of these with a fault.

use serde_json::{Value, json};

/// One of each form.
pub(crate) fn all() -> Vec<Value> {
    vec![
        job(),
        session(),
        service(),
        bare(),
        pool(),
        bare_pool(),
        provider(),
        network(),
        providers_network(),
        node(),
    ]
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn lease(name: &str, spec: Value) -> Value {
    let mut lease = object("GpuLease", name, spec);
    lease["metadata"]["namespace"] = json!("default");
    lease
}

/// With everything that may be left out.
pub(crate) fn job() -> Value {
    let container = json!({
        "image": "ghcr.io/acme/train:1", "runAsUser": 1000, "command": ["/bin/sh", "-c"], "args": ["train\n\ttwo lines"],
        "env": [{"name": "EPOCHS", "value": "3"}, {"name": "SEED", "value": "7"}],
        "output": {"path": "/root/.cache/out", "keepResultsFor": "24h", "recipients": [
            "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@example.org",
        ]},
    });
    lease(
        "train",
        json!({
            "nodes": 2,
            "perNode": {"cpu": "4", "memory": "16Gi", "ephemeralStorage": "40Gi", "gpus": 1},
            "gpu": {"classes": ["h100-80g-sxm"], "memory": "80G", "computeCapability": "9.0", "cuda": "12.4"},
            "placement": {"regions": ["eu-west"], "providers": ["rhine-west"], "excludeProviders": ["rhine-east"], "spread": "SameProvider", "architectures": ["amd64", "arm64"]},
            "term": {"duration": "2h"},
            "startWithin": "1h",
            "storage": {"size": "20Gi", "mountPath": "/root/.cache/"},
            "workload": {"job": container},
            "access": {"subjects": [{"kind": "Group", "name": "Équipe A"}], "tokenSecret": {"name": "team-a.reach", "key": "api_token.v2"}},
            "payment": {
                "network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "team-a.wallet"},
                "topUp": {"whenRunwayBelow": "30m", "extendBy": "1h", "totalAtMost": "60"},
                "onFundsEnd": "Pause", "pauseFor": "24h",
            },
        }),
    )
}

/// With nothing that may be left out.
pub(crate) fn bare() -> Value {
    lease(
        "bare",
        json!({
            "perNode": {"cpu": 1, "memory": "1.5Gi", "ephemeralStorage": "1e9", "gpus": 1},
            "term": {"duration": "10s"},
            "workload": {"job": {"image": "busybox"}},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "0.000000000000000001", "wallet": {"secretName": "wallet"}},
        }),
    )
}

/// As large as may be.
pub(crate) fn session() -> Value {
    let mut lease = bare();
    let ports: Vec<Value> = (0..16)
        .map(|n| json!({"name": format!("port-{n}"), "port": 65_520 + n}))
        .collect();
    lease["metadata"]["name"] = json!("box");
    lease["spec"]["nodes"] = json!(64);
    lease["spec"]["term"]["duration"] = json!("8784h");
    lease["spec"]["payment"]["maxPricePerGpuHour"] = json!("999999999.999999999999999999");
    lease["spec"]["workload"] = json!({"session": {
        "image": "busybox",
        "sshKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBlnc0tmuqvzGF9TJfYhM0KIM5CFrDyLlJvYJZUZyDhz you@example.org"],
        "ports": ports,
    }});
    lease
}

pub(crate) fn service() -> Value {
    let mut lease = bare();
    lease["metadata"]["name"] = json!("llm");
    lease["spec"]["workload"] = json!({"service": {
        "image": "busybox",
        "ports": [{"name": "api", "port": 8000}, {"name": "metrics", "port": 9000},
            {"name": "tls", "port": 8443, "access": "Public", "tls": "Passthrough"}],
        "readiness": {"port": 8000, "path": "/health"},
    }});
    lease
}

/// With everything that may be left out.
pub(crate) fn pool() -> Value {
    object(
        "GpuPool",
        "h100",
        json!({
            "provider": "rhine-west", "nodeSelector": {"gpu.example.org/rack": "a", "quiet": ""}, "class": "h100-80g-sxm",
            "pricePerGpuHour": "1.85", "network": "base", "maxDuration": "720h", "maxPause": "24h", "maxKeepResultsFor": "48h",
            "storage": {"className": "local-nvme", "maxSize": "1Ti"}, "runtimeClassName": "nvidia", "exposure": "LoadBalancer",
            "withdraw": {"every": "24h", "above": "10.00"},
            "maxPerGpu": {"cpu": "16", "memory": "128Gi", "ephemeralStorage": "200Gi", "storage": "1Ti"},
            "userNamespaces": "Never", "maxStartWithin": "24h",
            "tolerations": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}, {"key": "example.org/spot"}],
            "hours": [{"days": ["Mon", "Tue"], "from": "18:00", "to": "24:00"}],
        }),
    )
}

/// With nothing that may be left out.
pub(crate) fn bare_pool() -> Value {
    object(
        "GpuPool",
        "bare",
        json!({"pricePerGpuHour": "0.32", "network": "base"}),
    )
}

pub(crate) fn provider() -> Value {
    object(
        "GpuProvider",
        "rhine-west",
        json!({
            "payee": "0xC0C0c0c0C0c0C0c0c0C0c0c0C0C0c0c0c0C0C001", "controller": format!("0x{}", "1".repeat(40)),
            "region": "eu-west",
        }),
    )
}

/// A market's.
pub(crate) fn network() -> Value {
    object(
        "PaymentNetwork",
        "base",
        json!({
            "chainId": 8453, "rpcSecretName": "base-rpc", "escrow": format!("0x{}", "2".repeat(40)),
            "token": {"address": format!("0x{}", "3".repeat(40)), "symbol": "USD₮0", "decimals": 6},
            "marketId": format!("0x{}", "4".repeat(40)), "provisionAt": "Safe", "outageGrace": "10m",
            "limits": {"feePerGasGwei": 200, "gasPerTransaction": 3_000_000, "nativePerDay": "0.5"},
        }),
    )
}

/// A provider's, which names no market.
pub(crate) fn providers_network() -> Value {
    let mut network = network();
    network["metadata"]["name"] = json!("elsewhere");
    let spec = network["spec"].as_object_mut().unwrap();
    for field in ["marketId", "rpcSecretName"] {
        spec.remove(field);
    }
    spec.insert("rpcUrl".into(), json!("https://rpc.example.org/v1?key=a"));
    network
}

pub(crate) fn node() -> Value {
    object(
        "GpuNode",
        "node-1",
        json!({"sell": false, "classOverride": "h100-80g-sxm"}),
    )
}
