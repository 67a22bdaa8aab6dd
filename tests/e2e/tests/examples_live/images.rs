//! Images for examples that normally use images from registries: a Debian from the packages of the machine's archive, with
//! sshd and apt as in a box's image, and a server with two pages.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use leasehold_testcluster::oci::Image;
use leasehold_testtools::debian;
use serde_json::json;

/// Name of the image with a box.
pub(crate) const BOX: &str = "leasehold.test/debian-box:1";
/// Name of the image with the server.
pub(crate) const SERVER: &str = "leasehold.test/models-server:1";
/// Path of a package in the box that is not installed; the tenant installs it.
pub(crate) const PACKAGE: &str = "/root/hello.deb";

/// Documentation, and Perl, which is half of the size: writing archives is slow in a debug build.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "gconv",
    "perl",
    "perl-base",
    "perl5",
];

/// Files that the packages' scripts would write, as these scripts are not run.
const FILES: &[(&str, u32, &str)] = &[
    (
        "etc/shadow",
        0o640,
        "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n",
    ),
    (
        "etc/pam.d/common-auth",
        0o644,
        "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n",
    ),
    (
        "etc/pam.d/common-account",
        0o644,
        "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\naccount required pam_permit.so\n",
    ),
    (
        "etc/pam.d/common-password",
        0o644,
        "password required pam_unix.so obscure yescrypt\n",
    ),
    (
        "etc/pam.d/common-session",
        0o644,
        "session required pam_unix.so\n",
    ),
    (
        "etc/pam.d/common-session-noninteractive",
        0o644,
        "session required pam_unix.so\n",
    ),
];

/// Writes both image archives into `folder`.
pub(crate) fn write(folder: &Path) -> anyhow::Result<[PathBuf; 2]> {
    let archives = [folder.join("box.tar"), folder.join("server.tar")];
    debian()?.write(&archives[0])?;
    server()?.write(&archives[1])?;
    Ok(archives)
}

/// Answers the requests of the example like vLLM, and ignores its command line.
fn server() -> anyhow::Result<Image> {
    let serve = [
        "/bin/busybox",
        "sh",
        "-c",
        "exec /bin/busybox httpd -f -p 8000 -h /www",
    ];
    Ok(Image::new(SERVER)
        .directory("bin", 0o755)
        .copy("bin/busybox", debian::busybox()?, 0o755)
        .directory("www", 0o755)
        .bytes("www/health", "", 0o644)
        .directory("www/v1", 0o755)
        .bytes(
            "www/v1/models",
            r#"{"object":"list","data":[{"id":"Qwen/Qwen3-0.6B"}]}"#,
            0o644,
        )
        .config("Entrypoint", json!(serve))
        .config("User", json!("65532:65532")))
}

fn debian() -> anyhow::Result<Image> {
    let fetched = fetched()?;
    let (tree, packages) = (fetched.join("tree"), fetched.join("packages"));
    let mut image = add(Image::new(BOX).config("Cmd", json!(["/bin/bash"])), &tree, &tree)?;
    let read = |path: &str| fs::read_to_string(tree.join(path)).with_context(|| path.to_owned());
    let users =
        read("usr/share/base-passwd/passwd.master")? + "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n";
    image = image
        .bytes("etc/passwd", users, 0o644)
        .bytes("etc/group", read("usr/share/base-passwd/group.master")?, 0o644)
        .bytes(
            "etc/ssh/sshd_config",
            read("usr/share/openssh/sshd_config")?,
            0o644,
        )
        .bytes("var/lib/dpkg/status", installed(&packages)?, 0o644);
    for (path, mode, text) in FILES {
        image = image.bytes(path, *text, *mode);
    }
    Ok(image.copy(PACKAGE, packages.join("hello.deb"), 0o644))
}

/// The status file of dpkg for the unpacked packages.
fn installed(packages: &Path) -> anyhow::Result<String> {
    let mut status = String::new();
    for package in sorted(packages)?.iter().filter(|p| !p.ends_with("hello.deb")) {
        let about = run(Command::new("dpkg-deb").arg("--field").arg(package))?;
        let (name, rest) = about.split_once('\n').context("a package has a description")?;
        status += &format!("{name}\nStatus: install ok installed\n{rest}\n");
    }
    Ok(status)
}

/// The packages and their unpacked tree, fetched once per machine.
fn fetched() -> anyhow::Result<PathBuf> {
    let root = leasehold_testcluster::cache_root()?.join("image-debian");
    fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
    let lock = File::create(root.join("lock"))?;
    lock.lock()
        .context("wait for another process that fetches the packages")?;
    let ready = root.join("1");
    if ready.exists() {
        return Ok(ready);
    }
    let draft = root.join(format!("draft-{}", std::process::id()));
    let (packages, tree) = (draft.join("packages"), draft.join("tree"));
    fs::create_dir_all(&packages)?;
    fs::create_dir_all(&tree)?;
    debian::download_with_dependencies(debian::BOX_IMAGE, &packages)?;
    for package in sorted(&packages)? {
        let hello = package
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("hello_"));
        if hello {
            fs::rename(&package, packages.join("hello.deb"))?;
        } else {
            run(Command::new("dpkg-deb").arg("--extract").args([&package, &tree]))?;
        }
    }
    ensure!(packages.join("hello.deb").exists(), "apt fetched hello");
    fs::rename(&draft, &ready)?;
    Ok(ready)
}

fn add(mut image: Image, root: &Path, folder: &Path) -> anyhow::Result<Image> {
    for path in sorted(folder)? {
        let name = path
            .strip_prefix(root)?
            .to_str()
            .context("a file name that is not UTF-8")?;
        if LEFT_OUT
            .iter()
            .any(|left| name == *left || name.ends_with(&format!("/{left}")))
        {
            continue;
        }
        let about = path.symlink_metadata()?;
        let mode = about.permissions().mode() & 0o7777;
        image = if about.is_symlink() {
            let target = fs::read_link(&path)?;
            image.link(name, target.to_str().context("a link that is not UTF-8")?)
        } else if about.is_dir() {
            add(image.directory(name, mode), root, &path)?
        } else {
            image.copy(name, &path, mode)
        };
    }
    Ok(image)
}

fn sorted(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths: Vec<_> = fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}
