//! The health of the GPUs that a reservation holds.

use jiff::Timestamp;
use leasehold_crds::{
    GpuReservation,
    provider::node::{DeviceHealth, GpuDevice, GpuNodeStatus},
};
use leasehold_planner::provider::health::{self, Health, KubeletReport, NodeReport};

use crate::{
    Sim,
    cluster::{Gpu, Node},
};

impl Sim {
    /// Health of the GPUs that a reservation holds. Nodes that look unhealthy are read from the API server itself.
    pub(crate) fn health(&mut self, s: usize, p: usize, read: &GpuReservation, now: Timestamp) -> Health {
        let silent = self.faults.agents_silent.contains(&s);
        let site_up = !self.faults.sites_down.contains(&s);
        let offset_ms = self.sites[s].processes[p].offset_ms;
        let at = |ms: u64| {
            let local = i64::try_from(ms).unwrap_or(0) + offset_ms;
            Timestamp::from_millisecond(local).unwrap_or(Timestamp::UNIX_EPOCH)
        };
        let now_ms = self.now;
        // The agents' last heartbeat counts as a minute old, as that is the quickest way to an unknown state.
        let heard = |ms: Option<&u64>| ms.map(|ms| at(if silent { (*ms).min(now_ms - 61_000) } else { *ms }));
        let kubelet = |node: &Node, heard_ms: Option<&u64>| match node.not_ready_since {
            None => KubeletReport::Ready,
            Some(since) => KubeletReport::NotReady {
                since: at(since),
                heard_at: heard_ms.map(|ms| at(*ms)),
            },
        };
        let site = &mut self.sites[s];
        let process = &mut site.processes[p];
        let held = read
            .status
            .as_ref()
            .map(|s| s.gpu_uuids.clone())
            .unwrap_or_default();
        let statuses = agent_statuses(&process.nodes, offset_ms);
        let mut reachable_since = None;
        let mut reports: Vec<NodeReport<'_>> = Vec::new();
        for ((name, status), seen) in statuses.iter().zip(&process.nodes) {
            if !read.spec.nodes.iter().any(|n| n == name) {
                continue;
            }
            let heard_ms = process.heard_ms.get(*name);
            let mut report = NodeReport {
                node: name,
                heard_at: heard(heard_ms),
                status: Some(status),
                kubelet: kubelet(seen, heard_ms),
            };
            if report.is_suspect() {
                process.answers = process.answers.after(site_up, now);
                reachable_since = process.answers.since();
                if let (true, Some(node)) = (site_up, site.cluster.nodes.iter().find(|n| n.name == *name)) {
                    let heard_ms = site.cluster.heard_ms.get(*name);
                    report.heard_at = heard(heard_ms);
                    report.kubelet = kubelet(node, heard_ms);
                }
            }
            reports.push(report);
        }
        health::assess(&held, &reports, reachable_since, now)
    }
}

/// The statuses that the agents of these nodes write. The agents' clocks equal the clock of this process.
fn agent_statuses(nodes: &[Node], offset_ms: i64) -> Vec<(&str, GpuNodeStatus)> {
    let offset = offset_ms.div_euclid(1000);
    let since = |faulty_since: Option<u64>| {
        let since = faulty_since.map(|s| i64::try_from(s).unwrap_or(0) + offset);
        let since = since.and_then(|s| Timestamp::from_second(s).ok());
        since.map_or_else(String::new, |s| s.to_string())
    };
    nodes
        .iter()
        .map(|node| {
            let device = |gpu: &Gpu| GpuDevice {
                uuid: gpu.uuid.clone(),
                health: if gpu.faulty_since.is_some() {
                    DeviceHealth::Lost
                } else {
                    DeviceHealth::Healthy
                },
                since: since(gpu.faulty_since),
                ..GpuDevice::default()
            };
            let devices = node.gpus.iter().map(device).collect();
            (
                node.name.as_str(),
                GpuNodeStatus {
                    devices,
                    ..GpuNodeStatus::default()
                },
            )
        })
        .collect()
}
