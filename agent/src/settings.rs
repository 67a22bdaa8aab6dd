//! The command line flags, validated before anything is opened.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::Parser;

use crate::{health::Rules, metrics::GpuSeries};

/// Reports which GPUs a node has, their health, and which pods hold them.
#[derive(Parser, Clone, Debug)]
#[command(name = "leasehold-agent", version)]
pub(crate) struct Flags {
    /// Name of the Node that this agent runs on, and of its GpuNode.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Namespace of the Lease that the agent renews while it runs.
    #[arg(long, env = "POD_NAMESPACE", default_value = "leasehold-system")]
    namespace: String,
    /// The driver's NVML library.
    #[arg(long, default_value = "libnvidia-ml.so.1", value_name = "PATH")]
    nvml: PathBuf,
    /// The host's /sys.
    #[arg(long, default_value = "/sys", value_name = "DIR")]
    sysfs: PathBuf,
    /// The host's /proc.
    #[arg(long, default_value = "/proc", value_name = "DIR")]
    proc: PathBuf,
    /// The kubelet's pod-resources socket. Set it to an empty value if the node has no kubelet.
    #[arg(
        long,
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock",
        value_name = "SOCKET"
    )]
    pod_resources: OsString,
    /// The kubelet's directory of pod logs. Its entries show which pod a process belongs to, and when a pod starts.
    #[arg(long, default_value = "/var/log/pods", value_name = "DIR")]
    pod_logs: PathBuf,
    /// A kubeconfig file. Inside a cluster, the pod's own token is used by default.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How often the GPUs are read.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    period: Duration,
    /// How often the kubelet is asked which pods hold GPUs. It is also asked whenever a pod starts or ends.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    holders_period: Duration,
    /// How long a reading may take before the driver is reported as hung.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    deadline: Duration,
    /// Consecutive readings without a fault that a GPU needs after a fault before it is offered again.
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    recovery_readings: u32,
    /// Whether the GPU metrics of NVIDIA's dcgm-exporter are served. Disable them if dcgm-exporter runs on the node.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    dcgm_metrics: bool,
    #[command(flatten)]
    pub(crate) telemetry: leasehold_telemetry::Args,
}

/// Validated flags.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) nvml: PathBuf,
    pub(crate) sysfs: PathBuf,
    pub(crate) proc: PathBuf,
    pub(crate) pod_resources: Option<PathBuf>,
    pub(crate) pod_logs: PathBuf,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) period: Duration,
    pub(crate) holders_period: Duration,
    pub(crate) deadline: Duration,
    pub(crate) rules: Rules,
    pub(crate) gpu_series: GpuSeries,
    pub(crate) telemetry: leasehold_telemetry::Settings,
}

impl TryFrom<Flags> for Settings {
    type Error = anyhow::Error;

    fn try_from(args: Flags) -> anyhow::Result<Self> {
        ensure!(
            !args.node_name.is_empty(),
            "--node-name is empty: set it or NODE_NAME to the Node's name"
        );
        ensure!(
            args.period >= Duration::from_millis(100),
            "--period is shorter than 100ms"
        );
        ensure!(
            args.holders_period >= Duration::from_millis(100),
            "--holders-period is shorter than 100ms"
        );
        ensure!(
            args.recovery_readings > 0,
            "--recovery-readings is 0: a GPU needs at least one"
        );
        Ok(Self {
            node: args.node_name,
            namespace: args.namespace,
            nvml: args.nvml,
            sysfs: args.sysfs,
            proc: args.proc,
            pod_resources: Some(args.pod_resources)
                .filter(|socket| !socket.is_empty())
                .map(PathBuf::from),
            pod_logs: args.pod_logs,
            kubeconfig: args.kubeconfig,
            period: args.period,
            holders_period: args.holders_period,
            deadline: args.deadline,
            rules: Rules {
                recovery_readings: args.recovery_readings,
            },
            gpu_series: if args.dcgm_metrics {
                GpuSeries::Dcgm
            } else {
                GpuSeries::None
            },
            telemetry: leasehold_telemetry::Settings::new("leasehold-agent", &args.telemetry)
                .context("check the telemetry flags")?,
        })
    }
}

/// `10s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a duration: write 10s, 500ms or 2m"))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("{text:?} has no unit: write 10s, 500ms or 2m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[&str]) -> anyhow::Result<Settings> {
        Settings::try_from(Flags::try_parse_from([&["leasehold-agent"], flags].concat())?)
    }

    #[test]
    fn defaults_are_those_of_a_node() {
        let settings = settings(&["--node-name", "n1"]).unwrap();
        assert_eq!(settings.period, Duration::from_secs(10));
        assert_eq!(settings.nvml, PathBuf::from("libnvidia-ml.so.1"));
        assert!(settings.pod_resources.is_some());
    }

    #[test]
    fn a_node_without_a_kubelet_has_no_socket() {
        assert_eq!(
            settings(&["--node-name", "n1", "--pod-resources", ""])
                .unwrap()
                .pod_resources,
            None
        );
    }

    #[test]
    fn invalid_flags_are_refused_with_the_valid_form() {
        for (flags, expected) in [
            (["--node-name", "n1", "--period", "10"], "write 10s"),
            (["--node-name", "n1", "--period", "1ms"], "shorter than 100ms"),
            (["--node-name", "", "--period", "1s"], "--node-name is empty"),
        ] {
            let error = format!("{:#}", settings(&flags).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
