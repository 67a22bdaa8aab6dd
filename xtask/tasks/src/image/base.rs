//! What every image stands on: Debian's C library and certificates, and in some a busybox.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use leasehold_testcluster::oci::Image;
use leasehold_testtools::debian;

/// Of those packages: character sets, texts and settings that no static or Rust program reads.
const LEFT_OUT: &[&str] = &["usr/share", "usr/sbin", "gconv", "audit", "locale"];

const PASSWD: &str =
    "root:x:0:0:root:/root:/sbin/nologin\nleasehold:x:65532:65532:leasehold:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nleasehold:x:65532:\n";

/// The unpacked packages, fetched once a machine.
pub(super) fn ensure() -> Result<PathBuf> {
    let root = leasehold_testcluster::cache_root()?.join("image-base");
    fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
    let lock = File::create(root.join("lock"))?;
    lock.lock()
        .context("wait for another process that fetches the base")?;
    let ready = root.join("1");
    if ready.exists() {
        return Ok(ready);
    }
    let draft = tempfile::tempdir_in(&root)?;
    let (packages, tree) = (draft.path().join("packages"), draft.path().join("tree"));
    fs::create_dir(&packages)?;
    fs::create_dir(&tree)?;
    debian::download(debian::IMAGE_BASE, &packages).context("fetch the packages of the images' base")?;
    for package in sorted(&packages)? {
        run(Command::new("dpkg-deb").arg("-x").args([&package, &tree]))?;
    }
    let certificates = tree.join("etc/ssl/certs");
    fs::create_dir_all(&certificates)?;
    fs::write(
        certificates.join("ca-certificates.crt"),
        bundle(&tree.join("usr/share/ca-certificates/mozilla"))?,
    )?;
    fs::rename(&tree, &ready)?;
    Ok(ready)
}

/// All certificates in one file, which the package's installation would have made.
fn bundle(folder: &Path) -> Result<Vec<u8>> {
    let mut bundle = Vec::new();
    for certificate in sorted(folder)? {
        bundle.extend(fs::read(&certificate)?);
        if bundle.last() != Some(&b'\n') {
            bundle.push(b'\n');
        }
    }
    Ok(bundle)
}

/// The image with the base in it.
pub(super) fn onto(image: Image, base: &Path) -> Result<Image> {
    let image = add(image, base, base)?;
    Ok(image
        .directory("tmp", 0o1777)
        .bytes("etc/passwd", PASSWD, 0o644)
        .bytes("etc/group", GROUP, 0o644))
}

fn add(mut image: Image, base: &Path, folder: &Path) -> Result<Image> {
    for path in sorted(folder)? {
        let name = path
            .strip_prefix(base)?
            .to_str()
            .context("a file name that is no text")?
            .to_owned();
        if LEFT_OUT
            .iter()
            .any(|left| name == *left || name.ends_with(&format!("/{left}")))
        {
            continue;
        }
        let about = path.symlink_metadata()?;
        let mode = about.permissions().mode() & 0o777;
        image = if about.is_symlink() {
            let target = fs::read_link(&path)?;
            image.link(&name, target.to_str().context("a link that is no text")?)
        } else if about.is_dir() {
            add(image.directory(&name, mode), base, &path)?
        } else {
            image.copy(&name, &path, mode)
        };
    }
    Ok(image)
}

/// The image with a shell and the common commands.
pub(super) fn busybox(image: Image) -> Result<Image> {
    let busybox = debian::busybox()?;
    let commands = run(Command::new(&busybox).arg("--list"))?;
    let mut image = image.directory("bin", 0o755).copy("bin/busybox", &busybox, 0o755);
    for command in commands.lines().filter(|command| *command != "busybox") {
        image = image.link(&format!("bin/{command}"), "busybox");
    }
    Ok(image)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
