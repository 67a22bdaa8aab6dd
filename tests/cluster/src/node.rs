//! A real node: a containerd, a kubelet and a kube-proxy in a network namespace and a mount namespace of
//! their own. The second makes each node look like a machine: `/var/lib/kubelet` and `/run` are its own,
//! so that a chart's host paths need no change; and whatever containers mount goes with it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::cgroup::Cgroups;
use crate::command;
use crate::control_plane::{Site, dns_of_pods, flags, text};
use crate::images::PAUSE;
use crate::network::{self, Network};
use crate::process::{self, Launch, Probe, Process};
use crate::spec::NodeSpec;
use crate::state::State;
use crate::tools::Tools;

/// The kubelet's directory as pods that mount host paths see it, on every node.
pub const KUBELET_ROOT_IN_NODE: &str = "/var/lib/kubelet";
/// A directory that differs from node to node, as pods that mount host paths see it: there a test puts
/// what a machine's hardware would show. [`Node::files`] is the same directory seen from the host.
pub const FILES_IN_NODE: &str = "/run/leasehold-node";

/// The file in a node's directory with the number of the process that holds its namespaces.
const HOLDER: &str = "namespaces.pid";
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// One real node of a cluster.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
    /// The range its pods' addresses are from.
    pub pods: String,
    /// [`KUBELET_ROOT_IN_NODE`] as seen from the host: below it lie `device-plugins/kubelet.sock` and
    /// `pod-resources/kubelet.sock`. What the kubelet mounts below it is visible inside the node only.
    pub kubelet_root: PathBuf,
    /// [`FILES_IN_NODE`] as seen from the host.
    pub files: PathBuf,
    /// Where the kubelet keeps the logs of this node's pods.
    pub pod_logs: PathBuf,
    network: Network,
    namespace: String,
    ctr: PathBuf,
    holder: Process,
    containerd: Process,
    kubelet: Option<Process>,
    proxy: Option<Process>,
}

impl Node {
    /// Starts what a node needs before there is an API server: its namespaces and its containerd.
    pub(crate) async fn prepare(site: &Site<'_>, index: u8, spec: &NodeSpec) -> Result<Self> {
        let directory = site.directory.join("nodes").join(&spec.name);
        let make = |name: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
            Ok(path)
        };
        let (kubelet_root, files, pod_logs) = (make("kubelet")?, make("files")?, make("pod-logs")?);
        let namespace = site.network.node_namespace(index);
        let holder = hold(site, &spec.name, &namespace, &directory, &kubelet_root, &files).await?;
        let enter = enter(&namespace, &holder)?;
        write_cni(site.network, index, &make("cni")?, &make("cni-data")?)?;
        let containerd = containerd(site, &spec.name, &directory, enter.clone()).await?;
        Ok(Self {
            name: spec.name.clone(),
            address: site.network.node(index),
            pods: site.network.pods(index),
            kubelet_root,
            files,
            pod_logs,
            network: site.network,
            namespace,
            ctr: site.tools.ctr.clone(),
            holder,
            containerd,
            kubelet: None,
            proxy: None,
        })
    }

    /// Starts what talks to the API server.
    pub(crate) async fn join(&mut self, site: &Site<'_>) -> Result<()> {
        let directory = site.directory.join("nodes").join(&self.name);
        let (kubelet, proxy) = tokio::try_join!(
            kubelet(site, self, &directory, enter(&self.namespace, &self.holder)?),
            kube_proxy(site, self, &directory, enter(&self.namespace, &self.holder)?),
        )?;
        self.kubelet = Some(kubelet);
        self.proxy = Some(proxy);
        Ok(())
    }

    /// # Panics
    /// Never on a node of a cluster that came up.
    #[must_use]
    pub fn kubelet(&self) -> &Process {
        self.kubelet
            .as_ref()
            .expect("a node of a running cluster has joined")
    }

    #[must_use]
    pub fn containerd(&self) -> &Process {
        &self.containerd
    }

    /// # Panics
    /// Never on a node of a cluster that came up.
    #[must_use]
    pub fn kube_proxy(&self) -> &Process {
        self.proxy
            .as_ref()
            .expect("a node of a running cluster has joined")
    }

    /// Pulls the node's cable: its containers go on, nobody reaches it and it reaches nobody.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn partition(&self) -> Result<()> {
        self.network.set_cable(&self.namespace, "down")
    }

    /// Plugs the cable in again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self) -> Result<()> {
        self.network.set_cable(&self.namespace, "up")
    }

    /// A command that runs inside the node: its network, its mounts; no shell around it.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut words = enter(&self.namespace, &self.holder)?.into_iter();
        let mut command = Command::new(words.next().context("nsenter")?);
        command.args(words).arg(program.as_ref());
        Ok(command)
    }

    /// Reads images from an OCI archive into the node's containerd.
    ///
    /// # Errors
    /// When containerd refuses the archive.
    pub async fn load_image(&self, archive: &Path) -> Result<()> {
        let mut ctr = self.command(&self.ctr)?;
        ctr.args([
            "--address",
            CONTAINERD_SOCKET,
            "--namespace",
            "k8s.io",
            "images",
            "import",
        ])
        .arg(archive);
        command::run_blocking(ctr)
            .await
            .with_context(|| format!("import {} on {}", archive.display(), self.name))
            .map(drop)
    }
}

