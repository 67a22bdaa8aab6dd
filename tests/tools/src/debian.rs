//! Debian packages: those that the machine must have, which `debian-packages.txt` lists and nothing else names, and those
//! that images are made of.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::Progress;
use crate::cache::Lock;
use crate::command;

/// The list, in the repository.
const LIST: &str = "tests/tools/debian-packages.txt";

/// A line of the list.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    /// A path, or the name of a program on PATH.
    proof: String,
    name: String,
}

/// Packages of every image: the binaries link to the first two, TLS trusts the third.
pub const IMAGE_BASE: &[&str] = &["libc6", "libgcc-s1", "ca-certificates"];

/// The smallest Debian that a person would know, and `hello`, which is in it as an archive only: the image of a box.
pub const BOX_IMAGE: &[&str] = &[
    "apt",
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "hello",
    "hostname",
    "libc-bin",
    "libpam-modules",
    "libpam-runtime",
    "login",
    "openssh-server",
    "passwd",
    "sed",
    "tar",
    "util-linux",
];

/// Where Debian's package puts the CNI plugins.
pub const CNI: &str = "/usr/lib/cni";

/// Installs what is missing.
///
/// # Errors
/// When something is missing and this process is not root, with one `apt-get install` line for all of it; or when
/// apt-get fails.
pub fn ensure(progress: &dyn Progress) -> Result<()> {
    let packages = missing()?;
    if packages.is_empty() {
        return Ok(());
    }
    if require_root().is_err() {
        bail!(
            "Debian packages are missing, and only root can install them. Run this, then try again:\n  \
             apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    progress.step(&format!("install Debian packages: {}", packages.join(" ")));
    install()
}

fn install() -> Result<()> {
    let _lock = Lock::take("apt")?;
    let packages = missing()?;
    if packages.is_empty() {
        return Ok(());
    }
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(packages.iter().map(String::as_str));
    update()?;
    apt_get(&arguments, Path::new("/"))
        .with_context(|| format!("apt-get could not install {}", packages.join(" ")))?;
    let still = missing()?;
    if !still.is_empty() {
        bail!(
            "apt-get installed {}, but the programs are not where they are expected",
            still.join(" ")
        );
    }
    Ok(())
}

/// # Errors
/// When this process is not root, who alone may install packages and make a cluster.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "a test cluster makes network and mount namespaces and control groups, for which it must run as root"
    )
}

/// Packages of the list of which the proof is absent.
///
/// # Errors
/// When the list can't be read.
pub fn missing() -> Result<Vec<String>> {
    let path = crate::root().join(LIST);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let packages = parse(&text)?.into_iter();
    Ok(packages
        .filter(|package| !present(&package.proof))
        .map(|package| package.name)
        .collect())
}

fn parse(text: &str) -> Result<Vec<Package>> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            match (words.next(), words.next(), words.next()) {
                (Some(proof), Some(name), Some(_)) => Ok(Package { proof, name }),
                _ => bail!("{LIST}: want a proof, a package and what needs it: {line}"),
            }
        })
        .collect()
}

fn present(proof: &str) -> bool {
    match proof {
        // The dynamic busybox of the package `busybox` can't run in an image without a C library.
        "busybox" => busybox().is_ok(),
        path if path.starts_with('/') => Path::new(path).exists(),
        program => find(program).is_some(),
    }
}

/// Downloads the packages' archives into the folder, and installs nothing.
///
/// # Errors
/// When apt-get fails; outside Debian and its derivatives it always does.
pub fn download(packages: &[&str], folder: &Path) -> Result<()> {
    let arguments: Vec<&str> = ["download", "-q"].iter().chain(packages).copied().collect();
    fetch(&arguments, folder)
}

/// Downloads the packages' archives with all that they depend on, as for a system on which nothing is installed, and
/// installs nothing.
///
/// # Errors
/// As [`download`].
pub fn download_with_dependencies(packages: &[&str], folder: &Path) -> Result<()> {
    let state = tempfile::NamedTempFile::new()?;
    std::fs::create_dir_all(folder.join("partial"))?;
    let status = format!("Dir::State::status={}", state.path().display());
    let archives = format!("Dir::Cache::archives={}", folder.display());
    let mut arguments = vec![
        "install",
        "-q",
        "-y",
        "--download-only",
        "--no-install-recommends",
    ];
    arguments.extend(["-o", "Debug::NoLocking=true", "-o", &status, "-o", &archives]);
    arguments.extend(packages);
    fetch(&arguments, Path::new("/"))?;
    std::fs::remove_dir_all(folder.join("partial"))?;
    Ok(())
}

/// Runs apt-get, and once more with new package lists: a new machine has none, an old one has those of versions that
/// are gone.
fn fetch(arguments: &[&str], folder: &Path) -> Result<()> {
    let _lock = Lock::take("apt")?;
    if apt_get(arguments, folder).is_ok() {
        return Ok(());
    }
    if require_root().is_ok() {
        update()?;
    }
    apt_get(arguments, folder).context(
        "apt-get could not download packages; as root, `apt-get update` may help (Debian or Ubuntu is needed, \
         elsewhere build images with the Dockerfile)",
    )
}

fn update() -> Result<()> {
    apt_get(&["update", "-q"], Path::new("/"))
}

fn apt_get(arguments: &[&str], folder: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(folder);
    command::run(&mut apt).map(drop)
}

/// The statically linked busybox.
///
/// # Errors
/// When there is none on PATH.
pub fn busybox() -> Result<PathBuf> {
    find("busybox")
        .filter(|path| is_static(path))
        .context("there is no statically linked busybox: install the package busybox-static")
}

/// Whether the ELF file has no segment that names a dynamic loader.
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

    #[test]
    fn the_list_names_each_package_once() {
        let text = std::fs::read_to_string(crate::root().join(LIST)).unwrap();
        let mut names: Vec<_> = parse(&text)
            .unwrap()
            .into_iter()
            .map(|package| package.name)
            .collect();
        let all = names.len();
        assert!(all > 5);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_line_without_a_purpose_is_refused() {
        let error = parse("ip iproute2\n").unwrap_err().to_string();
        assert!(error.contains("ip iproute2"), "{error}");
        assert_eq!(
            parse("# comment\n\nip iproute2 namespaces of nodes\n").unwrap(),
            [Package {
                proof: "ip".to_owned(),
                name: "iproute2".to_owned()
            }]
        );
    }
}
