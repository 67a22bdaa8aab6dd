//! The kubelet's pod-resources API: which GPUs the device plugin advertises as healthy, and which pods hold them.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::sources::facts::Source;

pub(crate) mod pod_events;

/// Generated from the API of k8s.io/kubelet. The server side is used by tests.
pub(crate) mod api {
    #![allow(clippy::all, dead_code, unreachable_pub, reason = "generated")]
    tonic::include_proto!("v1");
}

use api::pod_resources_lister_client::PodResourcesListerClient;

/// All resources of NVIDIA's device plugin: whole GPUs, and MIG slices under resource names of their own.
const RESOURCES: &str = "nvidia.com/";
/// Time limit of one call. The kubelet answers from memory.
const DEADLINE: Duration = Duration::from_secs(2);
/// The kubelet's own limit.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Devices and holders as the kubelet reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Ids of healthy devices, held or not.
    pub(crate) allocatable: BTreeSet<String>,
    /// Ids of devices that are advertised as several replicas, so that several containers can get the same one.
    pub(crate) shared: BTreeSet<String>,
    pub(crate) holders: Vec<Holder>,
}

/// A pod that holds GPUs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Ids of GPUs or MIG slices.
    pub(crate) ids: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeletError {
    #[error("cannot use the socket: {0}")]
    Endpoint(#[from] tonic::transport::Error),
    #[error("the kubelet's pod-resources API does not answer ({}); mount its socket, or set --pod-resources to its path", .0.message())]
    Call(#[from] Status),
}

/// A client of the kubelet's socket. It connects with a call, and again after a restart of the kubelet.
pub(crate) struct Kubelet {
    client: Option<PodResourcesListerClient<Channel>>,
}

impl Kubelet {
    /// `None` if this node has no kubelet.
    pub(crate) fn at(socket: Option<PathBuf>) -> Self {
        Self {
            client: socket.map(client),
        }
    }

    pub(crate) async fn read(&self) -> Source<Allocation> {
        let Some(client) = &self.client else {
            return Source::Absent;
        };
        Source::from(ask(client.clone()).await)
    }
}

fn client(socket: PathBuf) -> PodResourcesListerClient<Channel> {
    // The address is not used; the connector connects to the socket.
    let channel = Endpoint::from_static("http://localhost")
        .timeout(DEADLINE)
        .connect_timeout(DEADLINE);
    let channel = channel.connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }));
    PodResourcesListerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

async fn ask(mut client: PodResourcesListerClient<Channel>) -> Result<Allocation, KubeletError> {
    let devices = client
        .get_allocatable_resources(api::AllocatableResourcesRequest {})
        .await?
        .into_inner()
        .devices;
    let pods = client
        .list(api::ListPodResourcesRequest {})
        .await?
        .into_inner()
        .pod_resources;
    let mut holders: Vec<Holder> = pods.into_iter().filter_map(holder).collect();
    holders.sort();
    Ok(Allocation {
        allocatable: ids(&devices),
        shared: replicated(&devices),
        holders,
    })
}

fn holder(pod: api::PodResources) -> Option<Holder> {
    let ids: BTreeSet<String> = pod
        .containers
        .iter()
        .flat_map(|container| ids(&container.devices))
        .collect();
    (!ids.is_empty()).then_some(Holder {
        namespace: pod.namespace,
        pod: pod.name,
        ids,
    })
}

fn ids(devices: &[api::ContainerDevices]) -> BTreeSet<String> {
    advertised(devices)
        .map(|id| replicated_gpu(id).unwrap_or(id).to_owned())
        .collect()
}

fn replicated(devices: &[api::ContainerDevices]) -> BTreeSet<String> {
    advertised(devices)
        .filter_map(replicated_gpu)
        .map(str::to_owned)
        .collect()
}

fn advertised(devices: &[api::ContainerDevices]) -> impl Iterator<Item = &str> {
    let ours = devices
        .iter()
        .filter(|devices| devices.resource_name.starts_with(RESOURCES));
    ours.flat_map(|devices| &devices.device_ids).map(String::as_str)
}

