//! Converts the state of the node into the status of its GpuNode, and back after a restart. Pure.
//!
//! The status contains no values that change with time alone: if nothing changed, it equals the previous one and is
//! not written.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use leasehold_crds::{
    provider::node::{
        DeviceHealth, GpuDevice, GpuHolder, GpuNodeStatus, GpuSlice, NodeCondition, NodeReason,
    },
    shared::conditions::{ConditionStatus, condition, set},
};

use crate::{
    gpu_class::slice_class,
    health::{HealthHistory, Record, checks::is_withheld, is_fault},
    sources::facts::{GpuFacts, Memory, ProbeError, SliceFacts, Source, plugin_ids},
    sources::kubelet::Allocation,
    sources::nvml::watchdog::Outcome,
};

/// Limits of the schema.
const DEVICES_MAX: usize = 64;
const HOLDERS_MAX: usize = 256;
const LIST_MAX: usize = 32;
const SLICES_MAX: usize = 16;
const TEXT_MAX: usize = 96;
const MESSAGE_MAX: usize = 256;

/// Input of a status.
pub(crate) struct Known<'a> {
    pub(crate) outcome: &'a Outcome,
    pub(crate) history: &'a HealthHistory,
    pub(crate) pci: &'a Source<()>,
    pub(crate) kubelet: &'a Source<Allocation>,
    /// Confirmed foreign processes.
    pub(crate) foreign_processes: &'a Source<Vec<String>>,
    /// Confirmed memory in use on GPUs without a holder.
    pub(crate) unheld_memory: &'a Source<Vec<String>>,
    pub(crate) generation: i64,
}

/// Computes the status from the previous one. `now` becomes the transition time of conditions that change.
pub(crate) fn status(before: &GpuNodeStatus, known: &Known<'_>, now: Timestamp) -> GpuNodeStatus {
    let device = |record: &Record| GpuDevice {
        shared: is_shared(record, before, known.kubelet),
        ..device(record)
    };
    let devices: Vec<GpuDevice> = known.history.gpus.iter().take(DEVICES_MAX).map(device).collect();
    let mut next = GpuNodeStatus {
        class: class(&devices),
        devices,
        conditions: before.conditions.clone(),
        holders: match known.kubelet {
            Source::Reported(allocation) => holders(allocation),
            Source::Unavailable(_) => before.holders.clone(),
            Source::Absent => Vec::new(),
        },
        ..before.clone()
    };
    if let Outcome::Read(reading) = known.outcome {
        next.gpu_count = count(reading.slots.len());
        next.driver_version.clone_from(&reading.driver_version);
        next.cuda_version.clone_from(&reading.cuda_version);
    }
    for condition in [
        healthy(known),
        witnesses_agree(known),
        no_foreign_processes(known),
        unheld_memory_free(known),
    ] {
        set(&mut next.conditions, condition, now);
    }
    next
}

/// Restores records from a status, at the agent's start.
pub(crate) fn records(status: &GpuNodeStatus) -> Vec<Record> {
    status.devices.iter().map(record).collect()
}

fn record(device: &GpuDevice) -> Record {
    let size = |bytes: i64| u64::try_from(bytes).unwrap_or_default();
    let total = size(device.memory_nominal_bytes);
    let gpu = GpuFacts {
        index: u32::try_from(device.index).unwrap_or_default(),
        uuid: device.uuid.clone(),
        name: device.name.clone(),
        memory: (total > 0).then(|| Memory {
            total,
            reserved: total.saturating_sub(size(device.memory_usable_bytes)),
            ..Memory::default()
        }),
        compute_capability: device.compute_capability.clone(),
        bus: device.pci_bus_id.clone(),
        numa_node: device.numa_node,
        nvlink_peers: device.nvlink_peers.clone(),
        slices: device
            .slices
            .iter()
            .map(|slice| SliceFacts {
                uuid: slice.uuid.clone(),
                name: slice.class.clone(),
                memory_bytes: size(slice.memory_bytes),
            })
            .collect(),
        mig_enabled: device.mig_enabled,
        ecc_enabled: device.ecc_enabled,
        ..GpuFacts::default()
    };
    let since = device.since.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    Record::remembered(gpu, device.health, device.message.clone(), since)
}

fn device(record: &Record) -> GpuDevice {
    let gpu = &record.gpu;
    let class = gpu.class();
    GpuDevice {
        index: i64::from(gpu.index),
        uuid: cut(&gpu.uuid, TEXT_MAX),
        name: cut(&gpu.name, TEXT_MAX),
        class: class.to_string(),
        memory_nominal_bytes: bytes(class.nominal_bytes()),
        memory_usable_bytes: bytes(
            gpu.memory
                .map_or(0, |memory| memory.total.saturating_sub(memory.reserved)),
        ),
        compute_capability: gpu.compute_capability.clone(),
        pci_bus_id: gpu.bus.clone(),
        numa_node: gpu.numa_node,
        nvlink_peers: gpu
            .nvlink_peers
            .iter()
            .take(LIST_MAX)
            .map(|uuid| cut(uuid, TEXT_MAX))
            .collect(),
        mig_enabled: gpu.mig_enabled,
        slices: gpu
            .slices
            .iter()
            .take(SLICES_MAX)
            .map(|slice| GpuSlice {
                uuid: cut(&slice.uuid, TEXT_MAX),
                class: slice_class(&class.to_string(), &slice.name),
                memory_bytes: bytes(slice.memory_bytes),
            })
            .collect(),
        shared: false,
        ecc_enabled: gpu.ecc_enabled,
        health: record.health,
        message: cut(&record.message, MESSAGE_MAX),
        since: record.since.to_string(),
    }
}

