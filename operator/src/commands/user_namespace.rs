//! What a probe pod runs: is its root no root of the node, and can it open exactly one GPU? Programs of tenants depend on both.

use std::{fs, io, path::Path, process::ExitCode};

/// Where the kubelet reads why a container failed.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Device files of NVIDIA's driver: `nvidia0`, `nvidia1`, … are GPUs, and programs need the others as well.
const PREFIX: &str = "nvidia";
const CONTROL: &str = "nvidiactl";

/// Checks both, and reports to the kubelet what is wrong.
pub fn run() -> ExitCode {
    let Err(why) = check(Path::new("/proc/self"), Path::new("/dev")) else {
        println!("root in a user namespace, with one GPU");
        return ExitCode::SUCCESS;
    };
    eprintln!("{why}");
    // Without it, the kubelet reads the end of the log.
    let _ = fs::write(TERMINATION_LOG, &why);
    ExitCode::FAILURE
}

fn check(proc: &Path, dev: &Path) -> Result<(), String> {
    let read = |name: &str| {
        let path = proc.join(name);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    is_root(&read("status")?)?;
    for map in ["uid_map", "gid_map"] {
        is_mapped(map, &read(map)?)?;
    }
    one_gpu(dev)
}

/// Whether the effective user is 0.
fn is_root(status: &str) -> Result<(), String> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    match ids.and_then(|ids| ids.split_whitespace().nth(1)) {
        Some("0") => Ok(()),
        Some(id) => Err(format!("the container runs as user {id}, not as root")),
        None => Err("the user of the container is not known".to_owned()),
    }
}

/// Whether root of the container is another user outside of it. Each line of a map is: first id inside, first id outside, count.
fn is_mapped(name: &str, map: &str) -> Result<(), String> {
    let lines = map
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let root = lines.into_iter().find(|line| line.first() == Some(&"0"));
    match root.as_deref() {
        Some([_, "0", _]) => Err(format!(
            "root of the container is root of the node: it is not in a user namespace ({name}: {})",
            map.split_whitespace().collect::<Vec<_>>().join(" ")
        )),
        Some([_, outside, _]) if outside.parse::<u32>().is_ok() => Ok(()),
        _ => Err(format!("{name} does not map root: {}", map.trim())),
    }
}

/// Whether the container has the device file of exactly one GPU, and can open it.
fn one_gpu(dev: &Path) -> Result<(), String> {
    let listed = fs::read_dir(dev).map_err(|error| format!("{}: {error}", dev.display()))?;
    let names = listed
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let is_gpu = |name: &String| {
        let number = name.strip_prefix(PREFIX).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    let gpus: Vec<String> = names.filter(is_gpu).collect();
    let [gpu] = gpus.as_slice() else {
        return Err(format!(
            "the container requested one GPU and has {} of the device files /dev/nvidia0, /dev/nvidia1, …",
            gpus.len()
        ));
    };
    for name in [gpu.as_str(), CONTROL] {
        match fs::OpenOptions::new().read(true).write(true).open(dev.join(name)) {
            Ok(_) => {}
            Err(error) if name == CONTROL && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(format!(
                    "root in the user namespace can't open /dev/{name}: {error}"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "Name:\tprobe\nUid:\t0\t0\t0\t0\n";
    const MAPPED: &str = "         0    2031616      65536\n";

    /// What a container finds with these maps of users and these files in its /dev.
    fn found(status: &str, map: &str, files: &[&str]) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let (proc, dev) = (directory.path().join("proc"), directory.path().join("dev"));
        for made in [&proc, &dev] {
            fs::create_dir(made).unwrap();
        }
        for (name, text) in [("status", status), ("uid_map", map), ("gid_map", map)] {
            fs::write(proc.join(name), text).unwrap();
        }
        for name in files {
            fs::write(dev.join(name), "").unwrap();
        }
        check(&proc, &dev)
    }

    #[test]
    fn a_container_is_root_in_a_user_namespace_with_one_gpu_or_tells_why_not() {
        let devices = ["null", "nvidia0", "nvidiactl", "nvidia-uvm"];
        assert_eq!(found(ROOT, MAPPED, &devices), Ok(()));
        let why = |status: &str, map: &str, files: &[&str]| found(status, map, files).unwrap_err();
        let on_host = why(ROOT, "         0          0 4294967295\n", &devices);
        assert!(
            on_host.contains("is not in a user namespace (uid_map: 0 0 4294967295)"),
            "{on_host}"
        );
        assert!(why(ROOT, "0 0 65536", &devices).contains("root of the node"));
        assert!(why(ROOT, "1000 100000 65536", &devices).contains("does not map root"));
        assert!(why("Uid:\t0\t65532\t0\t0\n", MAPPED, &devices).contains("as user 65532"));
        assert!(why(ROOT, MAPPED, &["nvidiactl"]).contains("has 0 of"));
        assert!(why(ROOT, MAPPED, &["nvidia0", "nvidia1"]).contains("has 2 of"));
    }

    #[test]
    fn a_gpu_that_root_can_not_open_is_no_gpu() {
        let directory = tempfile::tempdir().unwrap();
        // A directory can't be opened for writing, by whomever.
        fs::create_dir(directory.path().join("nvidia3")).unwrap();
        let why = one_gpu(directory.path()).unwrap_err();
        assert!(
            why.starts_with("root in the user namespace can't open /dev/nvidia3: "),
            "{why}"
        );
    }
}
