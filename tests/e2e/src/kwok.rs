//! What KWOK nodes need to be GPU nodes: simulated GPUs, the kubelet's pod-resources API, and the real agent as a
//! process with a token that is bound to its node, like a pod's. All of it ends with the cluster.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use leasehold_testcluster::Cluster;
use nvidia_ml_sim::Fixture;

use crate::{
    install::NAMESPACE,
    stack::{GpuNodes, StackSpec},
};

/// The ServiceAccount that the chart creates for agents.
const AGENT_ACCOUNT: &str = "leasehold-agent";

/// Creates the GPUs of the stack's KWOK nodes and starts an agent for each. The chart must be installed.
pub async fn equip(cluster: &Cluster, spec: &StackSpec) -> anyhow::Result<()> {
    let root = cluster.directory().join("kwok");
    let mut nodes = Vec::new();
    for provider in &spec.providers {
        if let GpuNodes::Kwok(list) = &provider.nodes {
            for (name, model, shape) in list {
                let directory = root.join(name);
                let count = usize::try_from(shape.gpus).context("GPUs of a KWOK node")?;
                Fixture::create(&directory, name, model, count)?;
                std::fs::create_dir(directory.join("proc"))?;
                nodes.push((name.clone(), directory));
            }
        }
    }
    if nodes.is_empty() {
        return Ok(());
    }
    kubelet(cluster, &root, &nodes).await?;
    let agents = nodes
        .iter()
        .map(|(name, directory)| agent(cluster, name, directory));
    futures::future::try_join_all(agents).await.map(drop)
}

async fn kubelet(cluster: &Cluster, root: &Path, nodes: &[(String, PathBuf)]) -> anyhow::Result<()> {
    let started = root.join("started");
    let mut arguments = vec![
        format!("--kubeconfig={}", cluster.kubeconfig_path().display()),
        format!("--started={}", started.display()),
    ];
    let named = nodes
        .iter()
        .map(|(name, dir)| format!("--node={name}={}", dir.display()));
    arguments.extend(named);
    cluster
        .start(
            "kwok-kubelet",
            &program("kwok-kubelet")?,
            arguments,
            Some(started),
        )
        .await
        .map(drop)
}

async fn agent(cluster: &Cluster, node: &str, directory: &Path) -> anyhow::Result<()> {
    let token = cluster.token_on_node(NAMESPACE, AGENT_ACCOUNT, node).await?;
    let kubeconfig = directory.join("agent.kubeconfig");
    std::fs::write(&kubeconfig, cluster.kubeconfig_with_token(&token)?)?;
    let at = |name: &str| directory.join(name).display().to_string();
    let arguments = vec![
        format!("--node-name={node}"),
        format!("--namespace={NAMESPACE}"),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--nvml={}", at(nvidia_ml_sim::LIBRARY_NAME)),
        format!("--sysfs={}", at("sys")),
        // No process of this machine belongs to that node.
        format!("--proc={}", at("proc")),
        format!("--pod-logs={}", at("proc")),
        format!("--pod-resources={}", at("kubelet.sock")),
        "--period=1s".to_owned(),
        "--holders-period=500ms".to_owned(),
        "--admin-address=127.0.0.1:0".to_owned(),
        "--log-format=text".to_owned(),
    ];
    cluster
        .start(
            &format!("agent-{node}"),
            &program("leasehold-agent")?,
            arguments,
            None,
        )
        .await
        .map(drop)
}

/// Path of a program that cargo built together with this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no {name} near {}: build it with `cargo build --workspace`",
                own.display()
            )
        })
}
