//! A node with everything that the agent needs: a kubelet, a device plugin, the agent's permissions, a simulated
//! driver.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use leasehold_crds::{GpuNode, provider::node::GpuNodeStatus, shared::conditions::find};
use leasehold_testcluster::{Cluster, ClusterSpec, FILES_IN_NODE, Quiet, oci::Image};
use nvidia_ml_sim::{Fault, Fixture};
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(60);
pub const NODE: &str = "node-1";
const NAMESPACE: &str = "leasehold-system";
const IMAGE: &str = "test.leasehold.dev/glibc:1";

/// The agent's permissions, as in the chart.
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
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: agent, namespace: leasehold-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: agent}
subjects: [{kind: ServiceAccount, name: agent, namespace: leasehold-system}]
"#;

/// A child process, killed when the value is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub struct Scene {
    pub cluster: Cluster,
    pub client: Client,
    pub fixture: Fixture,
    pub kubeconfig: PathBuf,
    _plugin: Running,
}

/// Retries until the attempt succeeds, or fails with the last error.
pub async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Builds the programs of other packages and returns the path of one.
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

/// An image with a shell and the libraries that a program of the host needs.
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

pub async fn scene() -> Scene {
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
    /// Starts the agent as the DaemonSet's pod would, with a short period.
    pub fn agent(&self) -> Running {
        self.agent_every("1s", "500ms")
    }

    pub fn agent_every(&self, period: &str, holders_period: &str) -> Running {
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

    pub fn fault(&self, gpu: usize, fault: &str) {
        let fault: Fault = fault.parse().unwrap();
        self.fixture.fault(gpu, &fault).unwrap();
    }

    pub async fn gpu_node(&self) -> Result<GpuNode, String> {
        Api::all(self.client.clone())
            .get(NODE)
            .await
            .map_err(|error| error.to_string())
    }

    pub async fn status(&self) -> Result<GpuNodeStatus, String> {
        self.gpu_node()
            .await?
            .status
            .ok_or_else(|| "no status".to_owned())
    }

    /// Waits until the condition has that status and reason.
    pub async fn condition(&self, kind: &str, status: &str, reason: &str) -> GpuNodeStatus {
        until(&format!("{kind}={status} {reason}"), async || {
            let seen = self.status().await?;
            match find(&seen.conditions, kind) {
                Some(condition) if condition.status == status && condition.reason == reason => Ok(seen),
                other => Err(format!("{other:?}, devices {:?}", seen.devices)),
            }
        })
        .await
    }

    pub async fn renewed(&self) -> Option<MicroTime> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get(NODE).await.ok()?.spec?.renew_time
    }

    /// Annotations of the agent's Lease.
    pub async fn annotations(&self) -> Option<BTreeMap<String, String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get(NODE).await.ok()?.metadata.annotations
    }

    /// Waits for that many further observations, each of which renews the Lease.
    pub async fn observations(&self, count: usize) {
        for _ in 0..count {
            let last = self.renewed().await;
            until("the Lease is renewed", async || {
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

    /// Creates a pod that holds GPUs.
    pub async fn run(&self, name: &str, gpus: u32, script: &str) {
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
        until(
            "the pod is created, once the default service account exists",
            async || {
                let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
                pods.create(&PostParams::default(), &pod)
                    .await
                    .map(drop)
                    .map_err(|error| error.to_string())
            },
        )
        .await;
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub async fn phase(&self, name: &str, wanted: &str) -> Pod {
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

/// Pid of a process in the pod's container, from the host's /proc.
pub fn process_of(pod: &Pod) -> u32 {
    let uid = pod.uid().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(&uid))
        })
        .expect("the container has a process")
}
