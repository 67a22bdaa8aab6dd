//! Installs Leasehold like an administrator: images on the nodes, Secrets, the chart, PaymentNetwork and pools. It
//! also installs the simulated driver and its device plugin.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Node,
};
use kube::{Api, Client, api::ListParams};
use leasehold_crds::{
    GPU_RESOURCE, GpuOffer, GpuPool, GpuProvider, PROVIDER_NAMESPACE_PREFIX, shared::conditions::find,
};
use leasehold_planner::ports::SigningKey;
use leasehold_tasks::image::{self, Profile};
use leasehold_testcluster::{Cluster, FILES_IN_NODE, Progress};
use nvidia_ml_sim::Fixture;
use serde_json::{Value, json};

use crate::{
    eventually, kwok,
    stack::{GpuNodes, PaymentFixture, Role, StackSpec, address, key, payee},
};

/// Namespace of the operators.
pub const NAMESPACE: &str = "leasehold-system";
/// Name of the PaymentNetwork.
pub const NETWORK: &str = "anvil";
/// Label of a node with GPUs, whose value is the provider's name.
pub const PROVIDER_LABEL: &str = "leasehold.test/provider";

/// Image archives to load.
pub struct Archives(Vec<PathBuf>);

/// Builds the images from this source tree, those with the given names optimized.
pub async fn archives(optimized: &[&'static str], progress: &dyn Progress) -> anyhow::Result<Archives> {
    progress.step("building images of the operator and the agent");
    let optimized = optimized.to_vec();
    tokio::task::spawn_blocking(move || {
        let folder = image::default_folder();
        let names: Vec<&str> = image::PRODUCT.iter().chain(image::TESTS).copied().collect();
        let mut archives = image::build(&names, Profile::Dev, "dev", &folder)?;
        if !optimized.is_empty() {
            // In a folder of their own, as another test may be loading the others.
            let release = image::build(&optimized, Profile::Release, "dev", &folder.join("release"))?;
            archives.retain(|a| release.iter().all(|r| r.name != a.name));
            archives.extend(release);
        }
        Ok(Archives(archives.into_iter().map(|a| a.path).collect()))
    })
    .await?
}

/// Loads the images on every real node.
pub async fn images(cluster: &Cluster, archives: &Archives, progress: &dyn Progress) -> anyhow::Result<()> {
    progress.step("loading images");
    for path in &archives.0 {
        cluster
            .load_image(path)
            .await
            .with_context(|| format!("load {}", path.display()))?;
    }
    Ok(())
}

fn hex(key: &SigningKey) -> String {
    format!("0x{}", data_encoding::HEXLOWER.encode(&key.0))
}

/// Applies a manifest with kubectl.
pub fn kubectl_apply(cluster: &Cluster, manifest: &str) -> anyhow::Result<String> {
    run_with_input(cluster.kubectl().args(["apply", "-f", "-"]), manifest)
}

/// Runs a command with text on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("standard input")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{said}");
    Ok(said)
}

pub(crate) fn secret(name: &str, entries: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": entries})
}

fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(object)?);
    }
    Ok(text)
}

/// Installs everything in order. Returns when every provider with nodes has an offer that permits root.
pub async fn all(
    cluster: &Cluster,
    client: &Client,
    spec: &StackSpec,
    money: &PaymentFixture,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    progress.step("installing simulated GPUs");
    gpus(cluster, client, spec).await?;
    progress.step("installing the chart");
    secrets(cluster, spec)?;
    for (index, provider) in spec.providers.iter().enumerate() {
        let values = values(spec, money, index)?;
        let release = if index == 0 {
            "leasehold".to_owned()
        } else {
            format!("leasehold-{}", provider.name)
        };
        helm_install(cluster, &release, &values)?;
        if index == 0 && spec.has_kwok_nodes() {
            progress.step("starting the agents of the nodes simulated by KWOK");
            kwok::equip(cluster, spec).await?;
        }
    }
    progress.step("waiting for offers");
    deployments_ready(client).await?;
    for provider in spec.providers.iter().filter(|p| !p.nodes.is_empty()) {
        let api = Api::<GpuOffer>::namespaced(
            client.clone(),
            &format!("{PROVIDER_NAMESPACE_PREFIX}{}", provider.name),
        );
        let pools = Api::<GpuPool>::all(client.clone());
        let providers = Api::<GpuProvider>::all(client.clone());
        eventually(&format!("the offer of {}", provider.name), || async {
            let offer = api.get_opt(&provider.name).await?;
            // All nodes of the stack have user namespaces; root is sold when they have proven it.
            let free = |o: &GpuOffer| {
                let rows = &o.spec.rows;
                rows.iter().any(|r| r.nodes_free > 0) && rows.iter().all(|r| r.root_allowed)
            };
            let seen = providers.get_opt(&provider.name).await?.and_then(|p| p.status);
            let ready = seen.as_ref().and_then(|s| find(&s.conditions, "Ready"));
            let counts = ready.is_some_and(|c| c.reason == "Offering");
            if counts && offer.as_ref().is_some_and(free) {
                return Ok(Ok(()));
            }
            let pool = pools.get_opt(&provider.name).await?.and_then(|p| p.status);
            Ok(Err((offer.map(|o| o.spec), pool, seen)))
        })
        .await?;
    }
    Ok(())
}

