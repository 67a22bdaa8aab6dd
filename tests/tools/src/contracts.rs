//! The scripts of `chain/contracts`, which compile and test the escrow with forge and solc.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{Progress, npm};

/// The folder of the contracts' sources.
#[must_use]
pub fn folder() -> PathBuf {
    crate::root().join("chain/contracts")
}

/// Runs a script of that folder, with what it prints on this process's own output.
///
/// # Errors
/// When the programs can't be installed, or when the script fails.
pub fn script(name: &str, arguments: &[String], progress: &dyn Progress) -> Result<()> {
    link_node_modules(npm::ensure(progress)?)?;
    let mut script = Command::new("bash");
    script.arg(name).args(arguments).current_dir(folder());
    let status = script.status().with_context(|| format!("run {name}"))?;
    ensure!(status.success(), "chain/contracts/{name} failed: {status}");
    Ok(())
}

/// The scripts look for `node_modules` in their own folder. A link to the machine's copy is put there; what a person
/// installed there by `npm ci` is used as it is.
fn link_node_modules(installed: PathBuf) -> Result<()> {
    let link = folder().join("node_modules");
    if link.is_dir() && !link.is_symlink() {
        return Ok(());
    }
    if std::fs::read_link(&link).ok().as_ref() == Some(&installed) {
        return Ok(());
    }
    // Another process may do the same at this moment: a rename replaces its link by an equal one.
    let draft = folder().join(format!(".node_modules-{}", std::process::id()));
    std::os::unix::fs::symlink(&installed, &draft).with_context(|| format!("make {}", draft.display()))?;
    std::fs::rename(&draft, &link).with_context(|| format!("make {}", link.display()))
}
