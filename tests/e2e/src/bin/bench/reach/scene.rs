//! A lease with a web server, the ways to its pod, and the processes of the tunnel.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::PostParams};
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_e2e::{DOMAIN, GatewayFixture, PORT, Split, Tenant, within};
use leasehold_planner::urls::host_label;
use serde_json::json;

use super::{
    replicas::all_ready,
    way::{Way, blocking},
};
use leasehold_e2e::Watched;

const LIMIT: Duration = Duration::from_secs(90);
/// Namespace of the tenant.
const TENANT: &str = "team-a";
/// Name of the lease.
const LEASE: &str = "web";
/// Ports of plain TCP of the pod by name. The port of the node is 22,000 more.
pub(crate) const PORTS: [(&str, u16); 3] = [("raw", 9000), ("source", 9001), ("sink", 9002)];
const NODE_PORTS: u16 = 22_000;

/// The ways to the pod's ports of plain TCP.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    /// Returns each byte.
    pub(crate) raw: Way,
    /// Sends as many bytes as it is asked for.
    pub(crate) source: Way,
    /// Takes all bytes.
    pub(crate) sink: Way,
}

impl Ways {
    /// Waits until they lead to the pod.
    pub(crate) async fn until_open(&self, name: &str) -> anyhow::Result<()> {
        within(LIMIT, name, || async {
            let way = self.raw.clone();
            let echoed = blocking(move || way.echo(Duration::from_secs(1))).await;
            Ok(echoed.map(drop).map_err(|error| format!("{error:#}")))
        })
        .await
    }
}

/// The lease, and what leads to it.
pub(crate) struct Scene<'a> {
    /// Where the gateway is.
    pub(crate) fixture: &'a GatewayFixture,
    /// Address of the gateway.
    pub(crate) address: SocketAddr,
    /// Host of the port that speaks HTTP.
    pub(crate) http: String,
    /// Address of the pod.
    pub(crate) pod: String,
    /// Through the tunnel.
    pub(crate) tunnel: Ways,
    /// By a NodePort.
    pub(crate) direct: Ways,
    /// Clients of the clusters of the gateway and of the connector.
    pub(crate) clients: [Client; 2],
}

/// The two components of the tunnel, with their programs.
pub(crate) const COMPONENTS: [(&str, &str); 2] = [
    ("gateway", "leasehold-gateway"),
    ("connector", "leasehold-operator"),
];

impl<'a> Scene<'a> {
    /// Applies the lease and waits until both ways lead to its pod.
    pub(crate) async fn set(split: &'a Split, fixture: &'a GatewayFixture) -> anyhow::Result<Self> {
        let tenant = Tenant::new(&split.market, TENANT)?;
        tenant.apply(&lease()?)?;
        let active = tenant.until_phase(LEASE, Phase::Active, LIMIT).await?;
        let status = split.pod_of(&active).await?.status.unwrap_or_default();
        let pod = status.pod_ip.context("a pod with an address")?;
        node_ports(&split.client, &pod).await?;
        let address = (split.market.cluster.node("market-1").address, PORT).into();
        let node = split.provider.node("gpu-1").address;
        let scene = Self {
            fixture,
            address,
            http: host("open"),
            pod,
            tunnel: ways(|_| address)?,
            direct: ways(|port| (node, port + NODE_PORTS).into())?,
            clients: [split.market.client.clone(), split.client.clone()],
        };
        for (name, ways) in [("tunnel", &scene.tunnel), ("NodePort", &scene.direct)] {
            ways.until_open(name).await?;
        }
        Ok(scene)
    }

    /// The processes of the gateway, and those of the connector.
    pub(crate) async fn processes(&self) -> anyhow::Result<[Vec<Watched>; 2]> {
        let mut processes = [Vec::new(), Vec::new()];
        for (index, (component, program)) in COMPONENTS.into_iter().enumerate() {
            for pod in all_ready(&self.clients[index], component, LIMIT).await? {
                processes[index].push(Watched::of(&pod, program)?);
            }
        }
        Ok(processes)
    }
}

/// Host of a port at the gateway.
fn host(port: &str) -> String {
    format!("{}.{DOMAIN}", host_label(TENANT, LEASE, port, 0))
}

pub(crate) fn ways(address: impl Fn(u16) -> SocketAddr) -> anyhow::Result<Ways> {
    let [raw, source, sink] = PORTS.map(|(name, port)| Way::new(address(port), &host(name)));
    Ok(Ways {
        raw: raw?,
        source: source?,
        sink: sink?,
    })
}

/// A web server that has the whole node.
fn lease() -> anyhow::Result<GpuLease> {
    let mut ports = vec![json!({"name": "open", "port": 8081, "access": "Public"})];
    ports.extend(
        PORTS.map(
            |(name, port)| json!({"name": name, "port": port, "access": "Public", "tls": "Passthrough"}),
        ),
    );
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": LEASE, "namespace": TENANT},
        "spec": {
            "perNode": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "20Mi", "gpus": 2},
            "term": {"duration": "2h"},
            "workload": {"service": {
                "image": "leasehold.test/web:dev", "runAsUser": 65532, "ports": ports,
                "readiness": {"port": 8081, "path": "/"},
            }},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    }))?)
}

/// A Service with ports of the nodes that lead to the pod. It is outside the namespace of the lease, whose quota has no such
/// ports.
async fn node_ports(client: &Client, pod: &str) -> anyhow::Result<()> {
    let ports = PORTS.map(|(name, port)| json!({"name": name, "port": port, "nodePort": port + NODE_PORTS}));
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "direct"}, "spec": {"type": "NodePort", "ports": ports},
    }))?;
    let ports = PORTS.map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"}));
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "direct", "labels": {"kubernetes.io/service-name": "direct"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [pod]}], "ports": ports,
    }))?;
    let post = PostParams::default();
    Api::default_namespaced(client.clone())
        .create(&post, &service)
        .await?;
    Api::default_namespaced(client.clone())
        .create(&post, &slice)
        .await?;
    Ok(())
}
