//! The chart's life on a real cluster: what values ask for is applied, `helm test` passes, an uninstallation under live
//! leases is refused and lists them, and one that is not refused keeps what people own.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

use std::process::Command;
use std::time::{Duration, Instant};

use leasehold_tasks::image::{self, Profile};
use leasehold_testcluster::{Cluster, ClusterSpec, Stderr, Unavailable};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// What it says, and whether it is content.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.success(), text.concat())
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let (good, text) = run(command);
    assert!(good, "{command:?}: {text}");
    text
}

fn helm(cluster: &Cluster, words: &str) -> Command {
    let mut helm = cluster.helm();
    helm.args(words.split_whitespace())
        .args(["--namespace", "leasehold-system"]);
    helm
}

fn kubectl(cluster: &Cluster, words: &str) -> Command {
    let mut kubectl = cluster.kubectl();
    kubectl.args(words.split_whitespace());
    kubectl
}

fn values() -> Value {
    let address = format!("0x{}", "1".repeat(40));
    json!({
        // The operators are not what is tried here; the checks run by the same image.
        "market": {"replicas": 0, "providers": [{"name": "elbe", "payee": address, "controller": address}]},
        "provider": {"replicas": 0, "name": "rhine-west", "payee": address, "controller": address, "region": "eu-west"},
        "agent": {"enabled": false},
        "pools": [{"name": "h100", "pricePerGpuHour": "1.85", "network": "base", "maxDuration": "2h"}],
    })
}

fn reservation(name: &str, provider: &str) -> Value {
    let (address, hash) = (format!("0x{}", "2".repeat(40)), format!("0x{}", "3".repeat(64)));
    json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuReservation", "metadata": {"name": name},
        "spec": {
            "market": "default", "allocationNamespace": format!("provider-{provider}"), "allocationName": name,
            "allocationUid": "u", "deadline": 4_000_000_000_u64,
            "allocation": {
                "lease": {"namespace": "team-a", "name": "train", "uid": "u"}, "round": 1, "leg": 0, "nodes": 1,
                "pool": "h100", "class": "h100-80g-sxm", "pricePerGpuHour": "1.85", "deposit": "1", "onFundsEnd": "Close",
                "notAfter": 4_000_000_000_u64, "openBy": 4_000_000_000_u64,
                "perNode": {"cpu": "1", "memory": "1Gi", "gpus": 1}, "workload": {"job": {"image": "busybox"}},
                "escrow": {
                    "chainId": 1, "contract": address, "token": address, "payer": address, "market": address,
                    "closer": address, "salt": hash, "id": hash, "startBy": 1, "noticeSeconds": 0, "pauseFor": 0,
                    "legs": [{"payee": address, "controller": address, "rate": "1"}],
                },
            },
        },
    })
}

