//! frp (<https://github.com/fatedier/frp>) beside the tunnel: a reverse proxy of the same kind, from its Go module, with TLS and with
//! multiplexing, between the same two nodes and to the same pod.

use std::{
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::Context as _;
use leasehold_e2e::Split;
use leasehold_testcluster::{Node, Stderr};
use leasehold_testtools::go;

use super::scene::{PORTS, Scene, Ways, ways};
use leasehold_e2e::Watched;

/// Port at which the server is dialled.
const SERVER: u16 = 7000;
/// What is added to a port of the pod.
const REMOTE: u16 = 10_000;

/// A running server and client.
pub(crate) struct Frp {
    processes: [Child; 2],
    pub(crate) ways: Ways,
}

impl Frp {
    /// Builds and starts both, and waits until they lead to the pod.
    pub(crate) async fn start(split: &Split, scene: &Scene<'_>) -> anyhow::Result<Self> {
        let programs = tokio::task::spawn_blocking(|| go::frp(&Stderr::default())).await??;
        let market = split.market.cluster.node("market-1");
        let server = format!("bindPort = {SERVER}\ntransport.tls.force = true\nlog.level = \"warn\"\n");
        let mut client = format!(
            "loginFailExit = false\nserverAddr = \"{}\"\nserverPort = {SERVER}\nlog.level = \"warn\"\n\
             transport.tls.enable = true\ntransport.tcpMux = true\n",
            market.address
        );
        for (name, port) in PORTS {
            client += &format!(
                "[[proxies]]\nname = \"{name}\"\ntype = \"tcp\"\nlocalIP = \"{}\"\nlocalPort = {port}\nremotePort = {}\n",
                scene.pod,
                port + REMOTE
            );
        }
        let frp = Self {
            processes: [
                start(
                    market,
                    &programs.join("frps"),
                    &split.market.cluster.directory().join("frps.toml"),
                    &server,
                )?,
                start(
                    split.provider.node("gpu-1"),
                    &programs.join("frpc"),
                    &split.provider.directory().join("frpc.toml"),
                    &client,
                )?,
            ],
            ways: ways(|port| (market.address, port + REMOTE).into())?,
        };
        frp.ways.until_open("frp").await?;
        Ok(frp)
    }

    /// Both processes.
    pub(crate) fn processes(&self) -> Vec<Watched> {
        self.processes.iter().map(Watched::child).collect()
    }
}

impl Drop for Frp {
    fn drop(&mut self) {
        for process in &mut self.processes {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

fn start(node: &Node, program: &Path, file: &PathBuf, configuration: &str) -> anyhow::Result<Child> {
    std::fs::write(file, configuration).with_context(|| format!("write {}", file.display()))?;
    let mut command = node.command(program)?;
    command
        .arg("-c")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}
