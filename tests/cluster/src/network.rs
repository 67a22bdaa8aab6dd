//! A cluster's network: a bridge on the host, one network namespace for the control plane and one for
//! each node. Fixed ports never collide, because no component listens on the host; a partition is a link
//! that goes down; and clusters reach each other through the host, as over an internet.
//!
//! The addresses are those set aside for testing networks (RFC 2544): cluster N has 198.18.N.0/24 for
//! machines, and eight /24 of 198.19.0.0/16, one a node, for pods. Nothing is masqueraded, so every pod
//! is seen under its own address, in its own cluster and in others.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use leasehold_testtools::command;

/// Real nodes of one cluster at most: that many pod ranges each has.
pub const NODES_MAX: u8 = 8;
/// Clusters on one machine at most: that many blocks of pod ranges there are.
pub const CLUSTERS_MAX: u8 = 32;

/// Where services live; the same in every cluster, as nothing routes it.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
pub(crate) const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// The addresses and names of one cluster, all derived from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) index: u8,
    pub(crate) nodes: u8,
}

impl Network {
    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.index, 1)
    }

    pub(crate) fn control_plane(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.index, 2)
    }

    /// The name server. An address of its own lets a network policy permit names without the API server.
    pub(crate) fn name_server(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.index, 3)
    }

    pub(crate) fn node(self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.index, 10 + node)
    }

    /// The pods of one node.
    pub(crate) fn pods(self, node: u8) -> String {
        format!("198.19.{}.0/24", self.index * NODES_MAX + node)
    }

    /// The pods of all nodes.
    pub(crate) fn all_pods(self) -> String {
        format!("198.19.{}.0/21", self.index * NODES_MAX)
    }

    pub(crate) fn bridge(self) -> String {
        format!("lh{}", self.index)
    }

    pub(crate) fn control_plane_namespace(self) -> String {
        format!("lh{}-cp", self.index)
    }

    pub(crate) fn node_namespace(self, node: u8) -> String {
        format!("lh{}-n{node}", self.index)
    }

    /// The host's end of a namespace's cable has the namespace's name.
    fn namespaces(self) -> Vec<(String, Ipv4Addr)> {
        std::iter::once((self.control_plane_namespace(), self.control_plane()))
            .chain((0..self.nodes).map(|node| (self.node_namespace(node), self.node(node))))
            .collect()
    }

    /// Makes the bridge. Fails if it exists: that is how a number is claimed.
    pub(crate) fn claim(self) -> Result<()> {
        command::run(&mut command::new(
            "ip",
            ["link", "add", &self.bridge(), "type", "bridge"],
        ))
        .map(drop)
    }

    pub(crate) fn is_claimed(self) -> bool {
        std::path::Path::new("/sys/class/net")
            .join(self.bridge())
            .exists()
    }

    /// Wires everything up. The bridge must be claimed.
    pub(crate) fn build(self) -> Result<()> {
        let bridge = self.bridge();
        ensure!(
            self.nodes <= NODES_MAX,
            "a cluster has {NODES_MAX} real nodes at most: use KWOK nodes beside them"
        );
        let namespaces = self.namespaces();
        for (namespace, _) in &namespaces {
            command::run(&mut command::new("ip", ["netns", "add", namespace]))?;
        }
        let mut host = String::new();
        for (namespace, _) in &namespaces {
            host += &format!(
                "link add {namespace} type veth peer name eth0 netns {namespace}\n\
                 link set {namespace} master {bridge} up\n"
            );
        }
        batch(None, &host)?;
        self.open_to_the_host()?;
        // Forwarding for this bridge only: the host's own setting is not ours to change.
        let forwarding = format!("/proc/sys/net/ipv4/conf/{bridge}/forwarding");
        std::fs::write(&forwarding, "1").with_context(|| format!("write {forwarding}"))?;
        for (namespace, address) in &namespaces {
            let mut inside = format!(
                "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
                self.gateway()
            );
            for node in (0..self.nodes).filter(|node| self.node(*node) != *address) {
                inside += &format!("route add {} via {}\n", self.pods(node), self.node(node));
            }
            if *address == self.control_plane() {
                inside += &format!("addr add {}/24 dev eth0\n", self.name_server());
            }
            batch(Some(namespace), &inside)?;
            let mut forward = self.enter(namespace);
            forward.args(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
            command::run(&mut forward)?;
        }
        Ok(())
    }

    /// Gives the host its address on the bridge and its routes to the pods.
    pub(crate) fn open_to_the_host(self) -> Result<()> {
        let bridge = self.bridge();
        let mut lines = format!(
            "addr add {}/24 dev {bridge}\nlink set {bridge} up\n",
            self.gateway()
        );
        for node in 0..self.nodes {
            lines += &format!(
                "route add {} via {} dev {bridge}\n",
                self.pods(node),
                self.node(node)
            );
        }
        batch(None, &lines)
    }

    /// Takes the host's address away: the cluster goes on by itself, and nothing outside reaches it.
    pub(crate) fn close_to_the_host(self) -> Result<()> {
        batch(
            None,
            &format!("addr del {}/24 dev {}\n", self.gateway(), self.bridge()),
        )
    }

    /// Pulls or plugs one namespace's cable.
    pub(crate) fn set_cable(self, namespace: &str, state: &str) -> Result<()> {
        command::run(&mut command::new("ip", ["link", "set", namespace, state])).map(drop)
    }

    /// A command that runs its arguments inside the namespace. Not `ip netns exec`, which mounts another
    /// /sys, in which a kubelet finds no cgroups.
    pub(crate) fn enter(self, namespace: &str) -> Command {
        command::new("nsenter", [format!("--net={}", path(namespace))])
    }

    /// Removes all of it, as far as it exists. No process may be left inside.
    pub(crate) fn remove(self) -> Result<()> {
        for (namespace, _) in self.namespaces() {
            if std::path::Path::new(&path(&namespace)).exists() {
                command::run(&mut command::new("ip", ["netns", "del", &namespace]))?;
            }
            // The cable normally goes with its namespace, some time after it.
            if std::path::Path::new("/sys/class/net").join(&namespace).exists() {
                let _ = command::run(&mut command::new("ip", ["link", "del", &namespace]));
            }
        }
        if self.is_claimed() {
            command::run(&mut command::new("ip", ["link", "del", &self.bridge()]))?;
        }
        Ok(())
    }
}

/// The handle by which a namespace is entered.
pub(crate) fn path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

fn batch(namespace: Option<&str>, lines: &str) -> Result<()> {
    use std::io::Write as _;
    let mut ip = Command::new("ip");
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace]);
    }
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip")?;
    child.stdin.take().context("stdin")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip {}: {}of:\n{lines}",
        namespace.unwrap_or("on the host"),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_and_nodes_never_share_addresses() {
        let mut seen = std::collections::HashSet::new();
        for index in 0..CLUSTERS_MAX {
            let network = Network {
                index,
                nodes: NODES_MAX,
            };
            assert!(seen.insert(network.control_plane().to_string()));
            assert!(seen.insert(network.name_server().to_string()));
            for node in 0..NODES_MAX {
                assert!(seen.insert(network.node(node).to_string()));
                assert!(seen.insert(network.pods(node)));
            }
        }
    }

    #[test]
    fn names_fit_a_network_interface() {
        let network = Network {
            index: CLUSTERS_MAX - 1,
            nodes: NODES_MAX,
        };
        for (name, _) in network.namespaces() {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
