//! Every example, and every whole object in the documentation, against a real API server with the chart's kinds: what
//! people copy is accepted as it stands, unknown fields and all.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

mod served;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use leasehold_testcluster::{Cluster, Unavailable};
use served::run;

const PATIENCE: Duration = Duration::from_secs(60);

/// Files with objects of Kubernetes and ours. The controllers' own objects in 06 are of kinds that nobody serves here.
fn files() -> Vec<PathBuf> {
    let examples = leasehold_tasks::root().join("examples");
    let mut files: Vec<PathBuf> = [examples.clone(), examples.join("06-gitops/team-a")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

/// Blocks of a page that begin with our apiVersion.
fn blocks(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let fences = text.split("```").skip(1).step_by(2);
    fences
        .filter_map(|fence| fence.strip_prefix("yaml\n"))
        .filter(|block| block.starts_with("apiVersion: leasehold.dev/"))
        .map(str::to_owned)
        .collect()
}

/// What is refused, of all that is applied without being kept.
fn refused(cluster: &Cluster, file: &Path) -> Result<(), String> {
    let mut kubectl = cluster.kubectl();
    kubectl.args(["apply", "--dry-run=server", "--validate=strict", "-f"]);
    let said = run(kubectl.arg(file))?;
    if said.contains("Warning") {
        Err(format!("{}: {said}", file.display()))
    } else {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_accepted() {
    if let Err(why) = Unavailable::check() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let cluster = served::kinds("examples").await;

    let mut files = files();
    assert!(files.len() >= 7, "{files:?}");
    for (index, block) in blocks(&leasehold_tasks::root().join("README.md"))
        .into_iter()
        .enumerate()
    {
        // The namespace is the reader's.
        let file = cluster.directory().join(format!("readme-{index}.yaml"));
        std::fs::write(&file, block.replace(", namespace: team-a", "")).unwrap();
        files.push(file);
    }
    assert!(
        files.iter().any(|f| f.ends_with("readme-0.yaml")),
        "README.md shows a lease"
    );
    // Definitions take a moment to be served.
    let deadline = Instant::now() + PATIENCE;
    while let Err(said) = refused(&cluster, &files[0]) {
        assert!(Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let failures: Vec<String> = files
        .iter()
        .filter_map(|file| refused(&cluster, file).err())
        .collect();
    cluster.down().await.unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
