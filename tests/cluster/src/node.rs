//! A real node: a containerd, a kubelet and a kube-proxy in a network namespace and a mount namespace of
//! their own. The second makes each node look like a machine: `/var/lib/kubelet` and `/run` are its own,
//! so that a chart's host paths need no change; and whatever containers mount goes with it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::control_plane::{Site, text};
use crate::network::{self, Network};
use crate::process::{self, Launch, Probe, Process};
use crate::spec::NodeSpec;
use crate::state::State;
use crate::{kubelet, policies, runtime};
use leasehold_testtools::Tools;
use leasehold_testtools::command;

/// The kubelet's directory as pods that mount host paths see it, on every node.
pub const KUBELET_ROOT_IN_NODE: &str = "/var/lib/kubelet";
/// A directory that differs from node to node, as pods that mount host paths see it: there a test puts
/// what a machine's hardware would show. [`Node::files`] is the same directory seen from the host.
pub const FILES_IN_NODE: &str = "/run/leasehold-node";

/// The file in a node's directory with the number of the process that holds its namespaces.
const HOLDER: &str = "namespaces.pid";

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
    pub(crate) taint: Option<String>,
    network: Network,
    namespace: String,
    ctr: PathBuf,
    holder: Process,
    containerd: Process,
    kubelet: Option<Process>,
    proxy: Option<Process>,
    policies: Option<Process>,
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
        runtime::write_cni(site.network, index, &make("cni")?, &make("cni-data")?)?;
        let containerd = runtime::containerd(site, &spec.name, &directory, enter.clone()).await?;
        Ok(Self {
            name: spec.name.clone(),
            address: site.network.node(index),
            pods: site.network.pods(index),
            kubelet_root,
            files,
            pod_logs,
            taint: spec.taint.clone(),
            network: site.network,
            namespace,
            ctr: site.tools.ctr.clone(),
            holder,
            containerd,
            kubelet: None,
            proxy: None,
            policies: None,
        })
    }

    /// Starts what talks to the API server.
    pub(crate) async fn join(&mut self, site: &Site<'_>, enforce_policies: bool) -> Result<()> {
        let directory = site.directory.join("nodes").join(&self.name);
        let enter = || enter(&self.namespace, &self.holder);
        if enforce_policies {
            policies::divert(self, &directory).await?;
        }
        let engine = async {
            if enforce_policies {
                policies::engine(site, self, enter()?).await.map(Some)
            } else {
                Ok(None)
            }
        };
        let (kubelet, proxy, policies) = tokio::try_join!(
            kubelet::kubelet(site, self, &directory, enter()?),
            kubelet::kube_proxy(site, self, &directory, enter()?),
            engine,
        )?;
        self.kubelet = Some(kubelet);
        self.proxy = Some(proxy);
        self.policies = policies;
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

    /// The engine of a node that enforces network policies. While it is down, no new connection from or to a
    /// pod succeeds, except those that the node's own processes make.
    #[must_use]
    pub fn network_policies(&self) -> Option<&Process> {
        self.policies.as_ref()
    }

    pub(crate) fn holder_pid(&self) -> Result<u32> {
        self.holder.pid().context("the node's namespaces are gone")
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
        runtime::import(&mut ctr, archive)?;
        crate::blocking::run(ctr)
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

/// A component of a node.
pub(crate) fn launch(
    site: &Site<'_>,
    node: &str,
    component: &str,
    enter: Vec<String>,
    probe: Probe,
) -> Result<Launch> {
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
            runtime::import(ctr.arg(&tools.ctr), archive)?;
            command::run(&mut ctr).with_context(|| format!("import {} on {node}", archive.display()))?;
        }
        Ok(())
    }
}
