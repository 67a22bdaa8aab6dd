//! The agent on a real node: a real kubelet, a device plugin that the kubelet knows, a token with the agent's own
//! rights and no other, containers that hold GPUs. Only the driver is simulated. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, LogParams, PostParams},
};
use leasehold_crds::{
    GpuNode,
    provider::node::{DeviceHealth, GpuNodeStatus},
    shared::conditions::find,
};
use leasehold_testcluster::{Cluster, ClusterSpec, FILES_IN_NODE, Quiet, Unavailable, oci::Image};
use nvidia_ml_sim::{Fault, Fixture};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "node-1";
const NAMESPACE: &str = "leasehold-system";
const IMAGE: &str = "test.leasehold.dev/glibc:1";

/// The agent's rights, as the chart gives them.
const RIGHTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: leasehold-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: agent, namespace: leasehold-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: leasehold-agent}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get]}
- {apiGroups: [leasehold.dev], resources: [gpunodes], verbs: [get, create]}
- {apiGroups: [leasehold.dev], resources: [gpunodes/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: leasehold-agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: leasehold-agent}
subjects: [{kind: ServiceAccount, name: agent, namespace: leasehold-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: agent, namespace: leasehold-system}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: agent, namespace: leasehold-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: agent}
subjects: [{kind: ServiceAccount, name: agent, namespace: leasehold-system}]
"#;

/// A process of the test's, ended with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Scene {
    cluster: Cluster,
    client: Client,
    fixture: Fixture,
    kubeconfig: PathBuf,
    _plugin: Running,
}

/// Tries until the answer is some, or fails with what was last seen.
async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A program that cargo builds for other packages, beside the agent's.
fn built(program: &str) -> PathBuf {
    let packages = ["-p", "leasehold-gpu-plugin", "-p", "leasehold-nvml-sim"];
    let done = Command::new(env!("CARGO"))
        .args(["build", "--quiet"])
        .args(packages)
        .status()
        .unwrap();
    assert!(done.success(), "cargo build {packages:?}");
    Path::new(env!("CARGO_BIN_EXE_leasehold-agent")).with_file_name(program)
}

/// An image with a shell and what a program of the host's needs: its loader and its libraries.
fn image(program: &Path) -> Image {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let image = ["bin", "lib", "lib64", "usr", "usr/bin", "usr/lib", "etc", "tmp"]
        .iter()
        .fold(Image::new(IMAGE), |image, directory| {
            image.directory(directory, 0o755)
        })
        .copy("bin/busybox", "/bin/busybox", 0o755)
        .link("bin/sh", "busybox");
    let mut made = vec!["/lib".to_owned(), "/lib64".to_owned()];
    libraries.fold(image, |image, library| {
        let directory = Path::new(library).parent().unwrap().to_str().unwrap().to_owned();
        let image = if made.contains(&directory) {
            image
        } else {
            image.directory(&directory, 0o755)
        };
        made.push(directory);
        image.copy(library, std::fs::canonicalize(library).unwrap(), 0o755)
    })
}

async fn scene() -> Scene {
    let cluster = Cluster::up(ClusterSpec::new("agent", 1), &Quiet).await.unwrap();
    let client = cluster.client();
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in leasehold_crds::all() {
        definitions
            .create(&PostParams::default(), &definition)
            .await
            .unwrap();
    }
    let rights = cluster.directory().join("rights.yaml");
    std::fs::write(&rights, RIGHTS).unwrap();
    let applied = cluster
        .kubectl()
        .arg("apply")
        .arg("-f")
        .arg(&rights)
        .output()
        .unwrap();
    assert!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
    let token = cluster.token_on_node(NAMESPACE, "agent", NODE).await.unwrap();
    let kubeconfig = cluster.directory().join("agent.kubeconfig");
    std::fs::write(&kubeconfig, cluster.kubeconfig_with_token(&token).unwrap()).unwrap();

    let plugin = built("gpu-plugin");
    let node = cluster.node(NODE);
    let fixture = Fixture::create(&node.files, NODE, "h100-80g-sxm", 4).unwrap();
    let archive = cluster.directory().join("image.tar");
    image(&fixture.dir().join("nvidia-smi")).write(&archive).unwrap();
    cluster.load_image(&archive).await.unwrap();
    let plugin = node
        .command(plugin)
        .unwrap()
        .arg("--gpus")
        .arg(format!("{FILES_IN_NODE}/gpus.json"))
        .spawn()
        .map(Running)
        .unwrap();
    Scene {
        cluster,
        client,
        fixture,
        kubeconfig,
        _plugin: plugin,
    }
}

