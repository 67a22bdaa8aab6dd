//! What the machine must have for the demo, the tests and the benches: Debian packages, programs built from Go
//! modules, programs from npm, and cargo's own builds. Everything is pinned, fetched by the ordinary package
//! clients, built once a machine, and named here and nowhere else.
//!
//! This crate has few dependencies on purpose: `cargo xtask` compiles it first, and starts the long builds from it.

pub mod cache;
pub mod cargo;
pub mod command;
pub mod contracts;
pub mod debian;
pub mod go;
pub mod npm;
mod progress;
mod repository;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::Lock;
pub use crate::progress::{Progress, Quiet, Stderr};
pub use crate::repository::root;

/// Paths of the programs that a test cluster runs, all in place.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The binary that holds etcd and all Kubernetes components; links named after each are beside it.
    pub kubernetes: PathBuf,
    pub kubectl: PathBuf,
    pub helm: PathBuf,
    pub kwok: PathBuf,
    pub coredns: PathBuf,
    pub containerd: PathBuf,
    pub containerd_shim: PathBuf,
    pub ctr: PathBuf,
    pub runc: PathBuf,
    pub anvil: PathBuf,
    pub forge: PathBuf,
    pub cast: PathBuf,
    /// What `npm ci` of `chain/contracts` installed.
    pub node_modules: PathBuf,
    /// Debian's CNI plugins.
    pub cni: PathBuf,
    /// A statically linked busybox, from which the pause and test images are made.
    pub busybox: PathBuf,
}

impl Tools {
    /// Finds every tool, and builds or fetches what is missing. The first call on a machine takes minutes, later
    /// calls take milliseconds. Several processes may call it at once. It blocks.
    ///
    /// # Errors
    /// When a package client fails, or when a Debian package is missing and this process is not root.
    pub fn ensure(progress: &dyn Progress) -> Result<Self> {
        debian::ensure(progress)?;
        let node_modules = npm::ensure(progress)?;
        let go = go::ensure(progress)?;
        let runc = go::runc(progress)?;
        Ok(Self {
            kubernetes: go.join("testcluster"),
            kubectl: go.join("kubectl"),
            helm: go.join("helm"),
            kwok: go.join("kwok"),
            coredns: go.join("coredns"),
            containerd: go.join("containerd"),
            containerd_shim: go.join("containerd-shim-runc-v2"),
            ctr: go.join("ctr"),
            runc,
            anvil: npm::binary(&node_modules, "anvil"),
            forge: npm::binary(&node_modules, "forge"),
            cast: npm::binary(&node_modules, "cast"),
            node_modules,
            cni: PathBuf::from(debian::CNI),
            busybox: debian::busybox()?,
        })
    }

    /// Directories that put `kubectl`, `helm`, `ctr` and the chain's programs on a shell's PATH.
    #[must_use]
    pub fn path_entries(&self) -> Vec<PathBuf> {
        [
            &self.kubectl,
            &self.helm,
            &self.ctr,
            &self.anvil,
            &self.forge,
            &self.cast,
        ]
        .into_iter()
        .filter_map(|program| program.parent().map(Path::to_owned))
        .collect()
    }
}

/// Makes `<cache>/tools/<key>` by `make`, unless it is there. `make` gets an empty directory on the same file
/// system; the directory appears under its final name complete or not at all.
fn once(key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let tools = cache::tools()?;
    let finished = tools.join(key);
    if finished.exists() {
        return Ok(finished);
    }
    let _lock = Lock::take(&format!("tool-{key}"))?;
    if finished.exists() {
        return Ok(finished);
    }
    std::fs::create_dir_all(&tools)?;
    let draft = tempfile::Builder::new().prefix(".draft-").tempdir_in(&tools)?;
    make(draft.path())?;
    std::fs::rename(draft.keep(), &finished)?;
    Ok(finished)
}

/// Whether the cache has it already. Progress reports work only.
fn exists(key: &str) -> bool {
    cache::tools().is_ok_and(|tools| tools.join(key).exists())
}

/// A name for contents: 16 hexadecimal digits of the SHA-256 of the parts, each after its length.
#[must_use]
pub fn hash(parts: &[&[u8]]) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    data_encoding::HEXLOWER.encode(&hasher.finalize()[..8])
}
