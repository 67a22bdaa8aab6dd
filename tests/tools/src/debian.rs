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

/// Has the ELF file no segment that names a dynamic loader?
fn is_static(program: &Path) -> bool {
    const INTERPRETER: u32 = 3;
    let Ok(bytes) = std::fs::read(program) else {
        return false;
    };
    // Of the 64-bit header: where the program headers are, how long each is, and how many.
    let number = |at: usize, width: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(width)?)?;
        usize::try_from(
            field
                .iter()
                .rev()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)),
        )
        .ok()
    };
    let (Some(offset), Some(size), Some(count)) = (number(0x20, 8), number(0x36, 2), number(0x38, 2)) else {
        return false;
    };
    bytes.starts_with(b"\x7fELF")
        && (0..count).all(|n| number(offset + n * size, 4) != Some(INTERPRETER as usize))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        assert!(!is_static(&find("sh").unwrap()));
        assert!(!is_static(Path::new("/etc/passwd")));
        if let Some(path) = find("busybox") {
            let linked = std::process::Command::new("ldd")
                .arg(path.canonicalize().unwrap())
                .output()
                .unwrap();
            assert_eq!(is_static(&path), !linked.status.success());
        }
    }
}
