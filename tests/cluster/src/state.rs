//! What is on disk about a cluster, so that another process can find it, use it, or clear it away after
//! its owner was killed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::network::{CLUSTERS_MAX, Network};
use leasehold_testtools::cache::{self, Lock};

/// How long the processes of a cluster may take to die.
const DEATH_WITHIN: Duration = Duration::from_secs(20);

/// The record of a cluster: `state.json` in its run directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub name: String,
    /// Everything of the cluster lies below.
    pub directory: PathBuf,
    pub(crate) network: Network,
    /// The control group in every hierarchy.
    pub(crate) cgroup: String,
    pub(crate) owner: Owner,
    /// It shall outlive its owner, until somebody takes it down by name.
    pub detached: bool,
    /// Whether the cluster came up: not before, `up` is under way or was cut off.
    pub ready: bool,
    pub rpc_url: Option<String>,
    pub nodes: Vec<String>,
}

/// The process that brought a cluster up. Its start time tells it from a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pid: u32,
    start_time: u64,
}

impl Owner {
    fn current() -> Result<Self> {
        let pid = std::process::id();
        Ok(Self {
            pid,
            start_time: start_time(pid).context("read the start time of this process")?,
        })
    }

    fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

impl State {
    /// Takes a number, a run directory and the name, and records them. Crashed clusters are cleared
    /// first, whatever their names.
    pub(crate) fn claim(name: &str, nodes: &[String]) -> Result<Self> {
        let acceptable = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 40 || !name.chars().all(acceptable) {
            bail!("a cluster's name has 1 to 40 lower-case letters, digits and dashes, not {name:?}");
        }
        let _lock = Lock::take("clusters")?;
        sweep_locked()?;
        let directory = cache::clusters()?.join(name);
        if let Some(other) = Self::read(&directory)? {
            if other.detached {
                bail!("cluster {name} is up: take it down with `cargo xtask cluster down --name {name}`");
            }
            bail!(
                "cluster {name} belongs to process {}, which is running",
                other.owner.pid
            );
        }
        if directory.exists() {
            std::fs::remove_dir_all(&directory).with_context(|| format!("empty {}", directory.display()))?;
        }
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let count = u8::try_from(nodes.len()).context("number of nodes")?;
        for network in (0..CLUSTERS_MAX).map(|index| Network { index, nodes: count }) {
            if network.is_claimed() {
                continue;
            }
            let state = Self {
                name: name.to_owned(),
                directory: directory.clone(),
                network,
                cgroup: format!("leasehold-{}-{name}", network.index),
                owner: Owner::current()?,
                detached: false,
                ready: false,
                rpc_url: None,
                nodes: nodes.to_owned(),
            };
            // First the record, then what it records: whoever is killed in between leaves no secret.
            state.write()?;
            match network.claim() {
                Ok(()) => return Ok(state),
                // Somebody with another cache was faster.
                Err(_) if network.is_claimed() => {}
                Err(error) => {
                    std::fs::remove_dir_all(&directory)?;
                    return Err(error);
                }
            }
        }
        bail!("{CLUSTERS_MAX} clusters are up on this machine: see `cargo xtask cluster list`")
    }

    pub(crate) fn write(&self) -> Result<()> {
        let mut draft = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer_pretty(&mut draft, self)?;
        draft.persist(self.directory.join("state.json"))?;
        Ok(())
    }

    fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join("state.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!(
                    "{} is of another version: remove its cluster by hand",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// The clusters of this machine's cache, by name.
    ///
    /// # Errors
    /// When the cache can't be read.
    pub fn list() -> Result<Vec<Self>> {
        let clusters = cache::clusters()?;
        let mut found = Vec::new();
        if let Ok(entries) = std::fs::read_dir(&clusters) {
            for entry in entries {
                found.extend(Self::read(&entry?.path())?);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The cluster of that name, if there is one.
    ///
    /// # Errors
    /// When its record can't be read.
    pub fn find(name: &str) -> Result<Option<Self>> {
        Self::read(&cache::clusters()?.join(name))
    }

    /// Is its owner gone, without having meant to leave it?
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        !self.detached && !self.owner.is_alive()
    }

    /// The address of the control plane.
    #[must_use]
    pub fn address(&self) -> std::net::Ipv4Addr {
        self.network.control_plane()
    }

    /// How an administrator reaches the API server.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    /// Ends every process, removes every trace, and last the record. Can be repeated after a failure.
    ///
    /// # Errors
    /// When a process doesn't die or something can't be removed.
    pub fn tear_down(&self) -> Result<()> {
        // Mounts go with the nodes' mount namespaces, which go with their last process.
        let cgroups = Cgroups::named(&self.cgroup);
        if cgroups.exist() {
            cgroups.end(DEATH_WITHIN)?;
        }
        self.network.remove()?;
        std::fs::remove_dir_all(&self.directory).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error).with_context(|| format!("remove {}", self.directory.display())),
        })
    }
}

/// Removes the clusters whose owners are gone. [`Cluster::up`](crate::Cluster::up) does so by itself.
///
/// # Errors
/// When one of them can't be removed.
pub fn sweep() -> Result<Vec<String>> {
    let _lock = Lock::take("clusters")?;
    sweep_locked()
}

fn sweep_locked() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for state in State::list()?.into_iter().filter(State::is_abandoned) {
        state
            .tear_down()
            .with_context(|| format!("clear away the abandoned cluster {}", state.name))?;
        swept.push(state.name);
    }
    Ok(swept)
}

/// When a process started, in ticks since boot; none if it is gone or only waits to be collected.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name in brackets, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        None
    } else {
        fields.nth(18)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_not_mistaken_for_a_later_process_of_its_number() {
        let me = Owner::current().unwrap();
        assert!(me.is_alive());
        assert!(
            !Owner {
                start_time: me.start_time + 1,
                ..me
            }
            .is_alive()
        );
    }
}
