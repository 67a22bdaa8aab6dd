//! Finds the pod of a process through its control group.
//!
//! The control group contains the pod's uid. The kubelet's log directory, with entries named
//! `<namespace>_<name>_<uid>`, maps the uid to the pod. So the agent does not list pods from the API and needs no
//! permission to do so.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::sources::facts::Source;

/// Owner of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Pod(PodName),
    /// A pod that has no entry in the kubelet's logs.
    UnknownPod(String),
    /// Not in a pod.
    Host,
    /// The process ended, or is not visible here.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Pods of this node by uid.
pub(crate) type Pods = BTreeMap<String, PodName>;

/// The pods that have an entry in the kubelet's logs.
pub(crate) fn pods(logs: &Path) -> Source<Pods> {
    let read = || -> io::Result<Pods> {
        let mut pods = Pods::new();
        for entry in fs::read_dir(logs)? {
            if let Some((uid, pod)) = entry?.file_name().to_str().and_then(pod) {
                pods.insert(uid, pod);
            }
        }
        Ok(pods)
    };
    Source::from(read().map_err(|error| {
        format!(
            "cannot read {} ({error}); mount the kubelet's pod logs, or set --pod-logs to their path",
            logs.display()
        )
    }))
}

fn pod(entry: &str) -> Option<(String, PodName)> {
    let mut parts = entry.splitn(3, '_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    Some((
        uid.to_owned(),
        PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
    ))
}

/// Finds the owner of a process in the host's `/proc`.
pub(crate) fn owner(proc: &Path, pods: &Pods, pid: u32) -> Owner {
    let Ok(groups) = fs::read_to_string(proc.join(pid.to_string()).join("cgroup")) else {
        return Owner::Gone;
    };
    match pod_uid(&groups) {
        None => Owner::Host,
        Some(uid) => match pods.get(&uid) {
            Some(pod) => Owner::Pod(pod.clone()),
            None => Owner::UnknownPod(uid),
        },
    }
}

/// Extracts the pod's uid from `/proc/PID/cgroup`: `…/pod<uid>/…` with the cgroupfs driver, `…-pod<uid, with _ for
/// ->.slice` with the systemd driver.
fn pod_uid(groups: &str) -> Option<String> {
    groups.split(['/', '\n']).find_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = part
            .strip_prefix("pod")
            .or_else(|| part.split_once("-pod").map(|(_, uid)| uid))?;
        let uid = uid.replace('_', "-");
        // The uid of a static pod is a hash without dashes.
        let is_uid = uid.len() >= 32 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        is_uid.then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f9c6d3e-1b2a-4c5d-8e7f-001122334455";

    #[test]
    fn a_pod_is_found_in_each_driver_and_version_of_control_groups() {
        let systemd = UID.replace('-', "_");
        for groups in [
            format!("0::/kubepods/burstable/pod{UID}/abc\n"),
            format!(
                "0::/../../../kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{systemd}.slice/cri-containerd-abc.scope\n"
            ),
            format!("12:cpu:/node-a/kubepods/pod{UID}/abc\n11:memory:/node-a/kubepods/pod{UID}/abc\n"),
        ] {
            assert_eq!(pod_uid(&groups).as_deref(), Some(UID), "{groups}");
        }
        for groups in [
            "0::/system.slice/sshd.service\n",
            "0::/user.slice/podman-123.scope\n",
            "",
        ] {
            assert_eq!(pod_uid(groups), None, "{groups}");
        }
    }

    #[test]
    fn a_process_has_an_owner_or_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, logs) = (dir.path().join("proc"), dir.path().join("logs"));
        fs::create_dir_all(logs.join(format!("team-a_train-0_{UID}"))).unwrap();
        for (pid, groups) in [
            (1, "0::/init.scope\n".to_owned()),
            (2, format!("0::/kubepods/pod{UID}/c\n")),
            (3, format!("0::/kubepods/pod{}/c\n", UID.replace('0', "1"))),
        ] {
            fs::create_dir_all(proc.join(pid.to_string())).unwrap();
            fs::write(proc.join(pid.to_string()).join("cgroup"), groups).unwrap();
        }
        let Source::Reported(pods) = pods(&logs) else {
            panic!("the directory exists")
        };
        let train = PodName {
            namespace: "team-a".to_owned(),
            name: "train-0".to_owned(),
        };
        assert_eq!(owner(&proc, &pods, 1), Owner::Host);
        assert_eq!(owner(&proc, &pods, 2), Owner::Pod(train));
        assert!(matches!(owner(&proc, &pods, 3), Owner::UnknownPod(_)));
        assert_eq!(owner(&proc, &pods, 4), Owner::Gone);
    }
}
