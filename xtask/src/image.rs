//! `cargo xtask image`: the product's images, and those that its tests need beside it, as OCI archives.
//!
//! No registry and no container engine takes part: a base of Debian's C library and certificates, a binary on
//! top, everything with fixed times and in a fixed order, so that the same sources make the same bytes.

mod base;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use leasehold_testcluster::oci::Image;
use serde_json::{Value, json};

/// Where archives are written unless told otherwise, below the target directory.
const FOLDER: &str = "images";
/// Runs as nobody in particular; the operator needs no more.
const UNPRIVILEGED: &str = "65532:65532";

/// How the binaries are compiled.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build, for tests.
    #[default]
    Dev,
    /// For use.
    Release,
}

/// One image: its name, and where its archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// `leasehold.test/operator:dev`.
    pub name: String,
    /// The tar file; `ctr -n k8s.io images import` reads it, and so does `podman load`.
    pub path: PathBuf,
}

/// What is in an image beside the base.
struct Recipe {
    /// The name's last part.
    name: &'static str,
    /// Cargo package and binary, and the binary's path in the image.
    binaries: &'static [(&'static str, &'static str, &'static str)],
    user: &'static str,
    entrypoint: &'static [&'static str],
    /// Whether it has a shell and the common commands.
    busybox: bool,
}

const PRODUCT: &[Recipe] = &[
    Recipe {
        name: "operator",
        binaries: &[(
            "leasehold-operator",
            "leasehold-operator",
            "usr/bin/leasehold-operator",
        )],
        user: UNPRIVILEGED,
        entrypoint: &["/usr/bin/leasehold-operator"],
        busybox: false,
    },
    Recipe {
        name: "agent",
        binaries: &[("leasehold-agent", "leasehold-agent", "usr/bin/leasehold-agent")],
        // The kubelet's pod-resources socket is root's.
        user: "0:0",
        entrypoint: &["/usr/bin/leasehold-agent"],
        busybox: false,
    },
];

const TESTS: &[Recipe] = &[
    Recipe {
        name: "gpu-plugin",
        binaries: &[(
            "leasehold-gpu-plugin",
            "leasehold-gpu-plugin",
            "usr/bin/gpu-plugin",
        )],
        user: "0:0",
        entrypoint: &["/usr/bin/gpu-plugin"],
        busybox: false,
    },
    // A workload with a GPU. The driver is put in by the device plugin, as the container toolkit puts the real
    // one in: `nvidia-smi` and the library are not part of the image.
    Recipe {
        name: "gpu-job",
        binaries: &[("leasehold-nvml-sim", "nvml-sim", "usr/bin/nvml-sim")],
        user: UNPRIVILEGED,
        entrypoint: &[],
        busybox: true,
    },
];

/// Builds the product's images into `folder`.
///
/// # Errors
/// When a binary does not build, or the base can't be fetched.
pub fn product(profile: Profile, tag: &str, folder: &Path) -> Result<Vec<Archive>> {
    build(PRODUCT, profile, tag, folder)
}

/// Builds the images that tests and the demo run beside the product into `folder`.
///
/// # Errors
/// When a binary does not build, or the base can't be fetched.
pub fn tests(profile: Profile, tag: &str, folder: &Path) -> Result<Vec<Archive>> {
    build(TESTS, profile, tag, folder)
}

/// Where archives lie unless told otherwise: beside what cargo builds.
#[must_use]
pub fn default_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .filter(|folder| !folder.is_empty())
        .map_or_else(|| crate::root().join("target"), PathBuf::from)
        .join(FOLDER)
}

fn build(recipes: &[Recipe], profile: Profile, tag: &str, folder: &Path) -> Result<Vec<Archive>> {
    let binaries = compile(recipes, profile)?;
    let base = base::ensure()?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let stripped = tempfile::tempdir_in(folder)?;
    recipes
        .iter()
        .map(|recipe| {
            let mut image = base::onto(Image::new(format!("leasehold.test/{}:{tag}", recipe.name)), &base)?
                .config("User", json!(recipe.user))
                .config(
                    "Labels",
                    json!({ "org.opencontainers.image.licenses": "Apache-2.0" }),
                );
            if !recipe.entrypoint.is_empty() {
                image = image.config("Entrypoint", json!(recipe.entrypoint));
            }
            if recipe.busybox {
                image = base::busybox(image)?;
            }
            for (_, binary, path) in recipe.binaries {
                let built = binaries
                    .iter()
                    .find(|built| built.file_name().is_some_and(|name| name == *binary))
                    .with_context(|| format!("cargo built no {binary}"))?;
                image = image.copy(path, strip(built, stripped.path())?, 0o755);
            }
            // Whole or not at all: a reader may come while another process writes.
            let path = folder.join(format!("{}.tar", recipe.name));
            let draft = stripped.path().join(recipe.name).with_extension("tar");
            image.write(&draft)?;
            std::fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))?;
            Ok(Archive {
                name: format!("leasehold.test/{}:{tag}", recipe.name),
                path,
            })
        })
        .collect()
}

/// Compiles what the recipes need and returns the programs' paths.
fn compile(recipes: &[Recipe], profile: Profile) -> Result<Vec<PathBuf>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(crate::root())
        .args(["build", "--locked", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    for (package, _, _) in recipes.iter().flat_map(|recipe| recipe.binaries) {
        cargo.args(["-p", package]);
    }
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    let output = cargo
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .context("run cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not build the images' binaries"
    );
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect())
}

/// A copy of the program without symbols: they are three quarters of a dev build.
fn strip(program: &Path, folder: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program without a name")?;
    let copy = folder.join(name);
    let output = Command::new("strip")
        .arg("-o")
        .args([&copy, program])
        .output()
        .context("run strip; install binutils")?;
    if !output.status.success() {
        bail!(
            "strip {}: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(copy)
}