/// While the kubelet is unavailable, its last answer counts.
fn is_shared(record: &Record, before: &GpuNodeStatus, kubelet: &Source<Allocation>) -> bool {
    match kubelet {
        Source::Reported(allocation) => plugin_ids(&record.gpu)
            .iter()
            .any(|id| allocation.shared.contains(*id)),
        Source::Unavailable(_) => {
            let same = |device: &&GpuDevice| device.uuid == cut(&record.gpu.uuid, TEXT_MAX);
            before
                .devices
                .iter()
                .find(same)
                .is_some_and(|device| device.shared)
        }
        Source::Absent => false,
    }
}

fn class(devices: &[GpuDevice]) -> String {
    let sliced = devices.iter().all(|device| device.mig_enabled == Some(true));
    let classes: BTreeSet<&str> = if sliced {
        let slices = devices.iter().flat_map(|device| &device.slices);
        slices.map(|slice| slice.class.as_str()).collect()
    } else {
        devices.iter().map(|device| device.class.as_str()).collect()
    };
    match classes.len() {
        0 => String::new(),
        1 => classes.into_iter().collect(),
        _ => "mixed".to_owned(),
    }
}

fn holders(allocation: &Allocation) -> Vec<GpuHolder> {
    let holder = |holder: &crate::sources::kubelet::Holder| GpuHolder {
        namespace: holder.namespace.clone(),
        pod: holder.pod.clone(),
        uuids: holder
            .ids
            .iter()
            .take(LIST_MAX)
            .map(|id| cut(id, TEXT_MAX))
            .collect(),
    };
    allocation.holders.iter().take(HOLDERS_MAX).map(holder).collect()
}

fn healthy(known: &Known<'_>) -> Condition {
    let report = |truth, reason, message: String| {
        condition(NodeCondition::Healthy, truth, reason, message, known.generation)
    };
    match known.outcome {
        Outcome::Hung => {
            let message = "a call to the driver does not return, so the state of the GPUs is unknown; see `dmesg`, and reboot the node if it persists";
            report(ConditionStatus::Unknown, NodeReason::NvmlHung, message.to_owned())
        }
        Outcome::Failed(error @ ProbeError::NoLibrary(_)) if known.history.gpus.is_empty() => {
            report(ConditionStatus::False, NodeReason::NoLibrary, error.to_string())
        }
        Outcome::Failed(error @ ProbeError::NoLibrary(_)) => {
            report(ConditionStatus::Unknown, NodeReason::NoLibrary, error.to_string())
        }
        Outcome::Failed(error @ ProbeError::Failed(_)) => report(
            ConditionStatus::Unknown,
            NodeReason::NvmlFailed,
            error.to_string(),
        ),
        Outcome::Read(_) => {
            let (truth, reason, message) = of_devices(&known.history.gpus);
            report(truth, reason, message)
        }
    }
}

fn of_devices(gpus: &[Record]) -> (ConditionStatus, NodeReason, String) {
    let broken: Vec<&Record> = gpus.iter().filter(|record| is_fault(record.health)).collect();
    let unknown: Vec<&Record> = gpus
        .iter()
        .filter(|record| record.health == DeviceHealth::Unknown)
        .collect();
    match (broken.first(), unknown.first()) {
        _ if gpus.is_empty() => (
            ConditionStatus::False,
            NodeReason::NoGpus,
            "NVML reports no GPU".to_owned(),
        ),
        (Some(first), _) => (ConditionStatus::False, reason(first.health), list(&broken)),
        (None, Some(_)) => (
            ConditionStatus::Unknown,
            NodeReason::NotVouchedFor,
            list(&unknown),
        ),
        (None, None) => (
            ConditionStatus::True,
            NodeReason::AllHealthy,
            format!("all {} GPUs are healthy", gpus.len()),
        ),
    }
}

const fn reason(health: DeviceHealth) -> NodeReason {
    match health {
        DeviceHealth::Healthy => NodeReason::AllHealthy,
        DeviceHealth::Unknown => NodeReason::NotVouchedFor,
        DeviceHealth::Lost => NodeReason::GpuLost,
        DeviceHealth::FatalXid => NodeReason::FatalXid,
        DeviceHealth::EccUncorrectable => NodeReason::EccUncorrectable,
        DeviceHealth::Duplicate => NodeReason::Duplicate,
        DeviceHealth::WitnessesDisagree => NodeReason::WitnessesDisagree,
        DeviceHealth::Recovering => NodeReason::Recovering,
    }
}