/// Creates the operators' namespace and the Secrets with their keys.
pub(crate) fn secrets(cluster: &Cluster, spec: &StackSpec) -> anyhow::Result<()> {
    kubectl_apply(
        cluster,
        &yaml(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})])?,
    )?;
    let mut secrets = vec![secret(
        "leasehold-closer",
        &json!({"privateKey": hex(&key(Role::Closer)?)}),
    )];
    for (index, provider) in spec.providers.iter().enumerate() {
        secrets.push(secret(
            &format!("controller-{}", provider.name),
            &json!({"privateKey": hex(&key(Role::Controller(index))?)}),
        ));
    }
    kubectl_apply(cluster, &yaml(&secrets)?)?;
    Ok(())
}

/// Chart values for the release of that provider. The release of the first one also contains the market.
pub(crate) fn values(spec: &StackSpec, money: &PaymentFixture, index: usize) -> anyhow::Result<Value> {
    let first = index == 0;
    let provider = &spec.providers[index];
    let others: Vec<Value> = spec
        .providers
        .iter()
        .enumerate()
        .skip(1)
        .map(|(i, p)| {
            Ok(json!({
                "name": p.name, "payee": payee(i).to_string(), "controller": address(Role::Controller(i))?.to_string(), "region": p.region,
                "subject": {"kind": "ServiceAccount", "name": format!("leasehold-{}-provider", p.name), "namespace": NAMESPACE},
            }))
        })
        .collect::<anyhow::Result<_>>()?;
    let network = json!({
        "name": NETWORK, "chainId": money.chain_id, "rpcUrl": money.rpc_url, "escrow": money.escrow.to_string(),
        "marketId": money.market_id.to_string(), "outageGrace": "60s",
        "token": {"address": money.token.to_string(), "symbol": "USDC", "decimals": 6},
    });
    let pool = json!({
        "name": provider.name, "provider": provider.name, "pricePerGpuHour": provider.price, "network": NETWORK, "maxPause": "1h",
        "nodeSelector": {PROVIDER_LABEL: provider.name}, "storage": {"maxSize": "100Gi"},
    });
    // A failed test needs all log lines; a benchmark needs the default.
    let log_filter = if spec.optimized.is_empty() {
        "info,leasehold_operator=debug"
    } else {
        "info"
    };
    Ok(json!({
        "crds": {"install": first},
        "log": {"format": "text", "filter": log_filter},
        "paymentNetworks": if first { json!([network]) } else { json!([]) },
        "pools": [pool],
        "market": {"enabled": first, "replicas": spec.replicas, "providers": if first { json!(others) } else { json!([]) }},
        "provider": {
            "name": provider.name, "payee": payee(index).to_string(), "controller": address(Role::Controller(index))?.to_string(),
            "region": provider.region, "replicas": spec.replicas, "controllerKey": {"secretName": format!("controller-{}", provider.name)},
        },
        "agent": {
            "enabled": first,
            // Agents of KWOK nodes are processes that use the same ServiceAccount.
            "affinity": real_gpu_nodes(),
            "driver": {"from": "hostPath", "library": format!("{FILES_IN_NODE}/{}", nvidia_ml_sim::LIBRARY_NAME)},
            "sysfsHostPath": format!("{FILES_IN_NODE}/sys"),
            "extraHostPaths": [FILES_IN_NODE],
            "extraArgs": spec.agent_args,
        },
        "networkPolicy": {"egressPorts": [443, 6443, 8545]},
    }))
}