/// Words that put a command into the node's namespaces.
fn enter(namespace: &str, holder: &Process) -> Result<Vec<String>> {
    let pid = holder.pid().context("the node's namespaces are gone")?;
    Ok(enter_words(namespace, pid))
}

fn enter_words(namespace: &str, holder: u32) -> Vec<String> {
    vec![
        "nsenter".to_owned(),
        format!("--net={}", network::path(namespace)),
        format!("--mount=/proc/{holder}/ns/mnt"),
        "--".to_owned(),
    ]
}

fn import(ctr: &mut Command, archive: &Path) {
    ctr.args([
        "--address",
        CONTAINERD_SOCKET,
        "--namespace",
        "k8s.io",
        "images",
        "import",
    ])
    .arg(archive);
}

impl State {
    /// Reads images from an OCI archive into every real node of a cluster that another process started.
    ///
    /// # Errors
    /// When a node is gone or its containerd refuses the archive.
    pub fn load_image(&self, tools: &Tools, archive: &Path) -> Result<()> {
        for (index, node) in (0..).zip(&self.nodes) {
            let holder = self.directory.join("nodes").join(node).join(HOLDER);
            let holder =
                std::fs::read_to_string(&holder).with_context(|| format!("read {}", holder.display()))?;
            let words = enter_words(&self.network.node_namespace(index), holder.trim().parse()?);
            let mut ctr = command::new(&words[0], &words[1..]);
            import(ctr.arg(&tools.ctr), archive);
            command::run(&mut ctr).with_context(|| format!("import {} on {node}", archive.display()))?;
        }
        Ok(())
    }
}

fn launch(site: &Site<'_>, node: &str, component: &str, enter: Vec<String>, probe: Probe) -> Result<Launch> {
    let name = format!("{node}-{component}");
    Ok(Launch {
        enter,
        log: site.logs().join(format!("{name}.log")),
        name,
        program: site.kubernetes(component),
        arguments: Vec::new(),
        environment: Vec::new(),
        join: site.cgroups.join_files()?,
        probe,
    })
}

/// A process that does nothing but keep the mount namespace, so that it outlives each component.
async fn hold(
    site: &Site<'_>,
    node: &str,
    namespace: &str,
    directory: &Path,
    kubelet_root: &Path,
    files: &Path,
) -> Result<Process> {
    // The only thing made outside the run directory: a place to mount on, empty on the host.
    std::fs::create_dir_all(KUBELET_ROOT_IN_NODE)?;
    let ready = directory.join(HOLDER);
    let script = format!(
        // Shared again, in a group of this namespace's own: mounts of containers that ask for
        // propagation spread here, and never to the host.
        "set -e; mount --make-rshared /; mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock {FILES_IN_NODE}; \
         mount --bind {} {KUBELET_ROOT_IN_NODE}; mount --bind {} {FILES_IN_NODE}; echo $$ > {}; exec sleep infinity",
        text(kubelet_root)?,
        text(files)?,
        text(&ready)?
    );
    let enter = vec![
        "nsenter".to_owned(),
        format!("--net={}", network::path(namespace)),
        "unshare".to_owned(),
        "--mount".to_owned(),
        "--propagation=private".to_owned(),
    ];
    let mut launch = launch(site, node, "namespaces", enter, process::exists(ready))?;
    launch.program = "sh".into();
    launch.arguments = vec!["-c".to_owned(), script];
    site.roster.start(launch).await
}

