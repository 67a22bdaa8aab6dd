//! A cluster's processes, containers included, are held together by control groups: whoever knows the
//! group can end all of them, even when the process that started them was killed, and no process that
//! happens to have got the number of one of them is ever hit.
//!
//! Machines differ: one hierarchy (version 2), several (version 1), or both. The cluster makes its group
//! in each hierarchy there is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MOUNT: &str = "/sys/fs/cgroup";

/// The control groups of one cluster, by the name they have in every hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    name: String,
}

impl Cgroups {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// The path that a kubelet takes as its root.
    pub(crate) fn of_node(&self, node: &str) -> String {
        format!("/{}/{node}", self.name)
    }

    /// Makes the group, one below it for components, and one for each node.
    pub(crate) fn make<'a>(&self, nodes: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        for hierarchy in hierarchies()? {
            let root = hierarchy.join(&self.name);
            make(&root)?;
            make(&root.join("system"))?;
            for node in nodes.clone() {
                make(&root.join(node))?;
            }
        }
        Ok(())
    }

    /// Files to which a process writes its number to join, one in each hierarchy that needs it: in the
    /// others its limits would be shared with nobody, so that joining gains nothing.
    pub(crate) fn join_files(&self) -> Result<Vec<PathBuf>> {
        let wanted = |hierarchy: &PathBuf| {
            is_unified(hierarchy) || hierarchy.file_name().is_some_and(|name| name == "pids")
        };
        Ok(hierarchies()?
            .iter()
            .filter(|hierarchy| wanted(hierarchy))
            .map(|hierarchy| hierarchy.join(&self.name).join("system/cgroup.procs"))
            .collect())
    }

    /// Numbers of the processes in the pods of a node.
    pub(crate) fn processes_of_node(&self, node: &str) -> Result<Vec<i32>> {
        let groups = hierarchies()?;
        let groups = groups
            .iter()
            .map(|hierarchy| hierarchy.join(&self.name).join(node));
        Ok(groups.flat_map(|group| processes(&group)).collect())
    }

    /// A file that ends every process of the group when `1` is written to it, where the kernel has it.
    pub(crate) fn kill_file(&self) -> Option<PathBuf> {
        hierarchies()
            .ok()?
            .into_iter()
            .filter(|hierarchy| is_unified(hierarchy))
            .map(|hierarchy| hierarchy.join(&self.name).join("cgroup.kill"))
            .find(|file| file.exists())
    }

    /// Kills everything inside, waits until it is gone, and removes the groups.
    pub(crate) fn end(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let roots: Vec<PathBuf> = hierarchies()?
            .iter()
            .map(|hierarchy| hierarchy.join(&self.name))
            .filter(|root| root.exists())
            .collect();
        if let Some(file) = self.kill_file() {
            std::fs::write(&file, "1").with_context(|| format!("write {}", file.display()))?;
        }
        loop {
            // Read anew each time: a process may have started another one in the meantime.
            let alive: Vec<i32> = roots.iter().flat_map(|root| processes(root)).collect();
            if alive.is_empty() {
                break;
            }
            for pid in &alive {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if Instant::now() > deadline {
                bail!("processes that don't die: {alive:?}; look at /proc/PID/stack");
            }
            pause();
        }
        for root in roots {
            while let Err(error) = remove(&root) {
                if Instant::now() > deadline {
                    return Err(error).with_context(|| format!("remove {}", root.display()));
                }
                pause();
            }
        }
        Ok(())
    }

    pub(crate) fn exist(&self) -> bool {
        hierarchies().is_ok_and(|all| all.iter().any(|hierarchy| hierarchy.join(&self.name).exists()))
    }
}

/// The directories in which a tree of groups begins.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mount = Path::new(MOUNT);
    if is_unified(mount) {
        return Ok(vec![mount.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(mount).with_context(|| format!("read {MOUNT}"))? {
        let path = entry?.path();
        // Combined hierarchies have links beside them, such as cpu for cpu,cpuacct.
        if path.is_dir() && !path.is_symlink() && path.join("cgroup.procs").exists() {
            found.push(path);
        }
    }
    if found.is_empty() {
        bail!("no control groups under {MOUNT}: mount them");
    }
    Ok(found)
}

fn is_unified(hierarchy: &Path) -> bool {
    hierarchy.join("cgroup.controllers").exists()
}

fn make(group: &Path) -> Result<()> {
    if !group.exists() {
        std::fs::create_dir(group).with_context(|| format!("make {}", group.display()))?;
    }
    let parent = group.parent().context("parent")?;
    if is_unified(group) {
        let controllers = std::fs::read_to_string(parent.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            // Fails for what the system keeps to itself; the kubelet says if it misses one.
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        // A new group of version 1 has no CPUs at all, and then nothing can join it.
        if group.join(file).exists() && !is_unified(group) {
            std::fs::write(group.join(file), std::fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Numbers of the processes in the group and below.
fn processes(group: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in children(group) {
        found.extend(processes(&child));
    }
    found
}

fn remove(group: &Path) -> std::io::Result<()> {
    for child in children(group) {
        remove(&child)?;
    }
    match std::fs::remove_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(group: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bounded wait in code that also runs from Drop"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
