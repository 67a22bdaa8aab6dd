//! Everything a cluster is made of, at pinned versions, fetched or built once a machine by the ordinary
//! package clients: Go modules, npm packages, Debian packages.

mod debian;
mod go;
mod npm;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::Progress;
use crate::cache::{self, Lock};

/// Paths of the programs, all in place.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The binary that holds etcd and all Kubernetes components; links named after each lie beside it.
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
    /// Finds every tool, building or fetching what is missing. The first time on a machine that takes
    /// minutes; later a few milliseconds. Several processes may call it at once.
    ///
    /// # Errors
    /// When a package client fails, or when a Debian package is missing and this process isn't root.
    pub async fn ensure(progress: &dyn Progress) -> Result<Self> {
        // The three kinds don't depend on each other, and the network is slow where the compiler isn't.
        let (system, node_modules) = tokio::try_join!(debian::ensure(progress), npm::ensure(progress))?;
        let go = go::ensure(progress).await?;
        let node_binary = |name: &str| npm::binary(&node_modules, name);
        Ok(Self {
            kubectl: go.kubernetes.with_file_name("kubectl"),
            kubernetes: go.kubernetes,
            helm: go.helm,
            kwok: go.kwok,
            coredns: go.coredns,
            containerd_shim: go.containerd.with_file_name("containerd-shim-runc-v2"),
            ctr: go.containerd.with_file_name("ctr"),
            containerd: go.containerd,
            runc: go.runc,
            anvil: node_binary("anvil"),
            forge: node_binary("forge"),
            cast: node_binary("cast"),
            node_modules,
            cni: system.cni,
            busybox: system.busybox,
        })
    }

    /// The anvil, forge and cast of `chain/contracts` only: they need neither root nor Go.
    ///
    /// # Errors
    /// When npm fails.
    pub async fn ensure_node_modules(progress: &dyn Progress) -> Result<PathBuf> {
        npm::ensure(progress).await
    }

    /// The folder with `age` and `age-keygen`, which open what is encrypted to a tenant; no cluster needs them.
    ///
    /// # Errors
    /// When Go fails.
    pub async fn age(progress: &dyn Progress) -> Result<PathBuf> {
        go::age(progress).await
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

/// Makes `<cache>/tools/<key>` by `make`, unless it is there. `make` gets an empty directory on the same
/// file system; it appears under its final name complete or not at all.
async fn once(key: String, make: impl FnOnce(&Path) -> Result<()> + Send + 'static) -> Result<PathBuf> {
    tokio::task::spawn_blocking(move || {
        let tools = cache::tools()?;
        let finished = tools.join(&key);
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
    })
    .await?
}

/// Is it in the cache already? Progress is told only about work.
fn exists(key: &str) -> bool {
    cache::tools().is_ok_and(|tools| tools.join(key).exists())
}

fn hash(parts: &[&[u8]]) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    data_encoding::HEXLOWER.encode(&hasher.finalize()[..8])
}