impl Scene {
    /// The agent as the DaemonSet's pod on the node would run, with a short period.
    fn agent(&self) -> Running {
        self.agent_every("1s", "500ms")
    }

    fn agent_every(&self, period: &str, holders_period: &str) -> Running {
        let node = self.cluster.node(NODE);
        let mut command = node.command(env!("CARGO_BIN_EXE_leasehold-agent")).unwrap();
        command
            .args([
                "--node-name",
                NODE,
                "--namespace",
                NAMESPACE,
                "--period",
                period,
                "--holders-period",
                holders_period,
            ])
            .args(["--deadline", "2s", "--admin-address", "127.0.0.1:18080"])
            .args(["--nvml", &format!("{FILES_IN_NODE}/libnvidia-ml.so.1")])
            .args(["--sysfs", &format!("{FILES_IN_NODE}/sys")])
            .arg("--pod-logs")
            .arg(&node.pod_logs)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig);
        Running(command.spawn().unwrap())
    }

    fn fault(&self, gpu: usize, fault: &str) {
        let fault: Fault = fault.parse().unwrap();
        self.fixture.fault(gpu, &fault).unwrap();
    }

    async fn gpu_node(&self) -> Result<GpuNode, String> {
        Api::all(self.client.clone())
            .get(NODE)
            .await
            .map_err(|error| error.to_string())
    }

    async fn status(&self) -> Result<GpuNodeStatus, String> {
        self.gpu_node()
            .await?
            .status
            .ok_or_else(|| "no status".to_owned())
    }

    /// Waits for a condition's status and reason.
    async fn says(&self, kind: &str, status: &str, reason: &str) -> GpuNodeStatus {
        until(&format!("{kind}={status} {reason}"), async || {
            let seen = self.status().await?;
            match find(&seen.conditions, kind) {
                Some(condition) if condition.status == status && condition.reason == reason => Ok(seen),
                other => Err(format!("{other:?}, devices {:?}", seen.devices)),
            }
        })
        .await
    }

    async fn renewed(&self) -> Option<MicroTime> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get(NODE).await.ok()?.spec?.renew_time
    }

    /// Waits until the agent has looked at everything so many times more: it renews its lease each time.
    async fn passes(&self, count: usize) {
        for _ in 0..count {
            let last = self.renewed().await;
            until("the lease is renewed", async || {
                let now = self.renewed().await;
                if now.is_some() && now > last {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            })
            .await;
        }
    }

    /// Runs a pod that holds GPUs.
    async fn run(&self, name: &str, gpus: u32, script: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": IMAGE, "command": ["sh", "-c", script],
                    "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}},
                }],
            },
        });
        let pods = self.pods();
        until("a default service account", async || {
            let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
            pods.create(&PostParams::default(), &pod)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn phase(&self, name: &str, wanted: &str) -> Pod {
        until(&format!("{name} is {wanted}"), async || {
            let pod = self.pods().get(name).await.map_err(|error| error.to_string())?;
            match pod.status.clone().and_then(|status| status.phase) {
                Some(phase) if phase == wanted => Ok(pod),
                _ => Err(format!("{:?}", pod.status)),
            }
        })
        .await
    }
}

/// A process of the pod's container, by the host's /proc.
fn process_of(pod: &Pod) -> u32 {
    let uid = pod.uid().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(&uid))
        })
        .expect("the container has a process")
}

