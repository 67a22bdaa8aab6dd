//! What runs a node's containers: containerd with runc, and the CNI plugins that wire pods up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::control_plane::{Site, text};
use crate::images::PAUSE;
use crate::network::Network;
use crate::node;
use crate::process::{Probe, Process};
use leasehold_testtools::command;

/// Inside the node: its `/run` is its own.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

pub(crate) fn write_cni(network: Network, index: u8, directory: &Path, data: &Path) -> Result<()> {
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

pub(crate) async fn containerd(
    site: &Site<'_>,
    node: &str,
    directory: &Path,
    enter: Vec<String>,
) -> Result<Process> {
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
    let mut launch = node::launch(site, node, "containerd", enter, ready)?;
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
    Arc::new(move |_| {
        let mut ask = command::new(&enter[0], &enter[1..]);
        ask.arg(&ctr).args([
            "--address",
            CONTAINERD_SOCKET,
            "--connect-timeout",
            "1s",
            "version",
        ]);
        Box::pin(async move { crate::blocking::run(ask).await.map(drop) })
    })
}

/// Makes `ctr` read an archive's images.
pub(crate) fn import(ctr: &mut Command, archive: &Path) -> Result<()> {
    // Inside the node's mounts the working directory is another one.
    let archive = archive
        .canonicalize()
        .with_context(|| format!("find {}", archive.display()))?;
    ctr.args([
        "--address",
        CONTAINERD_SOCKET,
        "--namespace",
        "k8s.io",
        "images",
        "import",
    ])
    .arg(archive);
    Ok(())
}
