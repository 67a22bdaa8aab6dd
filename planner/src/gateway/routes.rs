//! Which lease a host name belongs to, and where its traffic goes. It follows from the leases alone, so that every replica of
//! the gateway has the same routes.

use std::collections::HashMap;

use leasehold_crds::{
    GpuLease,
    lease::{
        GpuLeaseSpec, GpuLeaseStatus, Phase,
        workload::{PortAccess, PortTls},
    },
};

use crate::{
    provider::workload::RESULTS_PORT,
    urls::{RESULTS, host_label},
};

/// Most ranks of a lease, as its schema permits.
const RANKS_MAX: i64 = 1024;

/// Where the traffic for a host name goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Name of the GpuProvider whose connector is asked.
    pub provider: String,
    /// UID of the lease.
    pub lease_uid: String,
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub lease: String,
    /// Rank of the node in the lease, from 0.
    pub rank: i64,
    /// TCP port that is asked of the connector.
    pub port: u16,
    /// Who may open it.
    pub access: PortAccess,
    /// Where TLS ends.
    pub tls: PortTls,
    /// SHA-256 digest of the token. Without one, nobody opens a port with [`PortAccess::Token`].
    pub token_sha256: Option<[u8; 32]>,
}

/// The routes of all leases, by the first label of their host names.
#[derive(Clone, Debug, Default)]
pub struct Routes(HashMap<String, Route>);

impl Routes {
    /// The routes of these leases.
    #[must_use]
    pub fn of<'a>(leases: impl IntoIterator<Item = &'a GpuLease>) -> Self {
        Self(leases.into_iter().flat_map(of_lease).collect())
    }

    /// The route of a label, in lower case.
    #[must_use]
    pub fn get(&self, label: &str) -> Option<&Route> {
        self.0.get(label)
    }
}