#[tokio::test]
async fn a_node_s_gpus_are_told_held_broken_and_healed() {
    if let Err(error) = Unavailable::check() {
        eprintln!("SKIPPED a_node_s_gpus_are_told_held_broken_and_healed: {error}");
        return;
    }
    let scene = scene().await;
    let uuids: Vec<String> = scene
        .fixture
        .read()
        .unwrap()
        .gpus
        .into_iter()
        .map(|gpu| gpu.uuid)
        .collect();

    // Without a library it says so and goes on; the library comes later, as with a driver container.
    let library = scene.fixture.library();
    let hidden = library.with_extension("hidden");
    std::fs::rename(&library, &hidden).unwrap();
    let mut agent = scene.agent();
    scene.says("Healthy", "False", "NoLibrary").await;
    std::fs::rename(&hidden, &library).unwrap();
    let status = scene.says("Healthy", "True", "AllHealthy").await;
    assert_eq!((status.class.as_str(), status.gpu_count), ("h100-80g-sxm", 4));
    assert_eq!(
        status
            .devices
            .iter()
            .map(|device| &device.uuid)
            .collect::<Vec<_>>(),
        uuids.iter().collect::<Vec<_>>()
    );
    assert_eq!(status.devices[0].nvlink_peers.len(), 3);
    scene.says("WitnessesAgree", "True", "Agree").await;
    let gpu_node = scene.gpu_node().await.unwrap();
    assert_eq!(gpu_node.owner_references()[0].kind, "Node");
    assert!(gpu_node.spec.sell);
    // A quiet node is written once: the version stays while the lease goes on.
    let version = scene.gpu_node().await.unwrap().resource_version();
    scene.passes(4).await;
    assert_eq!(
        scene.gpu_node().await.unwrap().resource_version(),
        version,
        "nothing changed, nothing is written"
    );

    // A pod holds one GPU, sees that one alone, and computes on it.
    scene.run("holder", 1, "nvidia-smi -L; exec sleep 3600").await;
    let pod = scene.phase("holder", "Running").await;
    let status = until("the holder is told", async || {
        let status = scene.status().await?;
        if status.holders.is_empty() {
            Err("no holder".to_owned())
        } else {
            Ok(status)
        }
    })
    .await;
    assert_eq!(
        (
            status.holders[0].namespace.as_str(),
            status.holders[0].pod.as_str()
        ),
        ("default", "holder")
    );
    let held = status.holders[0].uuids[0].clone();
    let log = until("the driver's words", async || {
        match scene.pods().logs("holder", &LogParams::default()).await {
            Ok(log) if !log.is_empty() => Ok(log),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(log.lines().count() == 1 && log.contains(&held), "{log}");
    let index = uuids.iter().position(|uuid| *uuid == held).unwrap();
    scene.fault(index, &format!("busy={}", process_of(&pod)));
    scene.says("NoForeignProcesses", "True", "OnlyHolders").await;
    let other = (index + 1) % 4;
    scene.fault(other, &format!("busy={}", process_of(&pod)));
    let status = scene.says("NoForeignProcesses", "False", "ForeignProcess").await;
    let message = &find(&status.conditions, "NoForeignProcesses").unwrap().message;
    assert!(
        message.contains("default/holder") && message.contains(&uuids[other]),
        "{message}"
    );
    scene.fault(other, "idle");
    scene.fault(index, "idle");
    scene.says("NoForeignProcesses", "True", "OnlyHolders").await;

    // The pod ends; within seconds nobody holds the GPU.
    scene
        .pods()
        .delete("holder", &DeleteParams::default())
        .await
        .unwrap();
    until("the pod is gone", async || {
        match scene.pods().get_opt("holder").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let gone = Instant::now();
    until("nobody holds a GPU", async || {
        match scene.status().await?.holders.as_slice() {
            [] => Ok(()),
            holders => Err(format!("{holders:?}")),
        }
    })
    .await;
    assert!(gone.elapsed() < Duration::from_secs(5), "{:?}", gone.elapsed());

    // Each fault is told with its reason, and ends in health again.
    for (fault, reason) in [
        ("lost", "GpuLost"),
        ("unplug", "GpuLost"),
        ("xid=79", "FatalXid"),
        ("ecc=2", "EccUncorrectable"),
        ("withhold", "WitnessesDisagree"),
        ("name=NVIDIA GeForce RTX 4090", "WitnessesDisagree"),
        ("bus=0000:18:00.0", "Duplicate"),
    ] {
        let broken = Instant::now();
        scene.fault(2, fault);
        scene.says("Healthy", "False", reason).await;
        eprintln!("{fault}: {reason} after {:?}", broken.elapsed());
        // The device plugin's withholding is seen before it is over, as it would be.
        let sick = matches!(fault, "lost" | "unplug" | "xid=79" | "ecc=2" | "withhold");
        until("the kubelet withholds it", async || {
            let node: k8s_openapi::api::core::v1::Node = Api::all(scene.client.clone())
                .get(NODE)
                .await
                .map_err(|error| error.to_string())?;
            let allocatable = node
                .status
                .and_then(|status| status.allocatable)
                .unwrap_or_default();
            let gpus = allocatable
                .get("nvidia.com/gpu")
                .map(|quantity| quantity.0.clone())
                .unwrap_or_default();
            if !sick || gpus == "3" { Ok(()) } else { Err(gpus) }
        })
        .await;
        scene.passes(1).await;
        scene.fault(2, "clear");
        let cleared = Instant::now();
        let status = scene.says("Healthy", "True", "AllHealthy").await;
        eprintln!("{fault}: healthy {:?} after it was cleared", cleared.elapsed());
        assert_eq!(status.devices.len(), 4, "{status:?}");
    }

    // A driver that hangs: unknown, and the agent lives on; its lease says so.
    scene.fault(1, "hang");
    let status = scene.says("Healthy", "Unknown", "NvmlHung").await;
    assert!(
        status
            .devices
            .iter()
            .all(|device| device.health == DeviceHealth::Unknown)
    );
    scene.passes(2).await;
    scene.fault(1, "clear");
    scene.says("Healthy", "True", "AllHealthy").await;

    // A restart forgets no fault: the Xid was told to the agent before.
    scene.fault(3, "xid=48");
    scene.says("Healthy", "False", "FatalXid").await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(agent.0.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let ended = agent.0.wait().unwrap();
    assert!(ended.success(), "a graceful end: {ended}");
    let agent = scene.agent();
    scene.passes(3).await;
    scene.says("Healthy", "False", "FatalXid").await;

    // A GpuNode that somebody deleted is back.
    Api::<GpuNode>::all(scene.client.clone())
        .delete(NODE, &DeleteParams::default())
        .await
        .unwrap();
    until("the GpuNode is back", async || scene.status().await.map(drop)).await;

    // Who holds its GPUs is known when a pod runs, though nobody is asked in turn: the start of a lease waits for it.
    drop(agent);
    let last = scene.renewed().await;
    let agent = scene.agent_every("60m", "60m");
    until("its one look", async || match scene.renewed().await {
        now if now > last => Ok(()),
        now => Err(format!("{now:?}")),
    })
    .await;
    scene.run("prompt", 1, "exec sleep 3600").await;
    scene.phase("prompt", "Running").await;
    let running = Instant::now();
    until("the new holder is told", async || {
        let holders = scene.status().await?.holders;
        let told = holders.iter().any(|h| h.pod == "prompt" && h.uuids.len() == 1);
        if told { Ok(()) } else { Err(format!("{holders:?}")) }
    })
    .await;
    eprintln!("holder: told {:?} after it was seen to run", running.elapsed());
    assert!(
        running.elapsed() < Duration::from_secs(2),
        "{:?}",
        running.elapsed()
    );

    drop(agent);
    let Scene { cluster, .. } = scene;
    cluster.down().await.unwrap();
}
