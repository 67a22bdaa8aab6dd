//! The command line, which examples and tests of other crates call.
#![allow(clippy::unwrap_used, reason = "a failed step of a test panics")]

use std::process::{Command, Output};

use nvidia_ml_sim::Fixture;

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvml-sim"))
        .args(args)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_node_is_created_gets_a_fault_and_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    text(&sim(&[
        "init",
        "--dir",
        path,
        "--node",
        "n1",
        "--model",
        "h100-80g-sxm",
        "--gpus",
        "4",
    ]));
    let uuids: Vec<String> = Fixture::open(dir.path())
        .read()
        .unwrap()
        .gpus
        .into_iter()
        .map(|g| g.uuid)
        .collect();
    text(&sim(&["fault", path, "--gpu", "2", "lost"]));
    let table = text(&sim(&["smi", path]));
    assert!(
        table.contains("Driver Version: 580.95.05   CUDA Version: 13.0"),
        "{table}"
    );
    assert!(table.contains(&uuids[0]) && !table.contains(&uuids[2]), "{table}");
    assert!(table.contains("device fell off the bus"), "{table}");
    text(&sim(&["fault", path, "clear"]));
    assert!(text(&sim(&["smi", "-L", path])).contains(&uuids[2]));
}

#[test]
fn as_nvidia_smi_it_prints_only_the_gpus_of_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::create(dir.path(), "n1", "t4-16g", 4).unwrap();
    let uuids: Vec<String> = fixture.read().unwrap().gpus.into_iter().map(|g| g.uuid).collect();
    let list = |granted: &str| {
        let output = Command::new(dir.path().join("nvidia-smi"))
            .arg("-L")
            .env("NVIDIA_VISIBLE_DEVICES", granted)
            .output()
            .unwrap();
        text(&output).lines().count()
    };
    assert_eq!(list("all"), 4);
    assert_eq!(list(&uuids[3]), 1);
    assert_eq!(list(&format!("{},{}", uuids[0], uuids[1])), 2);
    assert_eq!(list("void"), 0);
}

#[test]
fn an_unknown_fault_is_refused_with_the_valid_ones() {
    let output = sim(&["fault", "/nowhere", "melted"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("one of lost, unplug"));
}
