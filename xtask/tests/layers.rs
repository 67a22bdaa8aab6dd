//! Which crate may depend on which: `crds ← planner ← edges ← binaries`. It is read from `cargo tree` crate by crate, as
//! `cargo metadata` unites the features of the whole workspace.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Each crate of the product, and the crates of the product that it may link. A binary is in no other crate's list.
const LAYERS: &[(&str, &[&str])] = &[
    ("crds", &[]),
    ("planner", &["crds"]),
    ("telemetry", &["crds"]),
    ("chain", &["crds", "planner"]),
    ("runtime", &["crds", "planner", "telemetry"]),
    ("tunnel", &["crds", "planner"]),
    ("gateway", &["crds", "planner", "telemetry", "runtime", "tunnel"]),
    (
        "operator",
        &["crds", "planner", "chain", "telemetry", "runtime", "tunnel"],
    ),
    ("agent", &["crds", "telemetry"]),
];

/// Crates without input and output.
const PURE: &[&str] = &["crds", "planner"];
/// Crates that bring input, output, or an executor.
const IMPURE: &[&str] = &[
    "alloy-provider",
    "async-std",
    "futures-executor",
    "hyper",
    "kube-client",
    "kube-runtime",
    "mio",
    "reqwest",
    "rustls",
    "smol",
    "tokio",
    "tower",
];

/// Names of the crates that a crate of that workspace links.
fn links(workspace: &Path, name: &str) -> BTreeSet<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "tree",
            "--offline",
            "-e",
            "normal",
            "--prefix",
            "none",
            "-f",
            "{p}",
            "-p",
        ])
        .arg(format!("leasehold-{name}"))
        .current_dir(workspace)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// What a crate links and must not.
fn violations(workspace: &Path, name: &str, may_link: &[&str]) -> Vec<String> {
    let linked = links(workspace, name);
    let ours = linked
        .iter()
        .filter_map(|crate_| crate_.strip_prefix("leasehold-"))
        .filter(|other| *other != name && !may_link.contains(other))
        .map(|other| format!("{name} must not depend on {other}"));
    let impure = PURE
        .contains(&name)
        .then(|| IMPURE.iter().filter(|crate_| linked.contains(**crate_)))
        .into_iter()
        .flatten()
        .map(|crate_| format!("{name} is pure and must not depend on {crate_}"));
    ours.chain(impure).collect()
}

#[test]
fn crates_depend_only_on_the_layers_below_them() {
    let root = leasehold_testtools::root();
    let found: Vec<String> = LAYERS
        .iter()
        .flat_map(|(name, may_link)| violations(&root, name, may_link))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_crate_of_the_product_has_a_layer() {
    let manifest = std::fs::read_to_string(leasehold_testtools::root().join("Cargo.toml")).unwrap();
    let members = manifest.split_once("members = [").unwrap().1;
    let members = members.split_once(']').unwrap().0;
    let placed: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    let there: BTreeSet<&str> = members
        .split([',', '\n'])
        .map(|member| member.trim().trim_matches('"'))
        .filter(|member| !member.is_empty())
        .filter(|member| !member.starts_with("tests/") && !member.starts_with("xtask"))
        .collect();
    assert_eq!(placed, there);
}

/// The two pure crates in a workspace of their own, with a dependency that the planner must not have.
#[test]
fn a_planner_with_an_executor_is_found() {
    let (root, copy) = (leasehold_testtools::root(), tempfile::tempdir().unwrap());
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (before, rest) = manifest.split_once("members = [").unwrap();
    let (_, after) = rest.split_once(']').unwrap();
    std::fs::write(
        copy.path().join("Cargo.toml"),
        format!("{before}members = [\"crds\", \"planner\"]{after}"),
    )
    .unwrap();
    std::fs::copy(root.join("Cargo.lock"), copy.path().join("Cargo.lock")).unwrap();
    for name in PURE {
        std::fs::create_dir_all(copy.path().join(name).join("src")).unwrap();
        for file in ["Cargo.toml", "src/lib.rs"] {
            std::fs::copy(root.join(name).join(file), copy.path().join(name).join(file)).unwrap();
        }
    }
    assert_eq!(
        violations(copy.path(), "planner", &["crds"]),
        Vec::<String>::new()
    );

    let planner = copy.path().join("planner/Cargo.toml");
    let manifest = std::fs::read_to_string(&planner).unwrap();
    let with_tokio = manifest.replacen(
        "[dependencies]\n",
        "[dependencies]\ntokio = { workspace = true }\n",
        1,
    );
    std::fs::write(&planner, with_tokio).unwrap();
    let found = violations(copy.path(), "planner", &["crds"]);
    assert!(
        found.contains(&"planner is pure and must not depend on tokio".to_owned()),
        "{found:?}"
    );
}
