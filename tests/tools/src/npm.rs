//! The chain's programs come from npm, at the versions that `chain/contracts` locks. Install scripts are
//! not run: the packages named after a platform hold the real binaries.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{Progress, command, contracts, exists, hash, once};

/// The `node_modules` with anvil, forge, cast, solc and the contracts' libraries.
///
/// # Errors
/// When npm fails, or when the lock file brings no program for this platform.
pub fn ensure(progress: &dyn Progress) -> Result<PathBuf> {
    let contracts = contracts::folder();
    let read = |name: &str| {
        let path = contracts.join(name);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let (package, lock) = (read("package.json")?, read("package-lock.json")?);
    let key = format!("node-{}", hash(&[&package, &lock]));
    if !exists(&key) {
        progress.step("install anvil, forge, cast and solc from npm (once a machine)");
    }
    let directory = once(&key, |draft| {
        std::fs::write(draft.join("package.json"), &package)?;
        std::fs::write(draft.join("package-lock.json"), &lock)?;
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(draft);
        command::run(&mut npm).context("install the chain's programs; Node 20 or later is needed")?;
        for name in ["anvil", "forge", "cast"] {
            ensure!(
                binary(&draft.join("node_modules"), name).exists(),
                "chain/contracts/package.json brings no {name} for this platform: add @foundry-rs/{name}-{} to it",
                platform()
            );
        }
        Ok(())
    })?;
    Ok(directory.join("node_modules"))
}

/// A program of Foundry among the installed packages.
#[must_use]
pub fn binary(node_modules: &Path, name: &str) -> PathBuf {
    node_modules.join(format!("@foundry-rs/{name}-{}/bin/{name}", platform()))
}

fn platform() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "linux-arm64"
    } else {
        "linux-amd64"
    }
}