fn write_cni(network: Network, index: u8, directory: &Path, data: &Path) -> Result<()> {
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": true,
                // Every pod range is routed, so pods are seen under their own addresses.
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": { "type": "host-local", "ranges": [[{ "subnet": network.pods(index) }]], "dataDir": data },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    std::fs::write(
        directory.join("10-pods.conflist"),
        serde_json::to_vec_pretty(&config)?,
    )?;
    Ok(())
}

async fn containerd(site: &Site<'_>, node: &str, directory: &Path, enter: Vec<String>) -> Result<Process> {
    let config = directory.join("containerd.toml");
    std::fs::write(
        &config,
        format!(
            r#"version = 3
root = "{root}"
state = "/run/containerd"

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
# The test's user may not raise its own priority before the kernel's killer of last resort.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni_programs}"]
conf_dir = "{cni}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
            root = text(&directory.join("containerd"))?,
            cni_programs = text(&site.tools.cni)?,
            cni = text(&directory.join("cni"))?,
            runc = text(&site.tools.runc)?,
        ),
    )?;
    let ready = listens_at_socket(site, enter.clone());
    let mut launch = launch(site, node, "containerd", enter, ready)?;
    launch.program = site.tools.containerd.clone();
    launch.arguments = vec!["--config".to_owned(), text(&config)?];
    // containerd finds its shim, the CNI plugins find iptables, in PATH.
    let mut path = vec![site.tools.containerd_shim.parent().context("shim")?.to_owned()];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    path.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    launch.environment = vec![(
        "PATH".to_owned(),
        std::env::join_paths(path)?
            .into_string()
            .ok()
            .context("PATH isn't UTF-8")?,
    )];
    site.roster.start(launch).await
}

/// Ready when containerd answers a question.
fn listens_at_socket(site: &Site<'_>, enter: Vec<String>) -> Probe {
    let ctr = site.tools.ctr.clone();
    std::sync::Arc::new(move |_| {
        let mut ask = command::new(&enter[0], &enter[1..]);
        ask.arg(&ctr).args([
            "--address",
            CONTAINERD_SOCKET,
            "--connect-timeout",
            "1s",
            "version",
        ]);
        Box::pin(async move { command::run_blocking(ask).await.map(drop) })
    })
}

async fn kubelet(site: &Site<'_>, node: &Node, directory: &Path, enter: Vec<String>) -> Result<Process> {
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
    std::fs::write(&resolv, format!("nameserver {}\n", site.network.control_plane()))?;
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
        "resolvConf": resolv,
        "rotateCertificates": false,
        "tlsCertFile": serving.certificate,
        "tlsPrivateKeyFile": serving.key,
        "volumePluginDir": directory.join("volume-plugins"),
        "oomScoreAdj": 0,
    });
    let path = directory.join("kubelet.json");
    std::fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    let mut launch = launch(site, &node.name, "kubelet", enter, process::listens_on(10250))?;
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

async fn kube_proxy(site: &Site<'_>, node: &Node, directory: &Path, enter: Vec<String>) -> Result<Process> {
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
    let mut launch = launch(site, &node.name, "kube-proxy", enter, process::listens_on(10256))?;
    launch.arguments = flags(&[("config", &text(&path)?)]);
    site.roster.start(launch).await
}

/// The groups of one cluster's nodes are made before any of them starts.
pub(crate) fn make_cgroups(cgroups: &Cgroups, nodes: &[NodeSpec]) -> Result<()> {
    cgroups.make(nodes.iter().map(|node| node.name.as_str()))
}
