//! A cluster's life, seen from outside: what a workload can do on it, what a test can do to it, and that
//! nothing is left of it, however it ended. Real parts throughout, so root only.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{kubectl, may_run, says, until};
use leasehold_testcluster::{Chain, Cluster, ClusterSpec, KwokNode, NodeSpec, Quiet, State, Stderr, sweep};

/// How long a test listens to something that must not answer.
const SILENCE: Duration = Duration::from_secs(1);

/// What an HTTP server says, if it says anything in time.
fn http(address: IpAddr, port: u16, request: &str) -> Result<String, String> {
    let error = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), SILENCE).map_err(error)?;
    stream.set_read_timeout(Some(SILENCE)).map_err(error)?;
    stream.write_all(request.as_bytes()).map_err(error)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(error)?;
    Ok(answer.trim().to_owned())
}

const GET: &str = "GET / HTTP/1.0\r\n\r\n";

/// The number of the chain's last block.
fn block(cluster: &Cluster) -> Result<u64, String> {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":[]}"#;
    let request = format!(
        "POST / HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = http(cluster.address().into(), 8545, &request)?;
    let (_, hex) = answer
        .split_once("\"result\":\"0x")
        .ok_or_else(|| answer.clone())?;
    let digits = hex.split('"').next().unwrap_or_default();
    u64::from_str_radix(digits, 16).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_does_what_a_cluster_does() {
    if !may_run("a_cluster_does_what_a_cluster_does") {
        return;
    }
    let name = format!("life-{}", std::process::id());
    let real = |name: &str| NodeSpec::named(name).label("kind", "real");
    let gpus = KwokNode::named("gpus")
        .capacity("cpu", "32")
        .capacity("memory", "128Gi")
        .capacity("nvidia.com/gpu", "4");
    let spec = ClusterSpec {
        name: name.clone(),
        nodes: vec![real("node-1"), real("node-2")],
        kwok_nodes: vec![gpus],
        chain: Chain::Own {
            block_time: Duration::from_secs(1),
        },
        enforce_network_policies: false,
    };
    let other = ClusterSpec::new(format!("other-{}", std::process::id()), 0);
    let progress = Stderr::default();
    let (cluster, other) = tokio::join!(Cluster::up(spec, &progress), Cluster::up(other, &progress));
    let (cluster, other) = (cluster.unwrap(), other.unwrap());
    for node in cluster.nodes() {
        std::fs::write(node.files.join("name"), &node.name).unwrap();
    }
    let objects = leasehold_testtools::root().join("tests/cluster/tests/objects.yaml");
    kubectl(&cluster, &format!("apply -f {}", objects.display())).unwrap();

    services_and_logs(&cluster).await;
    volumes_and_user_namespaces(&cluster).await;
    fake_nodes_and_limits(&cluster).await;
    identities(&cluster).await;
    clusters_reach_each_other(&cluster, &other).await;
    failures_on_demand(&cluster).await;
    evidence(&cluster);

    let record = State::find(&name)
        .unwrap()
        .expect("a running cluster is on record");
    cluster.down().await.unwrap();
    other.down().await.unwrap();
    nothing_is_left(&record);
}

async fn services_and_logs(cluster: &Cluster) {
    says(
        cluster,
        "get deployment web -o jsonpath={.status.readyReplicas}",
        "2",
    )
    .await;
    let mut nodes = std::collections::BTreeSet::new();
    for node in cluster.nodes() {
        // A NodePort, from the host, answered by a pod on either node.
        until("both pods answer", async || {
            let answer = http(node.address.into(), 30080, GET)?;
            nodes.insert(answer.lines().last().unwrap_or_default().to_owned());
            if nodes.len() == 2 {
                Ok(())
            } else {
                Err(format!("{nodes:?}"))
            }
        })
        .await;
    }
    assert_eq!(
        nodes.into_iter().collect::<Vec<_>>(),
        ["node-1", "node-2"],
        "each pod shows its own node's files"
    );
    assert_eq!(kubectl(cluster, "logs deployment/web").unwrap(), "serving");
    says(cluster, "get pod box -o jsonpath={.status.phase}", "Running").await;
    let name = kubectl(
        cluster,
        "exec box -- wget -qO- http://web.default.svc.cluster.local",
    )
    .unwrap();
    assert!(name.starts_with("node-"), "{name}");
    let missing = kubectl(cluster, "exec box -- nslookup nowhere.example").unwrap_err();
    assert!(!missing.contains("SERVFAIL"), "{missing}");
}

async fn volumes_and_user_namespaces(cluster: &Cluster) {
    let map = kubectl(cluster, "exec box -- cat /proc/self/uid_map").unwrap();
    let outside: Vec<u32> = map
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    assert_eq!(outside[0], 0);
    assert!(outside[1] >= 65536, "root inside must be nobody outside: {map}");

    assert_eq!(kubectl(cluster, "exec box -- cat /data/file").unwrap(), "kept");
    let volume = kubectl(cluster, "get pvc data -o jsonpath={.spec.volumeName}").unwrap();
    let node = kubectl(cluster, "get pod box -o jsonpath={.spec.nodeName}").unwrap();
    let directory = cluster.directory().join("volumes").join(node).join(&volume);
    assert_eq!(
        std::fs::read_to_string(directory.join("file")).unwrap().trim(),
        "kept"
    );
    kubectl(cluster, "delete pod box --wait=false").unwrap();
    kubectl(cluster, "delete pvc data --wait=false").unwrap();
    until("the volume goes with its claim", async || {
        let listed = kubectl(cluster, "get pv -o name")?;
        if listed.is_empty() && !directory.exists() {
            Ok(())
        } else {
            Err(listed)
        }
    })
    .await;
}

async fn fake_nodes_and_limits(cluster: &Cluster) {
    let reason = "get pod glutton -o jsonpath={.status.containerStatuses[0].state.terminated.reason}";
    says(cluster, reason, "OOMKilled").await;
    let phase = "get pod -l job-name=training -o jsonpath={.items[0].status.phase}/{.items[0].spec.nodeName}";
    says(cluster, phase, "Running/gpus").await;
    kubectl(
        cluster,
        "annotate pod -l job-name=training leasehold.test/exit-code=0",
    )
    .unwrap();
    says(cluster, "get job training -o jsonpath={.status.succeeded}", "1").await;
}

async fn identities(cluster: &Cluster) {
    use k8s_openapi::api::authentication::v1::SelfSubjectReview;
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Api, ListParams, PostParams};
    let token = cluster
        .token_on_node("default", "default", "node-1")
        .await
        .unwrap();
    let client = cluster.client_with_token(&token).await.unwrap();
    let refused = Api::<Pod>::default_namespaced(client.clone())
        .list(&ListParams::default())
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 403),
        "{refused}"
    );
    let me = Api::<SelfSubjectReview>::all(client)
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .unwrap();
    let user = me.status.unwrap().user_info.unwrap();
    assert_eq!(
        user.username.as_deref(),
        Some("system:serviceaccount:default:default")
    );
    assert_eq!(
        user.extra.unwrap()["authentication.kubernetes.io/node-name"],
        ["node-1"]
    );
}

