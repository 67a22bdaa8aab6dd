//! The chain's programs come from npm, at the versions that `chain/contracts` locks. Install scripts are
//! not run: the packages named after a platform hold the real binaries.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{exists, hash, once};
use crate::Progress;
use crate::command;

pub(super) async fn ensure(progress: &dyn Progress) -> Result<PathBuf> {
    let contracts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../chain/contracts");
    let read = |name: &str| {
        let path = contracts.join(name);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let (package, lock) = (read("package.json")?, read("package-lock.json")?);
    let key = format!("node-{}", hash(&[&package, &lock]));
    if !exists(&key) {
        progress.step("install anvil, forge and solc from npm (once a machine)");
    }
    let directory = once(key, move |draft| {
        std::fs::write(draft.join("package.json"), &package)?;
        std::fs::write(draft.join("package-lock.json"), &lock)?;
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(draft);
        command::run(&mut npm).context("install the chain's programs")?;
        for name in ["anvil", "forge", "cast"] {
            let binary = binary(&draft.join("node_modules"), name);
            ensure!(
                binary.exists(),
                "chain/contracts/package.json brings no {name} for this platform: name @foundry-rs/{name}-{} in it",
                platform()
            );
        }
        Ok(())
    })
    .await?;
    Ok(directory.join("node_modules"))
}

pub(super) fn binary(node_modules: &Path, name: &str) -> PathBuf {
    node_modules.join(format!("@foundry-rs/{name}-{}/bin/{name}", platform()))
}

fn platform() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "linux-arm64"
    } else {
        "linux-amd64"
    }
}
