//! Keys for those who log in, or open what is encrypted to them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Makes an ed25519 key without a passphrase: the private half's file, with the public half's beside it, and the public
/// half as in `authorized_keys`.
pub fn ssh_key(folder: &Path, name: &str) -> Result<(PathBuf, String)> {
    let path = folder.join(name);
    let mut keygen = Command::new("ssh-keygen");
    keygen.args([
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "somebody@example.org",
        "-f",
    ]);
    let output = keygen.arg(&path).output().context("install openssh-client")?;
    ensure!(output.status.success(), "{output:?}");
    let public = std::fs::read_to_string(path.with_extension("pub"))?;
    Ok((path, public.trim().to_owned()))
}
