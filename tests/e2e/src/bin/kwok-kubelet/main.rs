//! The kubelet's pod-resources API for nodes simulated by KWOK, with one socket per node.
//!
//! KWOK simulates a kubelet only towards the API server: it runs no containers and allocates no devices. This program
//! adds the allocation. It follows the pods that the real scheduler assigned to its nodes, allocates simulated GPUs
//! to them like the kubelet's device manager, and reports them to the node's real agent. So holders on KWOK nodes
//! show how the product handles them, not how a kubelet allocates devices; that is tested on real nodes, with
//! `gpu-plugin` and a real kubelet.

mod allocate;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config, ResourceExt as _,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use leasehold_crds::GPU_RESOURCE;
use nvidia_ml_sim::{Fixture, Gpu};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use allocate::{Allocations, PodRequest};
use api::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};

/// Generated from the API of k8s.io/kubelet.
mod api {
    #![allow(clippy::all, unreachable_pub, reason = "generated")]
    tonic::include_proto!("v1");
}

/// Serves the pod-resources API of nodes simulated by KWOK.
#[derive(Parser)]
#[command(name = "kwok-kubelet")]
struct Args {
    /// Kubeconfig with permission to watch pods.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// File that is created when every socket is served.
    #[arg(long)]
    started: PathBuf,
    /// A node and the directory of its simulated GPUs, in which its kubelet.sock is created; can be repeated.
    #[arg(long = "node", value_name = "NAME=DIR", value_parser = node)]
    nodes: Vec<(String, PathBuf)>,
}

fn node(text: &str) -> Result<(String, PathBuf), String> {
    let (name, directory) = text
        .split_once('=')
        .ok_or("a node is NAME=DIR, with the directory of its simulated GPUs")?;
    Ok((name.to_owned(), directory.into()))
}

/// The API of one node.
#[derive(Clone)]
struct Node {
    gpus: Fixture,
    allocations: Arc<Mutex<Allocations>>,
}

impl Node {
    fn at(directory: &Path) -> Self {
        Self {
            gpus: Fixture::open(directory),
            allocations: Arc::default(),
        }
    }

    fn allocations(&self) -> MutexGuard<'_, Allocations> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ids of GPUs that a device plugin would report as healthy.
    fn healthy(&self) -> anyhow::Result<Vec<String>> {
        let fit = |gpu: &&Gpu| !(gpu.faults.unplugged || gpu.faults.lost || gpu.faults.withheld);
        let file = self.gpus.read()?;
        Ok(file
            .gpus
            .iter()
            .filter(fit)
            .map(|gpu| gpu.reported_uuid().to_owned())
            .collect())
    }

    fn settle(&self, pods: &[PodRequest]) -> anyhow::Result<()> {
        let gpus = self.healthy()?;
        self.allocations().settle(pods, &gpus);
        Ok(())
    }
}

fn devices(ids: Vec<String>) -> Vec<api::ContainerDevices> {
    let one = |id| api::ContainerDevices {
        resource_name: GPU_RESOURCE.to_owned(),
        device_ids: vec![id],
        topology: None,
    };
    ids.into_iter().map(one).collect()
}

#[tonic::async_trait]
impl PodResourcesLister for Node {
    async fn list(
        &self,
        _: Request<api::ListPodResourcesRequest>,
    ) -> Result<Response<api::ListPodResourcesResponse>, Status> {
        let allocations = self.allocations();
        let pods = allocations.held().map(|held| api::PodResources {
            name: held.pod.clone(),
            namespace: held.namespace.clone(),
            containers: held
                .containers
                .iter()
                .map(|(name, ids)| api::ContainerResources {
                    name: name.clone(),
                    devices: devices(ids.clone()),
                    ..api::ContainerResources::default()
                })
                .collect(),
        });
        Ok(Response::new(api::ListPodResourcesResponse {
            pod_resources: pods.collect(),
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<api::AllocatableResourcesRequest>,
    ) -> Result<Response<api::AllocatableResourcesResponse>, Status> {
        let ids = self.healthy().map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(api::AllocatableResourcesResponse {
            devices: devices(ids),
            ..api::AllocatableResourcesResponse::default()
        }))
    }

    async fn get(
        &self,
        _: Request<api::GetPodResourcesRequest>,
    ) -> Result<Response<api::GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("not used by the agent"))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("the TLS provider is already set"))?;
    let nodes: BTreeMap<String, Node> = args
        .nodes
        .iter()
        .map(|(name, dir)| (name.clone(), Node::at(dir)))
        .collect();
    let servers = FuturesUnordered::new();
    for (name, directory) in &args.nodes {
        let socket = directory.join("kubelet.sock");
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
        let service = PodResourcesListerServer::new(nodes[name].clone());
        servers.push(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
    }
    std::fs::write(&args.started, "")?;
    tokio::select! {
        ended = servers.try_collect::<()>() => ended.context("serve"),
        ended = follow(&args.kubeconfig, &nodes) => ended,
    }
}

/// Updates the allocations of all nodes from the API server's pods.
async fn follow(kubeconfig: &Path, nodes: &BTreeMap<String, Node>) -> anyhow::Result<()> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let (pods, writer) = reflector::store();
    let stream = watcher(
        Api::<Pod>::all(Client::try_from(config)?),
        watcher::Config::default(),
    );
    let mut stream = pin!(stream.default_backoff().reflect(writer));
    while let Some(event) = stream.next().await {
        if let Err(error) = event {
            eprintln!("cannot watch pods: {error}");
            continue;
        }
        let mut all = pods.state();
        all.sort_by_key(|pod| (pod.creation_timestamp(), pod.name_any()));
        for (name, node) in nodes {
            let requests: Vec<PodRequest> = all.iter().filter_map(|pod| request(pod, name)).collect();
            node.settle(&requests)?;
        }
    }
    anyhow::bail!("the watch of pods ended")
}

/// What a pod requests of a node, if it is scheduled to it and has not ended.
fn request(pod: &Pod, node: &str) -> Option<PodRequest> {
    let spec = pod.spec.as_ref()?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if spec.node_name.as_deref() != Some(node) || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let requested = |container: &k8s_openapi::api::core::v1::Container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let count = limits.get(GPU_RESOURCE)?.0.parse().ok()?;
        Some((container.name.clone(), count))
    };
    let containers: Vec<_> = spec.containers.iter().filter_map(requested).collect();
    (!containers.is_empty()).then_some(PodRequest {
        uid: pod.uid()?,
        namespace: pod.namespace()?,
        pod: pod.name_any(),
        containers,
    })
}
