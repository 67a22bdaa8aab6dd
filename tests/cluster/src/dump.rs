//! Evidence of a failed test, copied out of a cluster before it goes.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::Cluster;
use leasehold_testtools::command;

pub(crate) fn write(cluster: &Cluster, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    copy(&cluster.directory().join("logs"), &directory.join("components"))?;
    for node in cluster.nodes() {
        copy(&node.pod_logs, &directory.join("pods").join(&node.name))?;
    }
    let questions: &[(&str, &[&str])] = &[
        (
            "events.txt",
            &["get", "events", "-A", "--sort-by=.lastTimestamp", "-o", "wide"],
        ),
        ("objects.txt", &["get", "all,pvc,pv,nodes", "-A", "-o", "wide"]),
        ("pods.yaml", &["get", "pods", "-A", "-o", "yaml"]),
        ("pods.txt", &["describe", "pods", "-A"]),
        ("nodes.txt", &["describe", "nodes"]),
    ];
    for (file, arguments) in questions {
        std::fs::write(directory.join(file), ask(cluster, arguments))?;
    }
    let custom = ask(cluster, &["get", "crd", "-o", "name"]);
    for name in custom
        .lines()
        .filter_map(|line| line.split_once('/'))
        .map(|(_, name)| name)
    {
        std::fs::write(
            directory.join(format!("{name}.yaml")),
            ask(cluster, &["get", name, "-A", "-o", "yaml"]),
        )?;
    }
    Ok(())
}

/// The answer, or the error in its place: a dump is made when things are broken.
fn ask(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut kubectl = cluster.kubectl();
    kubectl.arg("--request-timeout=10s").args(arguments);
    command::run(&mut kubectl).unwrap_or_else(|error| format!("{error:#}\n"))
}

/// Copies files and directories.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => copy(&entry.path(), &target)?,
            kind if kind.is_file() => drop(std::fs::copy(entry.path(), target)?),
            _ => {}
        }
    }
    Ok(())
}
