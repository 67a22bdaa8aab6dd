//! `cargo xtask image`: the product's images, and those that its tests need beside it, as OCI archives.
//!
//! No registry and no container engine takes part: a base of Debian's C library and certificates, a binary on
//! top, everything with fixed times and in a fixed order, so that the same sources make the same bytes.

mod base;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use leasehold_testcluster::oci::Image;
use leasehold_testtools::{Quiet, cargo};
use serde_json::json;

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
    /// Cargo profile of what is for use.
    release: &'static str,
    user: &'static str,
    entrypoint: &'static [&'static str],
    /// Whether it has a shell and the common commands.
    busybox: bool,
}

/// The images that the chart runs.
pub const PRODUCT: &[&str] = &["operator", "gateway", "agent"];
/// The images that tests and the demo run beside them: a device plugin for simulated GPUs, a job for them, and a web server.
pub const TESTS: &[&str] = &["gpu-plugin", "gpu-job", "web"];

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "operator",
        binaries: &[(
            "leasehold-operator",
            "leasehold-operator",
            "usr/bin/leasehold-operator",
        )],
        release: "release",
        user: UNPRIVILEGED,
        entrypoint: &["/usr/bin/leasehold-operator"],
        busybox: false,
    },
    Recipe {
        name: "gateway",
        binaries: &[(
            "leasehold-gateway",
            "leasehold-gateway",
            "usr/bin/leasehold-gateway",
        )],
        release: "release",
        user: UNPRIVILEGED,
        entrypoint: &["/usr/bin/leasehold-gateway"],
        busybox: false,
    },
    Recipe {
        name: "agent",
        binaries: &[("leasehold-agent", "leasehold-agent", "usr/bin/leasehold-agent")],
        release: "small",
        // The kubelet's pod-resources socket is root's.
        user: "0:0",
        entrypoint: &["/usr/bin/leasehold-agent"],
        busybox: false,
    },
    Recipe {
        name: "gpu-plugin",
        binaries: &[("leasehold-gpu-plugin", "gpu-plugin", "usr/bin/gpu-plugin")],
        release: "release",
        user: "0:0",
        entrypoint: &["/usr/bin/gpu-plugin"],
        busybox: false,
    },
    Recipe {
        name: "web",
        binaries: &[("leasehold-web", "web", "usr/bin/web")],
        release: "release",
        user: UNPRIVILEGED,
        entrypoint: &["/usr/bin/web"],
        busybox: false,
    },
    // A workload with a GPU. The driver's library and `nvidia-smi` are put in by the device plugin, as the container
    // toolkit puts the real ones in.
    Recipe {
        name: "gpu-job",
        binaries: &[("leasehold-nvml-sim", "nvml-sim", "usr/bin/nvml-sim")],
        release: "release",
        user: UNPRIVILEGED,
        entrypoint: &[],
        busybox: true,
    },
];

/// Builds the images of those names into `folder`, each `NAME.tar` with the image `leasehold.test/NAME:tag`.
///
/// # Errors
/// When a name is not known, a binary does not build, or the base can't be fetched.
pub fn build<S: AsRef<str>>(names: &[S], profile: Profile, tag: &str, folder: &Path) -> Result<Vec<Archive>> {
    let recipes = names
        .iter()
        .map(|name| {
            let known = || {
                RECIPES
                    .iter()
                    .map(|recipe| recipe.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let found = RECIPES.iter().find(|recipe| recipe.name == name.as_ref());
            found.with_context(|| format!("no image {:?}: there are {}", name.as_ref(), known()))
        })
        .collect::<Result<Vec<_>>>()?;
    let binaries = compile(&recipes, profile)?;
    let base = base::ensure()?;
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    // In the same folder, so that a rename puts a whole archive in place: a reader may come at any time.
    let drafts = tempfile::tempdir_in(folder)?;
    recipes
        .into_iter()
        .map(|recipe| write(recipe, tag, &binaries, &base, drafts.path(), folder))
        .collect()
}

fn write(
    recipe: &Recipe,
    tag: &str,
    binaries: &[PathBuf],
    base: &Path,
    drafts: &Path,
    folder: &Path,
) -> Result<Archive> {
    let name = format!("leasehold.test/{}:{tag}", recipe.name);
    let mut image = base::onto(Image::new(&name), base)?
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
            .find(|built| built.file_name().is_some_and(|name| name == *binary));
        let built = built.with_context(|| format!("cargo built no {binary}"))?;
        image = image.copy(path, strip(built, drafts)?, 0o755);
    }
    let (draft, path) = (
        drafts.join(format!("{}.tar", recipe.name)),
        folder.join(format!("{}.tar", recipe.name)),
    );
    image.write(&draft)?;
    std::fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))?;
    Ok(Archive { name, path })
}

/// Where archives lie unless told otherwise: beside what cargo builds.
#[must_use]
pub fn default_folder() -> PathBuf {
    cargo::target_folder().join(FOLDER)
}

/// Compiles what the recipes need and returns the programs' paths.
fn compile(recipes: &[&Recipe], profile: Profile) -> Result<Vec<PathBuf>> {
    let binaries = || recipes.iter().flat_map(|recipe| recipe.binaries);
    match profile {
        Profile::Dev => {
            let programs: Vec<&str> = binaries().map(|(_, program, _)| *program).collect();
            let folder = cargo::build(&programs, &Quiet)?;
            Ok(programs.into_iter().map(|program| folder.join(program)).collect())
        }
        // Each alone: together, each would carry what the others ask of the crates they share, the agent an HTTP client.
        Profile::Release => recipes
            .iter()
            .flat_map(|recipe| recipe.binaries.iter().map(move |binary| (recipe.release, binary)))
            .map(|(profile, (package, program, _))| {
                let mut cargo = cargo::cargo();
                cargo.args(["build", "--locked", "--profile", profile, "-p", package]);
                let built = cargo.status().context("run cargo")?;
                ensure!(built.success(), "cargo could not build {package}");
                Ok(cargo::target_folder().join(profile).join(program))
            })
            .collect(),
    }
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
