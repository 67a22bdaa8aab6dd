//! Addresses that no pod of a tenant may reach: everything that is not the internet, and the cluster itself.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;

/// Ranges that are not the internet: "this" network, private, carrier, loopback, link-local (metadata services), protocol assignments,
/// documentation, benchmark, multicast and reserved (IANA special-purpose registry).
const V4: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];
/// The same for IPv6, with the ranges that are translated to IPv4.
const V6: [&str; 6] = [
    "::/127",
    "64:ff9b::/96",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
    "2001:db8::/32",
];

/// Ranges that no pod of a lease may reach, each list sorted and without overlaps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EgressDenylist {
    /// IPv4 ranges, CIDR.
    pub v4: Vec<String>,
    /// IPv6 ranges, CIDR.
    pub v6: Vec<String>,
}

impl EgressDenylist {
    /// Everything that is not the internet, this cluster's nodes and their pods, and `own`: ranges that the provider's
    /// admin adds.
    #[must_use]
    pub fn of<'a>(nodes: impl IntoIterator<Item = &'a Node>, own: &[IpNet]) -> Self {
        let nodes = nodes.into_iter().flat_map(of_node);
        let fixed = V4.iter().chain(&V6).filter_map(|text| text.parse().ok());
        let (mut v4, mut v6) = (Vec::<Ipv4Net>::new(), Vec::<Ipv6Net>::new());
        for range in fixed.chain(own.iter().copied()).chain(nodes) {
            match range {
                IpNet::V4(range) => v4.push(range),
                IpNet::V6(range) => v6.push(range),
            }
        }
        Self {
            v4: Ipv4Net::aggregate(&v4).iter().map(ToString::to_string).collect(),
            v6: Ipv6Net::aggregate(&v6).iter().map(ToString::to_string).collect(),
        }
    }
}

fn of_node(node: &Node) -> Vec<IpNet> {
    let pods = node.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten());
    let addresses = node
        .status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten())
        .filter_map(|a| a.address.parse::<IpAddr>().ok());
    pods.filter_map(|text| text.parse().ok())
        .chain(addresses.map(IpNet::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_fixed_range_parses() {
        let all = EgressDenylist::of([], &[]);
        assert_eq!(all.v4, V4);
        assert_eq!(all.v6.len(), V6.len());
    }

    #[test]
    fn the_cluster_itself_is_denied_once() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"podCIDRs": ["10.42.0.0/24", "2a01:4f8:1:2::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.168.1.5"},
                {"type": "ExternalIP", "address": "95.217.3.4"},
                {"type": "Hostname", "address": "a"},
            ]},
        }))
        .unwrap();
        let own = ["95.217.3.0/28".parse().unwrap()];
        let all = EgressDenylist::of([&node], &own);
        assert!(all.v4.contains(&"95.217.3.0/28".to_owned()));
        assert!(
            !all.v4
                .iter()
                .any(|r| r.starts_with("10.42") || r.starts_with("95.217.3.4")),
            "{:?}",
            all.v4
        );
        assert!(all.v6.contains(&"2a01:4f8:1:2::/64".to_owned()));
    }
}
