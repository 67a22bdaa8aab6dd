//! What a test asks for: the cluster's nodes and its chain. Everything else about a cluster follows.

use std::collections::BTreeMap;
use std::time::Duration;

/// A cluster to bring up. At least one real or fake node is useful, none is needed.
#[derive(Clone, Debug, Default)]
pub struct ClusterSpec {
    /// Names the run directory; one cluster of a name runs at a time per cache. Letters, digits, dashes.
    pub name: String,
    /// Nodes with a kubelet, a containerd and a kube-proxy, each in namespaces of its own. At most 8.
    pub nodes: Vec<NodeSpec>,
    /// Nodes that KWOK plays: ready at once, their pods run without containers.
    pub kwok_nodes: Vec<KwokNode>,
    pub chain: Chain,
    /// Whether the real nodes enforce network policies. If not, policies have no effect.
    pub enforce_network_policies: bool,
}

impl ClusterSpec {
    /// A cluster of `nodes` real nodes, `node-1` on, without a chain.
    #[must_use]
    pub fn new(name: impl Into<String>, nodes: usize) -> Self {
        Self {
            name: name.into(),
            nodes: (1..=nodes)
                .map(|n| NodeSpec::named(format!("node-{n}")))
                .collect(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn with_chain(mut self, chain: Chain) -> Self {
        self.chain = chain;
        self
    }

    #[must_use]
    pub fn with_kwok_nodes(mut self, nodes: impl IntoIterator<Item = KwokNode>) -> Self {
        self.kwok_nodes.extend(nodes);
        self
    }

    /// Makes each real node enforce network policies, by an engine on each.
    #[must_use]
    pub const fn enforcing_network_policies(mut self) -> Self {
        self.enforce_network_policies = true;
        self
    }
}

/// A real node.
#[derive(Clone, Debug, Default)]
pub struct NodeSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Key of a taint with the effect NoSchedule that it joins with.
    pub taint: Option<String>,
}

impl NodeSpec {
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn taint(mut self, key: &str) -> Self {
        self.taint = Some(key.to_owned());
        self
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// A node that exists for the API server and the scheduler only.
#[derive(Clone, Debug, Default)]
pub struct KwokNode {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Resource name to quantity, such as `nvidia.com/gpu` to `4`; `pods` is 110 unless named here.
    pub capacity: BTreeMap<String, String>,
    /// Key of a taint with the effect NoSchedule: what doesn't tolerate it stays on nodes that run containers.
    pub taint: Option<String>,
}

impl KwokNode {
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    #[must_use]
    pub fn capacity(mut self, resource: &str, quantity: &str) -> Self {
        self.capacity.insert(resource.to_owned(), quantity.to_owned());
        self
    }

    #[must_use]
    pub fn taint(mut self, key: &str) -> Self {
        self.taint = Some(key.to_owned());
        self
    }
}

/// Where the cluster's pods find a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chain {
    #[default]
    None,
    /// An anvil of the cluster's own, reachable from its pods, from the host and from other clusters.
    Own { block_time: Duration },
    /// Another cluster's anvil, or any other node.
    External { rpc_url: String },
}
