//! Addresses at which tenants reach the ports of a workload, and the results of a job. An address is published only if the
//! cluster reports it for the kind of Service that the pool uses: a load balancer without an address has none, although a
//! node port exists as well. Behind the gateway of the market, only the market knows the address.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use leasehold_crds::{GpuReservation, lease::workload::Endpoint, provider::pool::Exposure};

use super::{LABEL_RANK, LABEL_RESULTS};

/// The addresses of the ports of a reservation's nodes, by rank and name. `node_host` is the address of the node on which
/// the pod of a rank runs.
#[must_use]
pub fn endpoints<'a>(
    reservation: &GpuReservation,
    services: impl IntoIterator<Item = &'a Service>,
    node_host: impl Fn(i64) -> Option<String>,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for service in services {
        let Some(rank) = label(service, LABEL_RANK).and_then(|r| r.parse::<i64>().ok()) else {
            continue;
        };
        let on_node = node_host(rank);
        for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
            let (host, number) = match address(reservation, service, port, on_node.clone()) {
                Some(Address::Direct { host, port }) => (Some(host), Some(port.into())),
                Some(Address::Gateway) => (None, None),
                None => continue,
            };
            endpoints.push(Endpoint {
                name: port.name.clone().unwrap_or_default(),
                host,
                port: number,
                url: None,
                node: rank,
            });
        }
    }
    endpoints.sort_by(|a, b| (a.node, &a.name).cmp(&(b.node, &b.name)));
    endpoints
}

/// The URL at which the results of a rank are served: `http://192.0.2.7:30080/<uid>`, or its path if they are reached through
/// the gateway of the market. `node_host` is the address of its node. The path is the allocation's UID, so that a port scan
/// does not find it.
#[must_use]
pub fn results_url<'a>(
    reservation: &GpuReservation,
    services: impl IntoIterator<Item = &'a Service>,
    rank: i64,
    node_host: Option<String>,
) -> Option<String> {
    let rank = rank.to_string();
    let service = services
        .into_iter()
        .find(|s| label(s, LABEL_RESULTS) == Some(rank.as_str()))?;
    let port = service.spec.as_ref()?.ports.as_ref()?.first()?;
    let uid = &reservation.spec.allocation_uid;
    Some(match address(reservation, service, port, node_host)? {
        Address::Direct { host, port } if host.contains(':') => format!("http://[{host}]:{port}/{uid}"),
        Address::Direct { host, port } => format!("http://{host}:{port}/{uid}"),
        Address::Gateway => format!("/{uid}"),
    })
}

/// Where a port of a Service is reached from outside the cluster.
enum Address {
    /// At this host and port.
    Direct { host: String, port: i32 },
    /// Through the gateway of the market.
    Gateway,
}

fn address(
    reservation: &GpuReservation,
    service: &Service,
    port: &ServicePort,
    node_host: Option<String>,
) -> Option<Address> {
    let (host, port) = match reservation.spec.hosting.exposure {
        Exposure::LoadBalancer => (load_balancer(service, port.port)?, port.port),
        Exposure::NodePort => (node_host?, port.node_port?),
        Exposure::Tunnel => return Some(Address::Gateway),
    };
    Some(Address::Direct { host, port })
}

/// Address of the load balancer in front of a port, unless it reports an error for the port.
fn load_balancer(service: &Service, port: i32) -> Option<String> {
    let status = service.status.as_ref()?.load_balancer.as_ref()?;
    let ingress = status.ingress.as_ref()?.iter().find(|ingress| {
        let mut reports = ingress.ports.iter().flatten();
        !reports.any(|p| p.port == port && p.error.is_some())
    })?;
    let mut named = [&ingress.ip, &ingress.hostname].into_iter().flatten();
    named.find(|host| !host.is_empty()).cloned()
}

