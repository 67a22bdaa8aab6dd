//! The plugin as a process, with the kubelet's side of the protocol over real unix sockets.
#![allow(clippy::unwrap_used, reason = "a failed step of a test panics")]

mod api {
    #![allow(clippy::all, unreachable_pub, reason = "generated")]
    tonic::include_proto!("v1beta1");
}

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use api::{
    device_plugin_client::DevicePluginClient,
    registration_server::{Registration, RegistrationServer},
};
use hyper_util::rt::TokioIo;
use nvidia_ml_sim::Fixture;
use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// The plugin's process, killed when the test ends.
struct Plugin(Child);

impl Drop for Plugin {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Registered(mpsc::Sender<api::RegisterRequest>);

#[tonic::async_trait]
impl Registration for Registered {
    async fn register(&self, request: Request<api::RegisterRequest>) -> Result<Response<api::Empty>, Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(Response::new(api::Empty {}))
    }
}

/// The registration server of a kubelet. Like the real one, it empties its directory when it starts.
struct Kubelet {
    sockets: PathBuf,
    registered: mpsc::Receiver<api::RegisterRequest>,
    server: JoinHandle<()>,
}

impl Kubelet {
    fn start(dir: &Path) -> Self {
        let sockets = dir.join("device-plugins");
        fs::create_dir_all(&sockets).unwrap();
        for entry in fs::read_dir(&sockets).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let (sender, registered) = mpsc::channel(8);
        let listener = UnixListener::bind(sockets.join("kubelet.sock")).unwrap();
        let server = tokio::spawn(async move {
            Server::builder()
                .add_service(RegistrationServer::new(Registered(sender)))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            sockets,
            registered,
            server,
        }
    }

    async fn plugin(&mut self) -> (api::RegisterRequest, DevicePluginClient<Channel>) {
        let request = timeout(PATIENCE, self.registered.recv())
            .await
            .expect("the plugin registers")
            .unwrap();
        let socket = self.sockets.join(&request.endpoint);
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        (request, DevicePluginClient::new(channel))
    }
}

struct Scene {
    _dir: TempDir,
    kubelet_dir: PathBuf,
    fixture: Fixture,
    _plugin: Plugin,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let kubelet_dir = dir.path().join("kubelet");
    let fixture = Fixture::create(&dir.path().join("node"), "n1", "h100-80g-sxm", 4).unwrap();
    let plugin = Command::new(env!("CARGO_BIN_EXE_gpu-plugin"))
        .arg("--kubelet-dir")
        .arg(&kubelet_dir)
        .arg("--gpus")
        .arg(fixture.file())
        .spawn()
        .unwrap();
    Scene {
        _dir: dir,
        kubelet_dir,
        fixture,
        _plugin: Plugin(plugin),
    }
}

async fn next(lists: &mut Streaming<api::ListAndWatchResponse>) -> Vec<(String, String)> {
    let list = timeout(PATIENCE, lists.message())
        .await
        .expect("a list before the deadline")
        .unwrap()
        .unwrap();
    list.devices
        .into_iter()
        .map(|device| (device.id, device.health))
        .collect()
}

#[tokio::test]
async fn gpus_are_advertised_withheld_and_allocated() {
    let scene = scene();
    let uuids: Vec<String> = scene
        .fixture
        .read()
        .unwrap()
        .gpus
        .into_iter()
        .map(|gpu| gpu.uuid)
        .collect();
    let mut kubelet = Kubelet::start(&scene.kubelet_dir);
    let (request, mut plugin) = kubelet.plugin().await;
    assert_eq!(request.resource_name, "nvidia.com/gpu");
    assert_eq!(request.version, "v1beta1");

    let mut lists = plugin.list_and_watch(api::Empty {}).await.unwrap().into_inner();
    let all: Vec<_> = uuids
        .iter()
        .map(|uuid| (uuid.clone(), "Healthy".to_owned()))
        .collect();
    assert_eq!(next(&mut lists).await, all);

    scene.fixture.fault(1, &"xid=79".parse().unwrap()).unwrap();
    assert_eq!(
        next(&mut lists).await[1],
        (uuids[1].clone(), "Unhealthy".to_owned())
    );
    scene.fixture.fault(2, &"unplug".parse().unwrap()).unwrap();
    assert_eq!(next(&mut lists).await.len(), 3);

    let ask = |uuid: &str| api::AllocateRequest {
        container_requests: vec![api::ContainerAllocateRequest {
            devices_ids: vec![uuid.to_owned()],
        }],
    };
    let granted = plugin
        .allocate(ask(&uuids[3]))
        .await
        .unwrap()
        .into_inner()
        .container_responses
        .remove(0);
    assert_eq!(granted.envs["NVIDIA_VISIBLE_DEVICES"], uuids[3]);
    let places: Vec<&str> = granted
        .mounts
        .iter()
        .map(|mount| mount.container_path.as_str())
        .collect();
    assert_eq!(
        places,
        [
            "/etc/nvml-sim",
            "/usr/lib/libnvidia-ml.so.1",
            "/usr/bin/nvidia-smi"
        ]
    );
    assert!(
        granted
            .mounts
            .iter()
            .all(|mount| mount.read_only && Path::new(&mount.host_path).exists())
    );
    assert!(
        plugin.allocate(ask(&uuids[1])).await.is_err(),
        "an unhealthy GPU is not allocated"
    );

    scene.fixture.fault(1, &"clear".parse().unwrap()).unwrap();
    assert_eq!(
        next(&mut lists).await[1],
        (uuids[1].clone(), "Healthy".to_owned())
    );
}

#[tokio::test]
async fn the_plugin_registers_again_with_a_restarted_kubelet() {
    let scene = scene();
    for _ in 0..3 {
        let mut kubelet = Kubelet::start(&scene.kubelet_dir);
        let (_, mut plugin) = kubelet.plugin().await;
        let mut lists = plugin.list_and_watch(api::Empty {}).await.unwrap().into_inner();
        assert_eq!(next(&mut lists).await.len(), 4);
        kubelet.server.abort();
    }
}
