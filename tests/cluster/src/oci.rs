//! Images without a registry: an OCI archive is a tar of blobs that containerd imports.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// An image to be written: files, in order, and what a container of it runs.
#[derive(Clone, Debug)]
pub struct Image {
    /// Name and tag, such as `leasehold.test/busybox:1`.
    name: String,
    entries: Vec<(String, Entry)>,
    config: Value,
}

#[derive(Clone, Debug)]
enum Entry {
    Directory { mode: u32 },
    Link { target: String },
    Bytes { bytes: Vec<u8>, mode: u32 },
    Copy { from: PathBuf, mode: u32 },
}

impl Image {
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            entries: Vec::new(),
            config: json!({ "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] }),
        }
    }

    /// Sets a field of the image's configuration, such as `Entrypoint`, `Cmd`, `User`, `Env`.
    #[must_use]
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// A directory; parents come first.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(path, Entry::Directory { mode })
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(
            path,
            Entry::Link {
                target: target.to_owned(),
            },
        )
    }

    /// A file with that content, of root.
    #[must_use]
    pub fn bytes(self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.entry(
            path,
            Entry::Bytes {
                bytes: bytes.into(),
                mode,
            },
        )
    }

    /// A file copied from the host.
    #[must_use]
    pub fn copy(self, path: &str, from: impl Into<PathBuf>, mode: u32) -> Self {
        self.entry(
            path,
            Entry::Copy {
                from: from.into(),
                mode,
            },
        )
    }

    fn entry(mut self, path: &str, entry: Entry) -> Self {
        self.entries
            .push((path.trim_start_matches('/').to_owned(), entry));
        self
    }

    /// Writes the archive. The same image makes the same bytes.
    ///
    /// # Errors
    /// When a file can't be read or the archive can't be written.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let layer = self.layer()?;
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name,
        });
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        }))?;
        let file = File::create(archive).with_context(|| format!("create {}", archive.display()))?;
        let mut tar = Builder::new(file);
        append(
            &mut tar,
            "oci-layout",
            br#"{"imageLayoutVersion":"1.0.0"}"#,
            0o644,
        )?;
        append(&mut tar, "index.json", &index, 0o644)?;
        for blob in [&layer, &config, &manifest] {
            let path = format!("blobs/{}", digest(blob).replace(':', "/"));
            append(&mut tar, &path, blob, 0o644)?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            match entry {
                Entry::Directory { mode } => {
                    tar.append_data(
                        &mut header(EntryType::Directory, 0, *mode),
                        format!("{path}/"),
                        [].as_slice(),
                    )?;
                }
                Entry::Link { target } => {
                    tar.append_link(&mut header(EntryType::Symlink, 0, 0o777), path, target)?;
                }
                Entry::Bytes { bytes, mode } => append(&mut tar, path, bytes, *mode)?,
                Entry::Copy { from, mode } => {
                    let bytes = std::fs::read(from).with_context(|| format!("read {}", from.display()))?;
                    append(&mut tar, path, &bytes, *mode)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

fn append<W: std::io::Write>(tar: &mut Builder<W>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let size = u64::try_from(bytes.len())?;
    tar.append_data(&mut header(EntryType::Regular, size, mode), path, bytes)?;
    Ok(())
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    format!(
        "sha256:{}",
        data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
    )
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}