fn apply(cluster: &Cluster, object: &Value) {
    let file = cluster.directory().join("object.json");
    std::fs::write(&file, object.to_string()).unwrap();
    succeed(kubectl(cluster, "apply -f").arg(&file));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_not_pulled_from_under_live_leases() {
    if let Err(error) = Unavailable::check() {
        eprintln!("SKIPPED uninstall: {error}");
        return;
    }
    let archives = tokio::task::spawn_blocking(|| {
        image::build(&["operator"], Profile::Dev, "dev", &image::default_folder()).unwrap()
    })
    .await
    .unwrap();
    let cluster = Cluster::up(ClusterSpec::new("uninstall", 1), &Stderr::default())
        .await
        .unwrap();
    cluster.load_image(&archives[0].path).await.unwrap();
    let file = cluster.directory().join("values.json");
    std::fs::write(&file, values().to_string()).unwrap();

    succeed(&mut with_chart(&cluster, "install leasehold --create-namespace"));
    values_are_applied(&cluster).await;
    live_leases_prevent_an_uninstallation(&cluster);
    an_uninstallation_keeps_what_people_own(&cluster);

    // Leases are live, and the administrator forces the uninstallation.
    succeed(&mut with_chart(&cluster, "install leasehold"));
    apply(&cluster, &reservation("lease-live", "rhine-west"));
    succeed(&mut with_chart(
        &cluster,
        "upgrade leasehold --set uninstall.force=true",
    ));
    succeed(&mut helm(&cluster, "uninstall leasehold --timeout 60s"));
    cluster.down().await.unwrap();
}

/// helm with the chart and the values of this test.
fn with_chart(cluster: &Cluster, words: &str) -> Command {
    let mut helm = helm(cluster, words);
    helm.arg(leasehold_tasks::root().join("charts/leasehold"))
        .arg("--values")
        .arg(cluster.directory().join("values.json"));
    helm
}

async fn values_are_applied(cluster: &Cluster) {
    // What values ask for is there although its kinds came with the same release.
    let deadline = Instant::now() + PATIENCE;
    let found = "get gpupools,gpuproviders -o jsonpath={.items[*].metadata.name}";
    while run(&mut kubectl(cluster, found)).1 != "h100 elbe rhine-west" {
        let jobs = || run(&mut kubectl(cluster, "-n leasehold-system describe pods")).1;
        assert!(
            Instant::now() < deadline,
            "{}\n{}",
            run(&mut kubectl(cluster, found)).1,
            jobs()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let tested = succeed(&mut helm(cluster, "test leasehold --logs --timeout 60s"));
    for line in [
        "gpuleases.leasehold.dev is served",
        "leasehold-system:leasehold-provider may create namespaces",
    ] {
        assert!(
            tested.contains(&format!("ok   {line}")),
            "no {line:?} in\n{tested}"
        );
    }
}

fn live_leases_prevent_an_uninstallation(cluster: &Cluster) {
    apply(cluster, &reservation("lease-live", "rhine-west"));
    apply(cluster, &reservation("lease-of-another-release", "oder"));
    apply(cluster, &reservation("lease-kept", "rhine-west"));
    let kept = json!({"status": {
        "stoppedAt": "2026-01-01T00:00:00Z",
        "results": [{"node": 0, "url": "http://192.0.2.1:30000/u", "until": "2026-01-02T00:00:00Z"}],
    }});
    let patch = "patch gpureservation lease-kept --subresource=status --type=merge -p";
    succeed(kubectl(cluster, patch).arg(kept.to_string()));
    let (went, said) = run(&mut helm(cluster, "uninstall leasehold --timeout 60s"));
    assert!(
        said.contains("GpuReservation lease-kept keeps a job's results until 2026-01-02T00:00:00Z"),
        "{said}"
    );
    assert!(!went && said.contains("GpuReservation lease-live"), "{said}");
    assert!(!said.contains("lease-of-another-release"), "{said}");
    succeed(&mut kubectl(
        cluster,
        "-n leasehold-system get deployment leasehold-market leasehold-provider",
    ));
    // The way back that it names leads to a release that can be worked with.
    assert!(said.contains("helm rollback RELEASE REVISION"), "{said}");
    succeed(&mut helm(cluster, "rollback leasehold 1"));
    succeed(&mut with_chart(cluster, "upgrade leasehold"));
}

fn an_uninstallation_keeps_what_people_own(cluster: &Cluster) {
    succeed(&mut kubectl(
        cluster,
        "delete gpureservation lease-live lease-kept",
    ));
    // A namespace goes after what is in it, and nothing can be installed into it before.
    succeed(&mut helm(cluster, "uninstall leasehold --wait --timeout 60s"));
    let kinds = succeed(&mut kubectl(
        cluster,
        "get crd -l app.kubernetes.io/part-of=leasehold -o name",
    ));
    assert_eq!(kinds.lines().count(), leasehold_crds::all().len(), "{kinds}");
    let pool = "get gpupool h100 -o jsonpath={.spec.maxDuration}";
    assert_eq!(
        succeed(&mut kubectl(cluster, pool)),
        "2h",
        "what people own is still there"
    );
    let left = succeed(&mut kubectl(
        cluster,
        "get clusterroles,clusterrolebindings,validatingadmissionpolicies -l app.kubernetes.io/instance=leasehold -o name",
    ));
    assert_eq!(
        left.trim(),
        "clusterrole.rbac.authorization.k8s.io/leasehold-tenant-access"
    );
}