/// The GPU of a replica. A device plugin with time-slicing or MPS appends `::` and a replica number to the id of the GPU.
fn replicated_gpu(id: &str) -> Option<&str> {
    id.split_once("::").map(|(gpu, _)| gpu)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use api::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
    use tokio::{net::UnixListener, sync::Mutex};
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response};

    use super::*;

    /// A pod-resources server whose devices and pods a test sets.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<(Vec<String>, Vec<api::PodResources>)>>);

    fn devices(resource: &str, ids: &[&str]) -> api::ContainerDevices {
        api::ContainerDevices {
            resource_name: resource.to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            topology: None,
        }
    }

    #[tonic::async_trait]
    impl PodResourcesLister for Fake {
        async fn list(
            &self,
            _: Request<api::ListPodResourcesRequest>,
        ) -> Result<Response<api::ListPodResourcesResponse>, Status> {
            Ok(Response::new(api::ListPodResourcesResponse {
                pod_resources: self.0.lock().await.1.clone(),
            }))
        }
        async fn get_allocatable_resources(
            &self,
            _: Request<api::AllocatableResourcesRequest>,
        ) -> Result<Response<api::AllocatableResourcesResponse>, Status> {
            let ids = self.0.lock().await.0.clone();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let devices = vec![
                devices("nvidia.com/gpu", &ids),
                devices("example.org/nic", &["nic-0"]),
            ];
            Ok(Response::new(api::AllocatableResourcesResponse {
                devices,
                ..Default::default()
            }))
        }
        async fn get(
            &self,
            _: Request<api::GetPodResourcesRequest>,
        ) -> Result<Response<api::GetPodResourcesResponse>, Status> {
            Err(Status::unimplemented("not used by the agent"))
        }
    }

    fn pod(name: &str, containers: Vec<Vec<api::ContainerDevices>>) -> api::PodResources {
        let containers = containers
            .into_iter()
            .map(|devices| api::ContainerResources {
                name: "c".to_owned(),
                devices,
                ..Default::default()
            })
            .collect();
        api::PodResources {
            name: name.to_owned(),
            namespace: "team-a".to_owned(),
            containers,
        }
    }

    #[tokio::test]
    async fn holders_and_allocatable_are_read_again_after_the_kubelet_was_away() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kubelet.sock");
        let kubelet = Kubelet::at(Some(socket.clone()));
        let Source::Unavailable(why) = kubelet.read().await else {
            panic!("the socket does not exist yet")
        };
        assert!(why.contains("--pod-resources"), "{why}");

        let fake = Fake::default();
        *fake.0.lock().await = (
            vec!["GPU-a".to_owned(), "GPU-b::0".to_owned(), "GPU-b::1".to_owned()],
            vec![
                pod("plain", vec![vec![]]),
                pod(
                    "busy",
                    vec![
                        vec![devices("nvidia.com/gpu", &["GPU-a"])],
                        vec![devices("nvidia.com/mig-1g.10gb", &["MIG-x"])],
                    ],
                ),
            ],
        );
        let serve = || {
            let listener = UnixListener::bind(&socket).unwrap();
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(PodResourcesListerServer::new(fake.clone()))
                    .serve_with_incoming(UnixListenerStream::new(listener)),
            )
        };
        let text = |list: &[&str]| list.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        let expected = Allocation {
            allocatable: text(&["GPU-a", "GPU-b"]),
            shared: text(&["GPU-b"]),
            holders: vec![Holder {
                namespace: "team-a".to_owned(),
                pod: "busy".to_owned(),
                ids: text(&["GPU-a", "MIG-x"]),
            }],
        };
        for _ in 0..2 {
            let server = serve();
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            loop {
                match kubelet.read().await {
                    Source::Reported(said) => {
                        assert_eq!(said, expected);
                        break;
                    }
                    other => assert!(tokio::time::Instant::now() < deadline, "{other:?}"),
                }
            }
            server.abort();
            server.await.unwrap_err();
            std::fs::remove_file(&socket).unwrap();
        }
    }

    #[tokio::test]
    async fn a_node_without_a_kubelet_has_no_such_source() {
        assert_eq!(Kubelet::at(None).read().await, Source::Absent);
    }
}
