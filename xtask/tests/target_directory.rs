//! Two checkouts never share a target directory: with one, a checkout would run another one's program.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

/// A checkout of a workspace with one program, `say`, which prints the text.
fn checkout(at: &Path, text: &str, age: Duration) {
    std::fs::create_dir_all(at.join("say/src")).unwrap();
    let write = |name: &str, content: &str| {
        let path = at.join(name);
        std::fs::write(&path, content).unwrap();
        // What git writes has the time of the checkout.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_700_000_000) + age)
            .unwrap();
    };
    write(
        "Cargo.toml",
        "[workspace]\nresolver = \"3\"\nmembers = [\"say\"]\n",
    );
    write(
        "Cargo.lock",
        "version = 4\n\n[[package]]\nname = \"say\"\nversion = \"0.1.0\"\n",
    );
    write(
        "say/Cargo.toml",
        "[package]\nname = \"say\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
    );
    write(
        "say/src/main.rs",
        &format!("fn main() {{ print!(\"{text}\"); }}\n"),
    );
}

/// What a command prints in the checkout.
fn printed(command: &mut Command, checkout: &Path) -> String {
    let output = command.current_dir(checkout).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What the checkout's program prints, built in that target directory.
fn run(checkout: &Path, target: &Path) -> String {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["run", "--quiet", "--locked", "--offline"])
        .env("CARGO_TARGET_DIR", target);
    printed(&mut cargo, checkout)
}

/// What `.ci/target-directory` gives the checkout.
fn target_directory(checkout: &Path, cache: &Path) -> PathBuf {
    let mut script = Command::new(leasehold_testtools::root().join(".ci/target-directory"));
    PathBuf::from(printed(script.env("XDG_CACHE_HOME", cache), checkout))
}

#[test]
fn each_of_two_checkouts_runs_its_own_program() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other, cache) = (
        folder.path().join("one"),
        folder.path().join("other"),
        folder.path().join("cache"),
    );
    checkout(&one, "one", Duration::from_secs(60));
    checkout(&other, "other", Duration::ZERO);

    // The danger is real: in a shared directory the second checkout, whose files are older, runs the first one's program.
    let shared = folder.path().join("shared");
    assert_eq!(run(&one, &shared), "one");
    assert_eq!(run(&other, &shared), "one");

    let of_one = target_directory(&one, &cache);
    assert_eq!(run(&one, &of_one), "one");
    let of_other = target_directory(&other, &cache);
    assert_ne!(of_one, of_other);
    assert_eq!(run(&other, &of_other), "other");
    assert_eq!(target_directory(&one, &cache), of_one, "a checkout keeps its own");
    assert_eq!(run(&one, &of_one), "one");
}
