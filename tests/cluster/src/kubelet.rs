//! What joins a node to its cluster: the kubelet, and kube-proxy for services.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::control_plane::{Site, dns_of_pods, flags, text};
use crate::node::{self, KUBELET_ROOT_IN_NODE, Node};
use crate::process::{self, Process};
use crate::runtime::CONTAINERD_SOCKET;

pub(crate) async fn kubelet(
    site: &Site<'_>,
    node: &Node,
    directory: &Path,
    enter: Vec<String>,
) -> Result<Process> {
    let user = format!("system:node:{}", node.name);
    let kubeconfig = site.kubeconfig(&format!("nodes/{}/kubelet", node.name), &user, &["system:nodes"])?;
    let serving = site.authority.issue_files(
        &format!("kubelet-{}", node.name),
        &user,
        &["system:nodes"],
        &[IpAddr::V4(node.address)],
        &[&node.name],
    )?;
    let resolv = directory.join("resolv.conf");
    // Pods with the node's DNS policy would else search the host's domains.
    std::fs::write(&resolv, format!("nameserver {}\n", site.network.name_server()))?;
    let (dns, domain) = dns_of_pods();
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": site.authority.certificate_file() },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": site.cgroups.of_node(&node.name),
        "clusterDNS": [dns],
        "clusterDomain": domain,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        // Else a container that a test kills waits 10 s to 5 min for its next life.
        "crashLoopBackOff": { "maxContainerRestartPeriod": "1s" },
        "enforceNodeAllocatable": [],
        // The machine's disk may be rather full: that is not what these nodes are for.
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 100,
        "failCgroupV1": false,
        "failSwapOn": false,
        "healthzBindAddress": "127.0.0.1",
        "podLogsDir": node.pod_logs,
        "registerWithTaints": node.taint.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect::<Vec<_>>(),
        "resolvConf": resolv,
        "rotateCertificates": false,
        "tlsCertFile": serving.certificate,
        "tlsPrivateKeyFile": serving.key,
        "volumePluginDir": directory.join("volume-plugins"),
        "oomScoreAdj": 0,
    });
    let path = directory.join("kubelet.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    let mut launch = node::launch(site, &node.name, "kubelet", enter, process::listens_on(10250))?;
    launch.arguments = flags(&[
        ("config", &text(&path)?),
        ("kubeconfig", &kubeconfig),
        ("hostname-override", &node.name),
        ("node-ip", &node.address.to_string()),
        ("root-dir", KUBELET_ROOT_IN_NODE),
        ("cert-dir", &text(directory)?),
    ]);
    site.roster.start(launch).await
}

pub(crate) async fn kube_proxy(
    site: &Site<'_>,
    node: &Node,
    directory: &Path,
    enter: Vec<String>,
) -> Result<Process> {
    let kubeconfig = site.kubeconfig(
        &format!("nodes/{}/kube-proxy", node.name),
        "system:kube-proxy",
        &[],
    )?;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": kubeconfig },
        "clusterCIDR": site.network.all_pods(),
        // The host's table is not ours to size.
        "conntrack": { "maxPerCore": 0, "min": 0 },
        "hostnameOverride": node.name,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "nftables": { "minSyncPeriod": "100ms" },
        "oomScoreAdj": 0,
    });
    let path = directory.join("kube-proxy.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    let mut launch = node::launch(site, &node.name, "kube-proxy", enter, process::listens_on(10256))?;
    launch.arguments = flags(&[("config", &text(&path)?)]);
    site.roster.start(launch).await
}
