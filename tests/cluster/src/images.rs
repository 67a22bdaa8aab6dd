//! The two images that every node has: the one that holds a pod's namespaces, and a busybox for workloads.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use crate::oci::Image;
use leasehold_testtools::Tools;
use leasehold_testtools::command;

/// Every pod's first container.
pub(crate) const PAUSE: &str = "leasehold.test/pause:1";
/// A workload's image with a shell and the common commands; nothing is pulled for it.
pub const BUSYBOX: &str = "leasehold.test/busybox:1";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\nnobody:x:65534:\n";

/// Writes both archives into a cluster's directory and returns their paths.
pub(crate) fn write(tools: &Tools, directory: PathBuf) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(&directory)?;
    let (pause, busybox) = (directory.join("pause.tar"), directory.join("busybox.tar"));
    // A first process that waits, and ends at once when it is told to: `sleep` as process 1 would
    // ignore SIGTERM.
    let wait = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done";
    Image::new(PAUSE)
        .directory("bin", 0o755)
        .copy("bin/busybox", &tools.busybox, 0o755)
        .link("bin/sh", "busybox")
        .link("bin/sleep", "busybox")
        .config("Entrypoint", json!(["/bin/sh", "-c", wait]))
        .config("User", json!("65534:65534"))
        .write(&pause)?;
    busybox_image(tools)?.write(&busybox)?;
    Ok(vec![pause, busybox])
}

fn busybox_image(tools: &Tools) -> Result<Image> {
    let mut image = Image::new(BUSYBOX).config("Cmd", json!(["sh"]));
    for directory in ["bin", "etc", "root", "home", "usr", "usr/bin", "var"] {
        image = image.directory(directory, 0o755);
    }
    image = image
        .directory("tmp", 0o1777)
        .directory("home/user", 0o777)
        .bytes("etc/passwd", PASSWD, 0o644)
        .bytes("etc/group", GROUP, 0o644)
        .copy("bin/busybox", &tools.busybox, 0o755);
    let applets = command::run(&mut command::new(&tools.busybox, ["--list"]))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        image = image.link(&format!("bin/{applet}"), "busybox");
    }
    Ok(image)
}
