//! Memory and CPU time of a process in a pod, as the kernel reports them.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// Kernel ticks per second. Linux reports this number to programs on every machine.
const TICKS_PER_SECOND: u64 = 100;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched(u32);

impl Watched {
    /// The process of that program in the pod.
    pub fn of(pod: &Pod, program: &str) -> anyhow::Result<Self> {
        let uid = pod.uid().context("a pod has a uid")?;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            // A process can end while it is read.
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let command = read("cmdline");
            let first = PathBuf::from(command.split('\0').next().unwrap_or_default());
            if first.file_name().is_some_and(|f| f == program) && read("cgroup").contains(&uid) {
                return Ok(Self(pid));
            }
        }
        bail!("no process {program} of pod {} is running", pod.name_any())
    }

    /// A child of this process.
    pub fn child(child: &std::process::Child) -> Self {
        Self(child.id())
    }

    /// Kills it.
    pub fn kill(self) -> anyhow::Result<()> {
        let status = std::process::Command::new("kill")
            .args(["-KILL", &self.0.to_string()])
            .status()?;
        anyhow::ensure!(status.success(), "process {} could not be killed", self.0);
        Ok(())
    }

    /// Current resident memory, in MiB.
    pub fn resident(self) -> anyhow::Result<f64> {
        self.mebibytes("VmRSS")
    }

    /// Maximum resident memory so far, in MiB.
    pub fn resident_most(self) -> anyhow::Result<f64> {
        self.mebibytes("VmHWM")
    }

    /// Resident anonymous memory, in MiB: without the pages of the program file.
    pub fn anonymous(self) -> anyhow::Result<f64> {
        self.mebibytes("RssAnon")
    }

    fn mebibytes(self, field: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0))
            .with_context(|| format!("process {} has ended", self.0))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .with_context(|| format!("no {field} in the status of process {}", self.0))?;
        let kibibytes: u32 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(f64::from(kibibytes) / 1024.0)
    }

    /// CPU time of all its threads.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0))
            .with_context(|| format!("process {} has ended", self.0))?;
        // The second field is the program's name in brackets, which can contain spaces.
        let (_, fields) = stat.rsplit_once(')').context("the process's stat")?;
        let ticks = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u64>)
            .sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }
}