fn label<'a>(service: &'a Service, key: &str) -> Option<&'a str> {
    service.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use leasehold_crds::provider::reservation::GpuReservationSpec;
    use serde_json::{Value, json};

    use super::*;

    fn reservation(exposure: Exposure) -> GpuReservation {
        let mut spec = GpuReservationSpec::default();
        spec.hosting.exposure = exposure;
        spec.allocation_uid = "uid-1".into();
        GpuReservation::new("lease-x", spec)
    }

    /// Kubernetes gives a Service of type LoadBalancer a node port as well.
    fn service(label: &str, ingress: &Value) -> Service {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "lease-1", "labels": {label: "1"}},
            "spec": {"ports": [{"name": "http", "port": 8080, "nodePort": 30_080}]},
            "status": {"loadBalancer": {"ingress": ingress}},
        }))
        .unwrap()
    }

    fn of(exposure: Exposure, ingress: &Value) -> Vec<(String, i64)> {
        let reservation = reservation(exposure);
        let host = |rank| (rank == 1).then(|| "192.0.2.7".to_owned());
        let found = endpoints(&reservation, [&service(LABEL_RANK, ingress)], host);
        let results = results_url(&reservation, [&service(LABEL_RESULTS, ingress)], 1, host(1));
        let found: Vec<_> = found
            .into_iter()
            .map(|e| (e.host.unwrap(), e.port.unwrap()))
            .collect();
        let urls = found
            .iter()
            .map(|(host, port)| format!("http://{host}:{port}/uid-1"));
        assert!(urls.eq(results));
        found
    }

    #[test]
    fn a_load_balancer_without_an_address_has_no_endpoint() {
        let none: [(String, i64); 0] = [];
        assert_eq!(of(Exposure::LoadBalancer, &json!([])), none);
        assert_eq!(of(Exposure::LoadBalancer, &json!([{}])), none);
        assert_eq!(of(Exposure::LoadBalancer, &json!([{"ip": ""}])), none);
        let refused = json!([{"ip": "198.51.100.1", "ports": [{"port": 8080, "protocol": "TCP", "error": "PortInUse"}]}]);
        assert_eq!(of(Exposure::LoadBalancer, &refused), none);
        assert_eq!(
            of(Exposure::LoadBalancer, &json!([{"ip": "198.51.100.1"}])),
            [("198.51.100.1".to_owned(), 8080)]
        );
        assert_eq!(
            of(Exposure::LoadBalancer, &json!([{"hostname": "lb.example"}])),
            [("lb.example".to_owned(), 8080)]
        );
    }

    #[test]
    fn a_node_port_is_reached_at_its_node() {
        assert_eq!(
            of(Exposure::NodePort, &json!([])),
            [("192.0.2.7".to_owned(), 30_080)]
        );
    }

    #[test]
    fn a_port_behind_the_gateway_has_no_host_and_no_node_port() {
        let reservation = reservation(Exposure::Tunnel);
        let host = |_| Some("192.0.2.7".to_owned());
        let ports = service(LABEL_RANK, &json!([{"ip": "198.51.100.1"}]));
        let found = endpoints(&reservation, [&ports], host);
        let expected = Endpoint {
            name: "http".into(),
            node: 1,
            ..Endpoint::default()
        };
        assert_eq!(found, [expected]);
        let results = service(LABEL_RESULTS, &json!([]));
        let url = |services: &[&Service]| results_url(&reservation, services.iter().copied(), 1, host(1));
        assert_eq!(url(&[&results]).as_deref(), Some("/uid-1"));
        assert_eq!(url(&[]), None);
        assert_eq!(endpoints(&reservation, [], host), []);
    }

    #[test]
    fn an_ipv6_address_is_in_brackets_in_a_url() {
        let reservation = reservation(Exposure::NodePort);
        let results = service(LABEL_RESULTS, &json!([]));
        let url = results_url(&reservation, [&results], 1, Some("2001:db8::7".into()));
        assert_eq!(url.as_deref(), Some("http://[2001:db8::7]:30080/uid-1"));
    }
}
