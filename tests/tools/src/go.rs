//! Programs built from Go modules: Kubernetes in one binary of our own, the rest by `go install`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{exists, hash, once};
use crate::Progress;
use crate::command;

const KUBERNETES: &str = "1.36.3";
const MAIN: &str = include_str!("../../kubernetes/main.go");
const VOLUMES: &str = include_str!("../../kubernetes/volumes.go");
const GO_MOD: &str = include_str!("../../kubernetes/go.mod");
const GO_SUM: &str = include_str!("../../kubernetes/go.sum");

/// Names under which the one binary is called.
const COMPONENTS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "local-volumes",
];

/// A program, or several of one module, that `go install` builds.
struct Install {
    name: &'static str,
    version: &'static str,
    packages: &'static [&'static str],
    cgo: Option<&'static str>,
}

const HELM: Install = Install {
    name: "helm",
    version: "v4.3.1",
    packages: &["helm.sh/helm/v4/cmd/helm"],
    cgo: None,
};
const KWOK: Install = Install {
    name: "kwok",
    version: "v0.8.0",
    packages: &["sigs.k8s.io/kwok/cmd/kwok"],
    cgo: None,
};
const COREDNS: Install = Install {
    name: "coredns",
    version: "v1.14.7",
    packages: &["github.com/coredns/coredns"],
    cgo: None,
};
const CONTAINERD: Install = Install {
    name: "containerd",
    version: "v2.4.2",
    packages: &[
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/ctr",
    ],
    cgo: None,
};
const RUNC: Install = Install {
    name: "runc",
    version: "v1.5.2",
    packages: &["github.com/opencontainers/runc"],
    // Without seccomp runc refuses every pod whose profile is RuntimeDefault.
    cgo: Some("seccomp"),
};

/// What a tenant opens results with: the reference implementation of the format.
const AGE: Install = Install {
    name: "age",
    version: "v1.3.2",
    packages: &["filippo.io/age/cmd/age", "filippo.io/age/cmd/age-keygen"],
    cgo: None,
};

pub(super) struct Go {
    pub(super) kubernetes: PathBuf,
    pub(super) helm: PathBuf,
    pub(super) kwok: PathBuf,
    pub(super) coredns: PathBuf,
    pub(super) containerd: PathBuf,
    pub(super) runc: PathBuf,
}

pub(super) async fn ensure(progress: &dyn Progress) -> Result<Go> {
    // One after another: each build uses every core.
    Ok(Go {
        containerd: install(&CONTAINERD, progress).await?,
        runc: install(&RUNC, progress).await?,
        helm: install(&HELM, progress).await?,
        kwok: install(&KWOK, progress).await?,
        coredns: install(&COREDNS, progress).await?,
        kubernetes: kubernetes(progress).await?,
    })
}

/// The folder with `age` and `age-keygen`, for tests that want them.
pub(super) async fn age(progress: &dyn Progress) -> Result<PathBuf> {
    let program = install(&AGE, progress).await?;
    Ok(program.parent().map(Path::to_owned).unwrap_or_default())
}

async fn install(what: &'static Install, progress: &dyn Progress) -> Result<PathBuf> {
    let key = format!("{}-{}", what.name, what.version);
    if !exists(&key) {
        progress.step(&format!("build {} {} (once a machine)", what.name, what.version));
    }
    let directory = once(key, |draft| {
        let mut go = go(draft);
        go.arg("install")
            .env("GOBIN", draft)
            .env("CGO_ENABLED", if what.cgo.is_some() { "1" } else { "0" });
        match what.cgo {
            Some(tags) => go.args(["-tags", tags]),
            None => go.arg("-ldflags=-s -w"),
        };
        go.args(
            what.packages
                .iter()
                .map(|package| format!("{package}@{}", what.version)),
        );
        command::run(&mut go)
            .with_context(|| format!("build {}", what.name))
            .map(drop)
    })
    .await?;
    Ok(directory.join(what.name))
}

async fn kubernetes(progress: &dyn Progress) -> Result<PathBuf> {
    let sources = [
        ("main.go", MAIN),
        ("volumes.go", VOLUMES),
        ("go.mod", GO_MOD),
        ("go.sum", GO_SUM),
    ];
    let key = format!(
        "kubernetes-v{KUBERNETES}-{}",
        hash(&sources.map(|(_, text)| text.as_bytes()))
    );
    if !exists(&key) {
        progress.step(&format!(
            "build Kubernetes v{KUBERNETES} (once a machine, some minutes)"
        ));
    }
    let directory = once(key, move |draft| {
        let source = tempfile::tempdir()?;
        for (name, text) in sources {
            std::fs::write(source.path().join(name), text)?;
        }
        let (major, minor) = KUBERNETES.split_once('.').context("version")?;
        let minor = minor.split('.').next().unwrap_or(minor);
        let version = "-X k8s.io/component-base/version";
        let mut go = go(source.path());
        go.arg("build")
            .arg("-mod=readonly")
            .arg(format!(
                "-ldflags=-s -w {version}.gitVersion=v{KUBERNETES} {version}.gitMajor={major} {version}.gitMinor={minor}"
            ))
            .arg("-o")
            .arg(draft.join("testcluster"))
            .arg(".")
            .env("CGO_ENABLED", "0");
        command::run(&mut go).context("build Kubernetes")?;
        for component in COMPONENTS {
            std::os::unix::fs::symlink("testcluster", draft.join(component))?;
        }
        Ok(())
    })
    .await?;
    Ok(directory.join("testcluster"))
}

fn go(directory: &Path) -> Command {
    let mut go = Command::new("go");
    // A module of another checkout around the directory must not be taken for ours.
    go.current_dir(directory).env("GOWORK", "off");
    go
}