async fn clusters_reach_each_other(cluster: &Cluster, other: &Cluster) {
    let ask = |what: &str| {
        kubectl(
            cluster,
            &format!("exec deployment/web -- timeout 3 wget -qO- {what}"),
        )
    };
    let chain = cluster.rpc_url().unwrap();
    let answer = ask(&format!(
        "--header=Content-Type:application/json --post-data={{}} {chain}"
    ));
    assert!(answer.unwrap().contains("jsonrpc"));
    // The toy client can't do TLS of this kind; the server says so in plain words.
    let address = other.api_url().replace("https", "http");
    let answers = |error: String| error.contains("400 Bad Request");
    assert!(ask(&address).is_err_and(answers));
    other.isolate().unwrap();
    assert!(!ask(&address).is_err_and(answers));
    other.rejoin().unwrap();
    assert!(ask(&address).is_err_and(answers));
}

async fn failures_on_demand(cluster: &Cluster) {
    let node = cluster.node("node-2");
    until("pod on node-2 answers", async || {
        http(node.address.into(), 30080, GET)
    })
    .await;
    node.partition().unwrap();
    http(node.address.into(), 30080, GET).unwrap_err();
    node.heal().unwrap();
    until("pod on node-2 answers again", async || {
        http(node.address.into(), 30080, GET)
    })
    .await;

    let anvil = cluster.anvil().unwrap();
    anvil.suspend().unwrap();
    block(cluster).unwrap_err();
    anvil.resume().unwrap();
    let before = until("anvil goes on", async || block(cluster)).await;
    anvil.restart().await.unwrap();
    let after = until("anvil is back", async || block(cluster)).await;
    assert!(
        after >= before,
        "a stop keeps the chain: block {before}, then {after}"
    );

    cluster.apiserver().kill().await.unwrap();
    kubectl(cluster, "get nodes --request-timeout=1s").unwrap_err();
    cluster.apiserver().start().await.unwrap();
    kubectl(cluster, "get nodes").unwrap();
}

