//! Network policies on a cluster that enforces them: which connections arrive without a policy, with policies, and
//! while an engine is down. Real parts throughout, so root only.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::{kubectl, may_run, says, until};
use leasehold_testcluster::{Cluster, ClusterSpec, Stderr};

/// Connects to all targets at once, and prints the names of those that accept. What is dropped stays silent: one second
/// without an answer counts as none.
const CONNECT: &str = "for target in $TARGETS; do (IFS=:; set -- $target; \
    $BUSYBOX timeout 3 $BUSYBOX nc -w 1 $2 $3 </dev/null >/dev/null 2>&1 && echo $1) & done; ";
/// Adds the Service, whose address has a meaning on nodes and in pods.
const SERVICE: &str = "TARGETS=service:10.96.0.80:80; ";
/// Asks for a name.
const ASK: &str = "($BUSYBOX timeout 1 $BUSYBOX nslookup server.workload.svc.cluster.local >/dev/null 2>&1 && echo names) & ";

/// Who tries to connect, and the names of what accepted, in alphabetical order.
type Reached = BTreeMap<&'static str, String>;

struct Sources<'a> {
    cluster: &'a Cluster,
    /// `NAME:ADDRESS:PORT`, with a space before each.
    targets: String,
}

impl Sources<'_> {
    fn reached(&self) -> Reached {
        let cluster = self.cluster;
        let busybox = &cluster.tools().busybox;
        let commands = [
            ("connector", self.pod("operator", "connector")),
            ("stranger", self.pod("operator", "stranger")),
            ("imposter", self.pod("workload", "imposter")),
            ("host", self.script(Command::new(busybox), busybox, "")),
            ("own node", self.node("node-1")),
            ("other node", self.node("node-2")),
        ];
        std::thread::scope(|scope| {
            let running = commands
                .map(|(source, mut command)| (source, scope.spawn(move || command.output().unwrap())));
            let ended = running.map(|(source, thread)| {
                let output = thread.join().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let mut names: Vec<&str> = text.lines().collect();
                names.sort_unstable();
                let seen = if output.status.success() {
                    names.join(" ")
                } else {
                    String::from_utf8_lossy(&output.stderr).into_owned()
                };
                (source, seen)
            });
            ended.into()
        })
    }

    fn pod(&self, namespace: &str, pod: &str) -> Command {
        let mut command = self.cluster.kubectl();
        command.args(["exec", "--namespace", namespace, pod, "--", "busybox"]);
        self.script(command, Path::new("busybox"), &format!("{SERVICE}{ASK}"))
    }

    fn node(&self, node: &str) -> Command {
        let busybox = &self.cluster.tools().busybox;
        self.script(
            self.cluster.node(node).command(busybox).unwrap(),
            busybox,
            SERVICE,
        )
    }

    fn script(&self, mut shell: Command, busybox: &Path, before: &str) -> Command {
        let (targets, busybox) = (&self.targets, busybox.display());
        let script =
            format!("TARGETS=; BUSYBOX={busybox}; {before}TARGETS=\"$TARGETS{targets}\"; {CONNECT}wait");
        shell.args(["sh", "-c", &script]);
        shell
    }

    /// Waits until exactly these are reached.
    async fn reach(&self, when: &str, wanted: &[(&'static str, &str)]) {
        let wanted: Reached = wanted
            .iter()
            .map(|(source, names)| (*source, (*names).to_owned()))
            .collect();
        until(when, async || {
            let seen = self.reached();
            if seen == wanted {
                Ok(())
            } else {
                Err(format!("{seen:?}, not {wanted:?}"))
            }
        })
        .await;
    }
}

async fn apply(cluster: &Cluster, stage: &str) {
    let objects = leasehold_testtools::root().join("tests/cluster/tests/network_policies.yaml");
    // A new namespace has no ServiceAccount at first, without which no pod is made.
    until(stage, async || {
        kubectl(
            cluster,
            &format!("apply -l stage={stage} -f {}", objects.display()),
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_permitted_connections_arrive() {
    if !may_run("only_permitted_connections_arrive") {
        return;
    }
    let spec = ClusterSpec::new(format!("policies-{}", std::process::id()), 2).enforcing_network_policies();
    let cluster = Cluster::up(spec, &Stderr::default()).await.unwrap();
    apply(&cluster, "pods").await;
    kubectl(
        &cluster,
        "wait pod -A -l stage=pods --for=condition=Ready --timeout=60s",
    )
    .unwrap();
    let server = kubectl(&cluster, "get pod -n workload server -o jsonpath={.status.podIP}").unwrap();
    let sources = Sources {
        cluster: &cluster,
        targets: format!(
            " declared:{server}:8080 undeclared:{server}:9090 api:{}:6443 kubelet:{}:10250",
            cluster.address(),
            // The one on the node of the connector: that packet is not forwarded.
            cluster.node("node-2").address
        ),
    };
    let everything = "api declared kubelet names service undeclared";
    let from_node = "api declared kubelet service undeclared";
    sources
        .reach(
            "everything is reached without policies",
            &[
                ("connector", everything),
                ("stranger", everything),
                ("imposter", everything),
                ("host", "api declared kubelet undeclared"),
                ("own node", from_node),
                ("other node", from_node),
            ],
        )
        .await;

    apply(&cluster, "ingress").await;
    let with_policy = [
        ("connector", "api declared kubelet names service"),
        ("stranger", "api kubelet names"),
        ("imposter", "api kubelet names"),
        ("host", "api kubelet"),
        ("own node", from_node),
        ("other node", "api kubelet"),
    ];
    sources
        .reach("only the connector reaches the declared port", &with_policy)
        .await;
    apply(&cluster, "late").await;
    kubectl(
        &cluster,
        "wait pod -n workload late --for=condition=Ready --timeout=60s",
    )
    .unwrap();

    let engine = cluster.node("node-1").network_policies().unwrap();
    engine.kill().await.unwrap();
    sources
        .reach(
            "no pod of a node is reached while its engine is down",
            &[
                ("connector", "api kubelet names"),
                ("stranger", ""),
                ("imposter", "api kubelet names"),
                ("host", "api kubelet"),
                ("own node", from_node),
                ("other node", "api kubelet"),
            ],
        )
        .await;
    engine.start().await.unwrap();
    sources.reach("policies hold again", &with_policy).await;

    for (stage, reached) in [("silent", ""), ("names", "names")] {
        apply(&cluster, stage).await;
        let mut wanted = with_policy;
        wanted[0] = ("connector", reached);
        sources
            .reach(&format!("the egress that the policy {stage} permits"), &wanted)
            .await;
    }
    says(
        &cluster,
        "get pod -n workload late -o jsonpath={.status.conditions[?(@.type=='Ready')].status}",
        "True",
    )
    .await;
    addresses_without_policies(&cluster).await;
    cluster.down().await.unwrap();
}

/// The kernel gives each pod an address of IPv6, which is valid on its node, and which no policy can name.
async fn addresses_without_policies(cluster: &Cluster) {
    let addresses = kubectl(cluster, "exec -n workload server -- ip -6 addr show dev eth0").unwrap();
    let mut words = addresses.split_whitespace();
    let address = words.find_map(|word| word.strip_suffix("/64")).unwrap();
    let connect = || {
        let nc = format!("exec -n operator stranger -- timeout 3 nc -w 1 {address}%eth0 9090");
        kubectl(cluster, &nc)
    };
    connect().unwrap_err();
    let mut flush = cluster.node("node-1").command("ip6tables").unwrap();
    assert!(flush.args(["-t", "mangle", "-F"]).status().unwrap().success());
    until("without the rules it is reached", async || connect()).await;
}
