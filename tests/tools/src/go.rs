//! Programs built from Go modules. `tests/tools/go` is one module that requires all of them, so that what they share,
//! Kubernetes' client above all, is compiled once: they have some 3,700 packages together, and twice that apart.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{Progress, command, exists, hash, once};

/// Of `go.mod`; `kubectl version` and the nodes show it.
const KUBERNETES: &str = "1.36.3";

/// What is built, by import path.
const PROGRAMS: &[&str] = &[
    "./kubernetes",
    "./coredns",
    "helm.sh/helm/v4/cmd/helm",
    "sigs.k8s.io/kwok/cmd/kwok",
    "github.com/containerd/containerd/v2/cmd/containerd",
    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    "github.com/containerd/containerd/v2/cmd/ctr",
    "filippo.io/age/cmd/age",
    "filippo.io/age/cmd/age-keygen",
];

/// Names under which the one Kubernetes binary is called.
const COMPONENTS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "local-volumes",
    "network-policies",
];

/// The module's files, of which a program's bytes follow.
const SOURCES: &[&str] = &[
    "go.mod",
    "go.sum",
    "kubernetes/main.go",
    "kubernetes/volumes.go",
    "kubernetes/network_policies.go",
    "coredns/main.go",
];

fn module() -> PathBuf {
    crate::root().join("tests/tools/go")
}

/// A name for the programs that changes with the module's sources.
fn key(program: &str) -> Result<String> {
    let sources = SOURCES
        .iter()
        .map(|name| {
            let path = module().join(name);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        })
        .collect::<Result<Vec<_>>>()?;
    let sources: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
    Ok(format!("{program}-{}", hash(&sources)))
}

/// Whether the programs are in the cache already.
#[must_use]
pub fn is_built() -> bool {
    key("go").is_ok_and(|key| exists(&key))
}

/// The folder with every program but runc.
///
/// # Errors
/// When Go fails, with what it printed.
pub fn ensure(progress: &dyn Progress) -> Result<PathBuf> {
    let key = key("go")?;
    if !exists(&key) {
        progress
            .step("build Kubernetes, containerd, CoreDNS, Helm and KWOK from Go modules (once a machine)");
    }
    once(&key, |draft| {
        let (major, minor) = KUBERNETES.split_once('.').context("version")?;
        let minor = minor.split('.').next().unwrap_or(minor);
        let version = "-X k8s.io/component-base/version";
        let mut go = go("build");
        go.arg("-v")
            .arg("-ldflags=-s -w")
            .arg(format!(
                "-ldflags=./kubernetes=-s -w {version}.gitVersion=v{KUBERNETES} {version}.gitMajor={major} \
                 {version}.gitMinor={minor}"
            ))
            .arg("-o")
            .arg(draft)
            .args(PROGRAMS)
            .env("CGO_ENABLED", "0");
        run(&mut go, progress).context("build Kubernetes and the programs beside it")?;
        std::fs::rename(draft.join("kubernetes"), draft.join("testcluster"))?;
        for component in COMPONENTS {
            std::os::unix::fs::symlink("testcluster", draft.join(component))?;
        }
        Ok(())
    })
}

/// runc. It alone needs a C compiler: without seccomp it refuses every pod whose profile is RuntimeDefault.
///
/// # Errors
/// When Go or the C compiler fails, with what it printed.
pub fn runc(progress: &dyn Progress) -> Result<PathBuf> {
    let key = key("runc")?;
    if !exists(&key) {
        progress.step("build runc from its Go module (once a machine)");
    }
    let folder = once(&key, |draft| {
        let mut go = go("build");
        go.args(["-tags", "seccomp", "-o"])
            .arg(draft.join("runc"))
            .arg("github.com/opencontainers/runc")
            .env("CGO_ENABLED", "1");
        command::run(&mut go).context("build runc").map(drop)
    })?;
    Ok(folder.join("runc"))
}

/// The folder with `frps` and `frpc`, a reverse proxy that benchmarks measure beside ours. It is a module of its own: what it requires
/// of others would change their versions.
///
/// # Errors
/// When Go fails, with what it printed.
pub fn frp(progress: &dyn Progress) -> Result<PathBuf> {
    let module = crate::root().join("tests/tools/go-frp");
    let read = |name: &str| {
        let path = module.join(name);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let key = format!("frp-{}", hash(&[&read("go.mod")?, &read("go.sum")?]));
    if !exists(&key) {
        progress.step("build frp from its Go module (once a machine)");
    }
    once(&key, |draft| {
        let mut go = go("build");
        go.current_dir(&module).arg("-v").arg("-o").arg(draft);
        go.args(["frps", "frpc"].map(|program| format!("github.com/fatedier/frp/cmd/{program}")));
        run(go.env("CGO_ENABLED", "0"), progress).context("build frp")
    })
}

/// The folder with `age` and `age-keygen`, the reference implementation of the format that results are sealed in.
///
/// # Errors
/// When Go fails.
pub fn age(progress: &dyn Progress) -> Result<PathBuf> {
    ensure(progress)
}

fn go(what: &str) -> Command {
    let mut go = Command::new("go");
    go.args([what, "-mod=readonly"])
        .current_dir(module())
        // A workspace around the checkout must not be taken for the module's own.
        .env("GOWORK", "off");
    go
}

/// Runs Go, and reports each package that it compiles.
fn run(go: &mut Command, progress: &dyn Progress) -> Result<()> {
    let mut child = go
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start go; Go 1.26 or later is needed")?;
    let printed = child.stderr.take().context("Go's standard error")?;
    let mut said = String::new();
    for line in BufReader::new(printed).lines() {
        let line = line?;
        if is_package(&line) {
            progress.compiling(&line);
        } else if !line.starts_with("go: downloading") {
            said.push_str(&line);
            said.push('\n');
        }
    }
    let status = child.wait().context("wait for go")?;
    if !status.success() {
        bail!("{status}\n{}", command::tail(&said));
    }
    Ok(())
}

/// `go build -v` prints an import path a line; what a compiler says has spaces or a colon.
fn is_package(line: &str) -> bool {
    !line.is_empty() && !line.contains([' ', ':', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_told_from_errors() {
        assert!(is_package("k8s.io/client-go/rest"));
        assert!(!is_package("go: downloading k8s.io/api v0.36.3"));
        assert!(!is_package("./main.go:3:2: undefined: x"));
        assert!(!is_package(""));
    }

    #[test]
    fn the_version_that_components_show_is_the_one_that_is_built() {
        let text = std::fs::read_to_string(module().join("go.mod")).unwrap();
        assert!(
            text.contains(&format!("k8s.io/kubernetes v{KUBERNETES}\n")),
            "go.mod requires another Kubernetes than {KUBERNETES}"
        );
    }
}