fn evidence(cluster: &Cluster) {
    let directory = tempfile::tempdir().unwrap();
    cluster.dump(directory.path()).unwrap();
    let text = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert!(text("events.txt").contains("Scheduled"));
    assert!(text("pods.txt").contains("OOMKilled"));
    assert!(!text("components/node-1-kubelet.log").is_empty());
}

fn nothing_is_left(record: &State) {
    assert!(
        !record.directory.exists(),
        "{} is left",
        record.directory.display()
    );
    let directory = record.directory.to_str().unwrap();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        assert!(!command.contains(directory), "left running: {command}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(directory), "{mounts}");
    let words = serde_json::to_value(record).unwrap();
    let bridge = format!("lh{}", words["network"]["index"]);
    for place in ["/sys/class/net", "/run/netns"] {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            assert!(
                name != bridge && !name.starts_with(&format!("{bridge}-")),
                "{place}/{name} is left"
            );
        }
    }
    let cgroup = words["cgroup"].as_str().unwrap();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(
            !hierarchy.path().join(cgroup).exists(),
            "{cgroup} is left in {}",
            hierarchy.path().display()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_does_not_come_up_says_why_and_is_gone() {
    if !may_run("a_cluster_that_does_not_come_up_says_why_and_is_gone") {
        return;
    }
    let name = format!("broken-{}", std::process::id());
    let spec = ClusterSpec::new(&name, 0).with_kwok_nodes([KwokNode::named("odd").capacity("cpu", "many")]);
    let error = format!("{:#}", Cluster::up(spec, &Quiet).await.unwrap_err());
    assert!(error.contains("make KWOK node odd"), "{error}");
    let kept = leasehold_testcluster::cache_root()
        .unwrap()
        .join("failed")
        .join(&name);
    assert!(error.contains(kept.to_str().unwrap()), "{error}");
    assert!(std::fs::metadata(kept.join("kube-apiserver.log")).unwrap().len() > 0);
    std::fs::remove_dir_all(kept).unwrap();
    assert!(State::find(&name).unwrap().is_none());
}

/// The variable that makes the test below the owner of a cluster of that name.
const OWNER: &str = "LEASEHOLD_TEST_OWNER";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the next test, to be killed"]
async fn an_owner() {
    let name = std::env::var(OWNER).expect("this is not a test by itself");
    let spec = ClusterSpec::new(name, 1).enforcing_network_policies();
    let _cluster = Cluster::up(spec, &Quiet).await.unwrap();
    println!("UP");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_leaves_nothing_for_the_next_to_trip_over() {
    if !may_run("a_killed_owner_leaves_nothing_for_the_next_to_trip_over") {
        return;
    }
    let name = format!("killed-{}", std::process::id());
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "an_owner", "--nocapture"])
        .env(OWNER, &name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let up = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .any(|line| line.unwrap().contains("UP"));
    assert!(up, "the owner ended before its cluster was up");
    let record = State::find(&name).unwrap().unwrap();
    assert!(!record.is_abandoned());
    let refused = Cluster::up(ClusterSpec::new(&name, 0), &Quiet)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("belongs to process"), "{refused}");

    owner.kill().unwrap();
    owner.wait().unwrap();
    // Its processes die without anybody's help.
    until("the API server dies with the owner", async || {
        let address = SocketAddr::new(record.address().into(), 6443);
        match TcpStream::connect_timeout(&address, SILENCE) {
            Ok(_) => Err("it answers".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    sweep().unwrap();
    nothing_is_left(&record);
    // And its name is free.
    Cluster::up(ClusterSpec::new(&name, 0), &Quiet)
        .await
        .unwrap()
        .down()
        .await
        .unwrap();
}
