//! What enforces network policies on a node. Rules of the node's network hand the first packet of each connection from or to
//! a pod to an engine, which drops it or lets it pass; see kubernetes/network_policies.go. While the engine is down, the
//! kernel drops these packets.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::base::{FIELD_MANAGER, apply};
use crate::blocking;
use crate::control_plane::{Site, flags};
use crate::network::Network;
use crate::node::{self, Node};
use crate::process::{Probe, Process};

/// Number of the kernel's queue, in the network namespace of each node.
const QUEUE: u16 = 100;

/// Diverts the packets of a node's pods into the queue. No pod may run yet.
pub(crate) async fn divert(node: &Node, directory: &Path) -> Result<()> {
    for (program, rules) in [
        ("iptables-restore", rules(&node.pods)),
        ("ip6tables-restore", RULES_OF_IPV6.to_owned()),
    ] {
        let file = directory.join(program);
        std::fs::write(&file, rules).with_context(|| format!("write {}", file.display()))?;
        let mut restore = node.command(program)?;
        restore.arg("--noflush").arg(&file);
        blocking::run(restore).await?;
    }
    Ok(())
}

/// Processes of the node itself reach its pods, as Kubernetes requires for probes; they run as root, and the kernel knows
/// the sender's user on its own machine only. What a pod sends to its own node is not forwarded, and has a rule of its own.
fn rules(pods: &str) -> String {
    format!(
        "*mangle\n\
         -A POSTROUTING -m owner --uid-owner 0 -j RETURN\n\
         -A POSTROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
         -A POSTROUTING -s {pods} -j NFQUEUE --queue-num {QUEUE}\n\
         -A POSTROUTING -d {pods} -j NFQUEUE --queue-num {QUEUE}\n\
         -A INPUT -i cni0 -m conntrack --ctstate NEW -j NFQUEUE --queue-num {QUEUE}\n\
         COMMIT\n"
    )
}

/// Pods have no addresses of IPv6 except those that the kernel assigns, which no policy can name.
const RULES_OF_IPV6: &str = "*mangle\n-A FORWARD -j DROP\n-A INPUT -i cni0 -j DROP\nCOMMIT\n";

/// Starts the engine of a node. It has started when it reads the queue, which it does when it knows all policies and pods.
pub(crate) async fn engine(site: &Site<'_>, node: &Node, enter: Vec<String>) -> Result<Process> {
    let component = "network-policies";
    let kubeconfig = site.kubeconfig(
        &format!("nodes/{}/{component}", node.name),
        "leasehold:network-policies",
        &["system:masters"],
    )?;
    let mut launch = node::launch(site, &node.name, component, enter, reads_queue())?;
    launch.arguments = flags(&[
        ("kubeconfig", &kubeconfig),
        ("node", &node.name),
        ("queue", &QUEUE.to_string()),
    ]);
    site.roster.start(launch).await
}

fn reads_queue() -> Probe {
    Arc::new(|pid| {
        Box::pin(async move {
            // The first field of a line is the number of a queue that a process reads.
            let path = format!("/proc/{pid}/net/netfilter/nfnetlink_queue");
            let queues = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            let number = |line: &str| line.split_whitespace().next()?.parse().ok();
            if queues.lines().any(|line| number(line) == Some(QUEUE)) {
                Ok(())
            } else {
                bail!("nothing reads queue {QUEUE}")
            }
        })
    })
}

/// A pod that stands for the name server, which is a process of the control plane here: policies that permit names select
/// the pods with this label. It is not scheduled and runs nowhere.
pub(crate) async fn name_server(client: &Client, network: Network) -> Result<()> {
    let name = "coredns";
    let pods = Api::<Pod>::namespaced(client.clone(), "kube-system");
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "labels": { "k8s-app": "kube-dns" } },
        "spec": {
            "schedulerName": "none",
            "automountServiceAccountToken": false,
            "containers": [{ "name": name, "image": "leasehold.test/coredns:none" }],
        },
    });
    apply(pods.clone(), name, pod).await?;
    let address = network.name_server();
    let status = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    let how = PatchParams::apply(FIELD_MANAGER).force();
    pods.patch_status(name, &how, &Patch::Apply(&status))
        .await
        .context("give the name server's pod its address")
        .map(drop)
}
