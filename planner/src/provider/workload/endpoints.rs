//! Addresses at which tenants reach the ports of a workload, and the results of a job. An address is published only if the
//! cluster reports it for the kind of Service that the pool uses: a load balancer without an address has none, although a
//! node port exists as well.

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
            if let Some((host, number)) = address(reservation, service, port, on_node.clone()) {
                endpoints.push(Endpoint {
                    name: port.name.clone().unwrap_or_default(),
                    host,
                    port: number.into(),
                    node: rank,
                });
            }
        }
    }
    endpoints.sort_by(|a, b| (a.node, &a.name).cmp(&(b.node, &b.name)));
    endpoints
}

/// Host and port at which the results of a rank are served. `node_host` is the address of its node.
#[must_use]
pub fn results_address<'a>(
    reservation: &GpuReservation,
    services: impl IntoIterator<Item = &'a Service>,
    rank: i64,
    node_host: Option<String>,
) -> Option<(String, i32)> {
    let rank = rank.to_string();
    let service = services
        .into_iter()
        .find(|s| label(s, LABEL_RESULTS) == Some(rank.as_str()))?;
    let port = service.spec.as_ref()?.ports.as_ref()?.first()?;
    address(reservation, service, port, node_host)
}

fn address(
    reservation: &GpuReservation,
    service: &Service,
    port: &ServicePort,
    node_host: Option<String>,
) -> Option<(String, i32)> {
    match reservation.spec.hosting.exposure {
        Exposure::LoadBalancer => Some((load_balancer(service, port.port)?, port.port)),
        Exposure::NodePort => Some((node_host?, port.node_port?)),
    }
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
        let results = results_address(&reservation, [&service(LABEL_RESULTS, ingress)], 1, host(1));
        let found: Vec<_> = found.into_iter().map(|e| (e.host, e.port)).collect();
        let results: Vec<_> = results
            .into_iter()
            .map(|(host, port)| (host, i64::from(port)))
            .collect();
        assert_eq!(found, results);
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
}