fn list(records: &[&Record]) -> String {
    let lines = records.iter().map(|record| {
        format!(
            "GPU {} ({}): {}",
            record.gpu.index, record.gpu.uuid, record.message
        )
    });
    lines.collect::<Vec<_>>().join("; ")
}

fn witnesses_agree(known: &Known<'_>) -> Condition {
    let report = |truth, reason, message: String| {
        condition(
            NodeCondition::WitnessesAgree,
            truth,
            reason,
            message,
            known.generation,
        )
    };
    let disagreeing: Vec<&Record> = known
        .history
        .gpus
        .iter()
        .filter(|record| {
            matches!(
                record.health,
                DeviceHealth::Duplicate | DeviceHealth::WitnessesDisagree
            )
        })
        .collect();
    let unmatched_devices = known.history.confirmed_unmatched();
    if let Some(first) = disagreeing.first() {
        return report(ConditionStatus::False, reason(first.health), list(&disagreeing));
    }
    if !unmatched_devices.is_empty() {
        return report(
            ConditionStatus::False,
            NodeReason::NotInNvml,
            unmatched_devices.join("; "),
        );
    }
    if let (Outcome::Hung | Outcome::Failed(_), _) = (known.outcome, ()) {
        return report(
            ConditionStatus::Unknown,
            NodeReason::NvmlSilent,
            "NVML is unavailable".to_owned(),
        );
    }
    if let Source::Unavailable(why) = known.pci {
        return report(ConditionStatus::Unknown, NodeReason::PciSilent, why.clone());
    }
    if let Source::Unavailable(why) = known.kubelet {
        return report(ConditionStatus::Unknown, NodeReason::KubeletSilent, why.clone());
    }
    let withheld: Vec<&str> = known
        .history
        .gpus
        .iter()
        .filter(|record| is_withheld(known.kubelet, &record.gpu))
        .map(|record| record.gpu.uuid.as_str())
        .collect();
    if !withheld.is_empty() {
        return report(
            ConditionStatus::False,
            NodeReason::GpusNotAdvertised,
            format!("the device plugin does not advertise {}", withheld.join(", ")),
        );
    }
    let witnesses = match known.kubelet {
        Source::Absent => "NVML and the PCI bus agree; this node has no kubelet",
        Source::Reported(_) | Source::Unavailable(_) => "NVML, the PCI bus and the device plugin agree",
    };
    report(ConditionStatus::True, NodeReason::Agree, witnesses.to_owned())
}

fn no_foreign_processes(known: &Known<'_>) -> Condition {
    let report = |truth, reason, message: String| {
        condition(
            NodeCondition::NoForeignProcesses,
            truth,
            reason,
            message,
            known.generation,
        )
    };
    if !matches!(known.outcome, Outcome::Read(_)) {
        return report(
            ConditionStatus::Unknown,
            NodeReason::NvmlSilent,
            "NVML is unavailable".to_owned(),
        );
    }
    match known.foreign_processes {
        Source::Reported(found) if found.is_empty() => report(
            ConditionStatus::True,
            NodeReason::OnlyHolders,
            "only pods that hold a GPU compute on it".to_owned(),
        ),
        Source::Reported(found) => report(
            ConditionStatus::False,
            NodeReason::ForeignProcess,
            found.join("; "),
        ),
        Source::Unavailable(why) => report(ConditionStatus::Unknown, NodeReason::OwnersUnknown, why.clone()),
        Source::Absent => report(
            ConditionStatus::Unknown,
            NodeReason::OwnersUnknown,
            "the owners of the processes are unknown".to_owned(),
        ),
    }
}

fn unheld_memory_free(known: &Known<'_>) -> Condition {
    let type_ = NodeCondition::UnheldMemoryFree;
    let report = |truth, reason, message: String| condition(type_, truth, reason, message, known.generation);
    match known.unheld_memory {
        _ if !matches!(known.outcome, Outcome::Read(_)) => report(
            ConditionStatus::Unknown,
            NodeReason::NvmlSilent,
            "NVML is unavailable".to_owned(),
        ),
        Source::Reported(found) if found.is_empty() => report(
            ConditionStatus::True,
            NodeReason::MemoryFree,
            "GPUs that no pod holds have their memory free".to_owned(),
        ),
        Source::Reported(found) => report(ConditionStatus::False, NodeReason::MemoryInUse, found.join("; ")),
        Source::Unavailable(why) => report(ConditionStatus::Unknown, NodeReason::KubeletSilent, why.clone()),
        Source::Absent => report(
            ConditionStatus::Unknown,
            NodeReason::OwnersUnknown,
            "there is no kubelet that reports which pod holds which GPU".to_owned(),
        ),
    }
}

/// Cuts a text to at most `max` bytes, at a character boundary.
fn cut(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn bytes(bytes: u64) -> i64 {
    // Limit of the schema: the largest integer that a JSON number represents exactly.
    i64::try_from(bytes).unwrap_or(i64::MAX).min((1 << 53) - 1)
}

fn count(count: usize) -> i64 {
    i64::try_from(count.min(DEVICES_MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
