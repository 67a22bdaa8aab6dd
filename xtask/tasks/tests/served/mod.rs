//! A real API server that serves the chart's kinds, and nothing that acts on them.

use std::process::Command;

use leasehold_testcluster::{Cluster, ClusterSpec, Stderr};

/// What a command says, and whether it is content.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.success() {
        Ok(text.concat())
    } else {
        Err(format!("{command:?}: {}", text.concat()))
    }
}

/// A cluster without nodes. The kinds take a moment until they are served.
pub(crate) async fn kinds(name: &str) -> Cluster {
    let name = format!("{name}-{}", std::process::id());
    let cluster = Cluster::up(ClusterSpec::new(name, 0), &Stderr::default())
        .await
        .unwrap();
    let mut helm = cluster.helm();
    helm.args(["template", "x"])
        .arg(leasehold_tasks::root().join("charts/leasehold"));
    helm.args([
        "--set",
        "provider.enabled=false",
        "--show-only",
        "templates/crds/*",
    ]);
    let kinds = cluster.directory().join("kinds.yaml");
    std::fs::write(&kinds, run(&mut helm).unwrap()).unwrap();
    run(cluster
        .kubectl()
        .args(["apply", "--server-side", "-f"])
        .arg(&kinds))
    .unwrap();
    cluster
}
