//! A node that loses its power, and is switched on again. Its namespaces and its disk are kept, as a machine keeps its cables
//! and its disk. Its processes, and what they had mounted and written to `/run`, are gone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::blocking;
use crate::cluster::Cluster;
use crate::node::Node;

/// Time within which killed processes must be gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Removes the mounts below these directories, the deepest first, and the state of containerd.
const CLEAR: &str = "for below in /run/containerd /var/lib/kubelet/pods; do \
     cut -d ' ' -f 5 /proc/self/mountinfo | grep \"^$below/\" | sort -r | while read -r mount; do umount -l \"$mount\"; done; \
     done; rm -rf /run/containerd";

impl Cluster {
    /// Kills every process of a node at once: its components and all containers.
    ///
    /// # Errors
    /// If a process does not end, or a mount cannot be removed.
    pub async fn power_off(&self, node: &Node) -> Result<()> {
        let components = [node.containerd(), node.kubelet(), node.kube_proxy()];
        for component in components.into_iter().chain(node.network_policies()) {
            component.kill().await?;
        }
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            // A process may have started another one meanwhile.
            let alive = self.processes(node)?;
            if alive.is_empty() {
                break;
            }
            for pid in &alive {
                // It may have ended meanwhile.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if Instant::now() > deadline {
                bail!("processes of {} that do not end: {alive:?}", node.name);
            }
            tokio::time::sleep(POLL).await;
        }
        let mut clear = node.command("sh")?;
        clear.args(["-c", CLEAR]);
        blocking::run(clear)
            .await
            .with_context(|| format!("clear the mounts of {}", node.name))
            .map(drop)
    }

    /// Starts the components of a node again. Its kubelet then starts the pods that are assigned to the node.
    ///
    /// # Errors
    /// If a component does not answer in time.
    pub async fn power_on(&self, node: &Node) -> Result<()> {
        node.containerd().start().await?;
        let engine = async {
            match node.network_policies() {
                Some(engine) => engine.start().await,
                None => Ok(()),
            }
        };
        tokio::try_join!(node.kubelet().start(), node.kube_proxy().start(), engine)?;
        Ok(())
    }

    /// Ids of the processes of a node: those in the control groups of its pods, and those that see its mounts, but not the
    /// one that holds its namespaces.
    fn processes(&self, node: &Node) -> Result<Vec<i32>> {
        let mounts = |pid: &str| std::fs::read_link(PathBuf::from("/proc").join(pid).join("ns/mnt")).ok();
        let holder = node.holder_pid()?;
        let own = mounts(&holder.to_string());
        let mut found = self.pods_of(&node.name)?;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some((name, pid)) = name.to_str().and_then(|name| Some((name, name.parse().ok()?))) else {
                continue;
            };
            if mounts(name) == own && u32::try_from(pid) != Ok(holder) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}