/// Affinity to nodes that have GPUs and run containers.
fn real_gpu_nodes() -> Value {
    let expressions = json!([
        {"key": PROVIDER_LABEL, "operator": "Exists"},
        {"key": "type", "operator": "NotIn", "values": ["kwok"]},
    ]);
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}})
}

pub(crate) fn helm_install(cluster: &Cluster, release: &str, values: &Value) -> anyhow::Result<()> {
    let chart = leasehold_tasks::root().join("charts/leasehold");
    let mut command = cluster.helm();
    command.args(["upgrade", "--install", release]).arg(chart).args([
        "--namespace",
        NAMESPACE,
        "--values",
        "-",
    ]);
    run_with_input(&mut command, &serde_norway::to_string(values)?)
        .with_context(|| format!("helm upgrade --install {release}"))?;
    Ok(())
}

pub(crate) async fn deployments_ready(client: &Client) -> anyhow::Result<()> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), NAMESPACE);
    eventually("the operators", || async {
        let all = deployments.list(&ListParams::default()).await?.items;
        let waiting: Vec<_> = all
            .iter()
            .filter(|d| {
                d.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)
                    < d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
            })
            .map(|d| d.metadata.name.clone().unwrap_or_default())
            .collect();
        Ok(if waiting.is_empty() { Ok(()) } else { Err(waiting) })
    })
    .await
}

/// Writes each node's GPUs, runs the device plugin, and waits until kubelets can allocate the GPUs.
pub(crate) async fn gpus(cluster: &Cluster, client: &Client, spec: &StackSpec) -> anyhow::Result<()> {
    let mut expected = Vec::new();
    for provider in &spec.providers {
        if let GpuNodes::Real(nodes) = &provider.nodes {
            for (name, model, count) in nodes {
                let files = &cluster.node(name).files;
                Fixture::create(files, name, model, *count)?;
                device(files)?;
                expected.push((name.clone(), *count));
            }
        }
    }
    if expected.is_empty() {
        return Ok(());
    }
    kubectl_apply(cluster, &yaml(&[device_plugin()?])?)?;
    let nodes = Api::<Node>::all(client.clone());
    for (name, count) in expected {
        eventually(&format!("the GPUs of {name}"), || async {
            let node = nodes.get(&name).await?;
            let found = node
                .status
                .and_then(|s| s.allocatable)
                .and_then(|a| a.get("nvidia.com/gpu").map(|q| q.0.clone()));
            Ok(if found.as_deref() == Some(&count.to_string()) {
                Ok(())
            } else {
                Err(found)
            })
        })
        .await?;
    }
    Ok(())
}

/// Creates what containers on a node get in place of the device files of a driver. Every user can open it, also root of a user
/// namespace.
pub fn device(files: &Path) -> anyhow::Result<PathBuf> {
    let path = files.join("device");
    std::fs::write(&path, "")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    Ok(path)
}

fn device_plugin() -> anyhow::Result<Value> {
    let set: DaemonSet = serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "gpu-plugin", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": {"app": "gpu-plugin"}},
            "template": {
                "metadata": {"labels": {"app": "gpu-plugin"}},
                "spec": {
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "affinity": real_gpu_nodes(),
                    "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists"}],
                    "containers": [{
                        "name": "plugin", "image": "leasehold.test/gpu-plugin:dev", "imagePullPolicy": "IfNotPresent",
                        "args": ["--gpus", format!("{FILES_IN_NODE}/gpus.json")],
                        "securityContext": {"privileged": true},
                        "volumeMounts": [
                            {"name": "kubelet", "mountPath": "/var/lib/kubelet/device-plugins"},
                            {"name": "files", "mountPath": FILES_IN_NODE, "readOnly": true},
                        ],
                    }],
                    "volumes": [
                        {"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet/device-plugins"}},
                        {"name": "files", "hostPath": {"path": FILES_IN_NODE}},
                    ],
                },
            },
        },
    }))?;
    Ok(serde_json::to_value(set)?)
}

/// Reads a file of the repository.
pub fn repository_file(path: impl AsRef<Path>) -> anyhow::Result<String> {
    let path = leasehold_tasks::root().join(path);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) => bail!("{}: {error}", path.display()),
    }
}
