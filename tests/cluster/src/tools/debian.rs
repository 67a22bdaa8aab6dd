//! What the system must bring: the kernel's own command lines, the CNI plugins, and a static busybox.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::Progress;
use crate::cache::Lock;
use crate::command;

/// A file that proves a package, and the package.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("bin:pkg-config", "pkg-config"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("bin:iptables", "iptables"),
    ("bin:nft", "nftables"),
    ("bin:conntrack", "conntrack"),
    ("bin:ip", "iproute2"),
    ("bin:nsenter", "util-linux"),
    ("bin:busybox", "busybox-static"),
];

pub(super) struct System {
    pub(super) cni: PathBuf,
    pub(super) busybox: PathBuf,
}

pub(super) async fn ensure(progress: &dyn Progress) -> Result<System> {
    if !missing().is_empty() {
        progress.step(&format!("install Debian packages: {}", missing().join(" ")));
        tokio::task::spawn_blocking(install).await??;
    }
    let busybox = find("busybox").context("busybox is gone from PATH")?;
    Ok(System {
        cni: PathBuf::from("/usr/lib/cni"),
        busybox,
    })
}

fn install() -> Result<()> {
    let _lock = Lock::take("apt")?;
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "packages are missing and only root can install them: apt-get install {}",
            packages.join(" ")
        );
    }
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command::run(&mut apt).map(drop)
    };
    apt(&["update", "-q"])?;
    apt(&[
        &["install", "-q", "-y", "--no-install-recommends"],
        packages.as_slice(),
    ]
    .concat())
    .with_context(|| format!("install by hand what is missing: {}", packages.join(" ")))?;
    let still = missing();
    if still.is_empty() {
        Ok(())
    } else {
        bail!("installed, but not where they are expected: {}", still.join(" "))
    }
}

fn missing() -> Vec<&'static str> {
    NEEDED
        .iter()
        .filter(|(proof, _)| !present(proof))
        .map(|(_, package)| *package)
        .collect()
}

fn present(proof: &str) -> bool {
    match proof.strip_prefix("bin:") {
        // The dynamic busybox of the package `busybox` can't run in an image without a libc.
        Some("busybox") => find("busybox").is_some_and(|path| is_static(&path)),
        Some(program) => find(program).is_some(),
        None => Path::new(proof).exists(),
    }
}

fn is_static(program: &Path) -> bool {
    std::fs::read(program).is_ok_and(|bytes| !bytes.windows(8).any(|window| window == b"ld-linux"))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.exists())
}
