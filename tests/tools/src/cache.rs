//! Where a machine keeps what the clusters share: built tools, run directories, and the locks that let
//! several processes use them at once.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// `$XDG_CACHE_HOME/leasehold`, or `~/.cache/leasehold`.
///
/// # Errors
/// When neither variable is set.
pub fn root() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("leasehold"))
        .context("no place for a cache: set HOME or XDG_CACHE_HOME")
}

/// Where built tools are kept.
///
/// # Errors
/// As [`root`].
pub fn tools() -> Result<PathBuf> {
    Ok(root()?.join("tools"))
}

/// Where running clusters keep their files.
///
/// # Errors
/// As [`root`].
pub fn clusters() -> Result<PathBuf> {
    Ok(root()?.join("clusters"))
}

/// Holds a lock of the cache until dropped; the kernel releases it when the process dies.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file is what unlocks it")] File);

impl Lock {
    /// Blocks until no other process holds the lock of that name.
    ///
    /// # Errors
    /// When the lock file can't be made.
    pub fn take(name: &str) -> Result<Self> {
        let directory = root()?.join("locks");
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let path = directory.join(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        file.lock().with_context(|| format!("lock {}", path.display()))?;
        Ok(Self(file))
    }
}