/// Namespace and name of a lease.
fn key(lease: &GpuLease) -> (String, String) {
    let metadata = &lease.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// Drops what no route follows from.
pub fn trim_lease(lease: &mut GpuLease) {
    lease.metadata.labels = None;
    lease.metadata.annotations = None;
    let mut workload = std::mem::take(&mut lease.spec.workload);
    workload.clear_container();
    lease.spec = GpuLeaseSpec {
        workload,
        ..GpuLeaseSpec::default()
    };
    if let Some(status) = &mut lease.status {
        status.quote = None;
        status.endpoints.clear();
        status.conditions.clear();
    }
}

/// The routes of a lease, by label: its ports while something of it can run, and the results of its job while they are kept.
///
/// The path of a URL of results is a secret, and what is there is encrypted for the tenant. They need no token.
#[must_use]
pub fn of_lease(lease: &GpuLease) -> Vec<(String, Route)> {
    let Some(status) = &lease.status else {
        return Vec::new();
    };
    let (namespace, name) = key(lease);
    let token_sha256 = status.access_token_sha256.as_deref().and_then(digest);
    let route = |(rank, provider): (i64, &str), port: u16, access, tls| Route {
        provider: provider.to_owned(),
        lease_uid: lease.metadata.uid.clone().unwrap_or_default(),
        namespace: namespace.clone(),
        lease: name.clone(),
        rank,
        port,
        access,
        tls,
        token_sha256,
    };
    let mut routes = Vec::new();
    for node in nodes(status) {
        let label = |port: &str| host_label(&namespace, &name, port, node.0);
        if can_run(status.phase) {
            for port in lease.spec.workload.ports() {
                if let Ok(number) = u16::try_from(port.port) {
                    routes.push((label(&port.name), route(node, number, port.access, port.tls)));
                }
            }
        }
        if keeps_results(status, node.0) {
            let results = route(node, RESULTS_PORT, PortAccess::Public, PortTls::Terminate);
            routes.push((label(RESULTS), results));
        }
    }
    routes
}

/// Rank and provider of each node: legs follow one another in the order of their ranks.
fn nodes(status: &GpuLeaseStatus) -> impl Iterator<Item = (i64, &str)> {
    let legs = status.escrow.iter().flat_map(|escrow| &escrow.legs);
    let providers = legs.flat_map(|leg| (0..leg.nodes.min(RANKS_MAX)).map(|_| leg.provider.as_str()));
    (0..RANKS_MAX).zip(providers)
}

/// Whether pods of the lease can run.
const fn can_run(phase: Phase) -> bool {
    match phase {
        Phase::Provisioning | Phase::Active => true,
        Phase::Pending
        | Phase::Matched
        | Phase::Funded
        | Phase::Suspended
        | Phase::Settling
        | Phase::Closed => false,
    }
}

/// Whether the provider of a rank has reported until when it keeps the results.
fn keeps_results(status: &GpuLeaseStatus, rank: i64) -> bool {
    let mut results = status.results.iter();
    results.any(|results| results.node == rank && results.until.is_some())
}

/// 32 bytes of 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use leasehold_crds::lease::{LeaseEscrow, LeaseLeg, workload::ResultsAt};
    use serde_json::json;

    use super::*;

    /// A lease of three nodes at two providers, with a port of each kind.
    fn lease() -> GpuLease {
        let mut lease = GpuLease::default();
        lease.metadata.namespace = Some("team-a".into());
        lease.metadata.name = Some("llm".into());
        lease.metadata.uid = Some("7f1c".into());
        let ports = json!([
            {"name": "http", "port": 8000},
            {"name": "site", "port": 8080, "access": "Public"},
            {"name": "grpc", "port": 8443, "access": "Public", "tls": "Passthrough"},
        ]);
        let workload = json!({"service": {"image": "i", "ports": ports}});
        lease.spec.workload = serde_json::from_value(workload).unwrap();
        let leg = |provider: &str, nodes| LeaseLeg {
            provider: provider.into(),
            nodes,
            ..LeaseLeg::default()
        };
        lease.status = Some(GpuLeaseStatus {
            phase: Phase::Active,
            access_token_sha256: Some("ab".repeat(32)),
            escrow: Some(LeaseEscrow {
                legs: vec![leg("rhine", 2), leg("elbe", 1)],
                ..LeaseEscrow::default()
            }),
            ..GpuLeaseStatus::default()
        });
        lease
    }

    fn job(phase: Phase, until: Option<&str>) -> GpuLease {
        let mut lease = lease();
        let output = json!({"path": "/data/out", "recipients": []});
        let workload = json!({"job": {"image": "i", "output": output}});
        lease.spec.workload = serde_json::from_value(workload).unwrap();
        let status = lease.status.as_mut().unwrap();
        status.phase = phase;
        status.results = vec![ResultsAt {
            node: 2,
            url: "https://results".into(),
            until: until.map(str::to_owned),
        }];
        lease
    }

    #[test]
    fn each_port_of_each_node_leads_to_its_provider() {
        let routes = Routes::of([&lease()]);
        assert_eq!(routes.0.len(), 9);
        let route = |port: &str, rank| routes.get(&host_label("team-a", "llm", port, rank)).unwrap();
        let first = Route {
            provider: "rhine".into(),
            lease_uid: "7f1c".into(),
            namespace: "team-a".into(),
            lease: "llm".into(),
            rank: 0,
            port: 8000,
            access: PortAccess::Token,
            tls: PortTls::Terminate,
            token_sha256: Some([0xab; 32]),
        };
        assert_eq!(*route("http", 0), first);
        let of = |port: &str, rank| {
            let found = route(port, rank);
            (found.provider.as_str(), found.rank, found.port)
        };
        assert_eq!(of("http", 1), ("rhine", 1, 8000));
        assert_eq!(of("site", 2), ("elbe", 2, 8080));
        let kind = |port: &str| (route(port, 0).access, route(port, 0).tls);
        assert_eq!(kind("site"), (PortAccess::Public, PortTls::Terminate));
        assert_eq!(kind("grpc"), (PortAccess::Public, PortTls::Passthrough));
        assert_eq!(routes.get(&host_label("team-a", "llm", "http", 3)), None);
        assert_eq!(routes.get(&host_label("team-b", "llm", "http", 0)), None);
    }

    #[test]
    fn only_a_lease_that_can_run_has_routes() {
        for &phase in Phase::ALL {
            let mut lease = lease();
            lease.status.as_mut().unwrap().phase = phase;
            let expected = match phase {
                Phase::Provisioning | Phase::Active => 9,
                _ => 0,
            };
            assert_eq!(of_lease(&lease).len(), expected, "{phase}");
        }
        let mut new = lease();
        new.status = None;
        assert_eq!(of_lease(&new), []);
    }

    #[test]
    fn a_digest_that_is_none_lets_nobody_in() {
        for text in ["", "ab", &"AB".repeat(32), &"zz".repeat(32), &"ab".repeat(33)] {
            let mut lease = lease();
            lease.status.as_mut().unwrap().access_token_sha256 = Some(text.to_owned());
            let routes = of_lease(&lease);
            assert!(
                routes.iter().all(|(_, route)| route.token_sha256.is_none()),
                "{text}"
            );
        }
    }

    #[test]
    fn results_are_routed_while_they_are_kept() {
        assert_eq!(of_lease(&job(Phase::Active, None)), []);
        let routes = of_lease(&job(Phase::Closed, Some("2030-01-01T00:00:00Z")));
        let [(label, route)] = routes.as_slice() else {
            panic!("{routes:?}");
        };
        assert_eq!(*label, host_label("team-a", "llm", RESULTS, 2));
        let found = (route.provider.as_str(), route.rank, route.port, route.access);
        assert_eq!(found, ("elbe", 2, RESULTS_PORT, PortAccess::Public));
    }

    #[test]
    fn routes_follow_their_lease() {
        let mut other = lease();
        other.metadata.name = Some("other".into());
        assert_eq!(Routes::of([&lease(), &other]).0.len(), 18);
        other.status.as_mut().unwrap().phase = Phase::Settling;
        assert_eq!(Routes::of([&lease(), &other]).0.len(), 9);
    }

    /// A status that is damaged makes no endless list.
    #[test]
    fn absurd_numbers_of_nodes_are_bounded() {
        let mut lease = lease();
        let legs = &mut lease.status.as_mut().unwrap().escrow.as_mut().unwrap().legs;
        (legs[0].nodes, legs[1].nodes) = (-1, i64::MAX);
        let routes = of_lease(&lease);
        assert_eq!(routes.len(), 3 * 1024);
        assert!(routes.iter().all(|(_, route)| route.provider == "elbe"));
    }
}
