//! A real Kubernetes on one machine, for tests and for hands: etcd, API server, controllers and scheduler
//! from their published modules; nodes with a kubelet and containerd each, whose pods are containers; a
//! chain; and thousands of nodes that only look so. It needs root, no registry and no virtual machine.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use leasehold_testcluster::{Cluster, ClusterSpec, Quiet};
//! let cluster = Cluster::up(ClusterSpec::new("docs", 2), &Quiet).await?;
//! println!("KUBECONFIG={}", cluster.kubeconfig_path().display());
//! cluster.down().await?;
//! # Ok(())
//! # }
//! ```

mod base;
mod blocking;
mod cgroup;
mod chain;
mod cluster;
mod control_plane;
mod credentials;
mod dump;
mod images;
mod kubelet;
mod kwok;
mod lifeline;
mod network;
mod node;
pub mod oci;
mod policies;
mod power;
mod process;
mod runtime;
mod spec;
mod ssh;
mod start;
mod state;

pub use base::STORAGE_CLASS;
pub use chain::{ACCOUNTS, Account};
pub use cluster::Cluster;
pub use images::BUSYBOX;
pub use leasehold_testtools::{Progress, Quiet, Stderr, Tools, cache::root as cache_root};
pub use network::{CLUSTERS_MAX, NODES_MAX};
pub use node::{FILES_IN_NODE, KUBELET_ROOT_IN_NODE, Node};
pub use process::Process;
pub use spec::{Chain, ClusterSpec, KwokNode, NodeSpec};
pub use ssh::ssh_key;
pub use state::{State, sweep};

/// Why no cluster can run here. A caller that gets it skips, and says loudly what it left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error(
        "a test cluster makes network and mount namespaces and control groups, for which it must run as root"
    )]
    NotRoot,
    /// The runner asked for the tests without a cluster.
    #[error("the quick tests are wanted, those without a cluster (LEASEHOLD_TESTS=quick)")]
    NotWanted,
}

impl Unavailable {
    /// # Errors
    /// When this process can't bring a cluster up.
    pub fn check() -> Result<(), Self> {
        if std::env::var("LEASEHOLD_TESTS").is_ok_and(|wanted| wanted == "quick") {
            Err(Self::NotWanted)
        } else if nix::unistd::geteuid().is_root() {
            Ok(())
        } else {
            Err(Self::NotRoot)
        }
    }
}
