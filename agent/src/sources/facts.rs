//! The facts of a reading of the hardware, as plain data. The rest of the agent does not use NVML.

use std::{collections::BTreeSet, fmt};

use crate::gpu_class::Class;

/// All GPUs of the node at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// `580.95.05`; empty if NVML reports none.
    pub(crate) driver_version: String,
    /// `13.0`; empty if NVML reports none.
    pub(crate) cuda_version: String,
    /// By index, in NVML's order.
    pub(crate) slots: Vec<Slot>,
}

impl Reading {
    /// The GPUs that could be read.
    pub(crate) fn gpus(&self) -> impl Iterator<Item = &GpuFacts> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Read(gpu) => Some(&**gpu),
            Slot::Lost | Slot::Failed(_) => None,
        })
    }
}

/// One index of NVML.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Slot {
    Read(Box<GpuFacts>),
    /// NVML reports that this GPU is lost, and no facts about it.
    Lost,
    /// NVML failed in another way, with this error.
    Failed(String),
}

/// One GPU. Values that the card or its driver does not support are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GpuFacts {
    pub(crate) index: u32,
    pub(crate) minor: Option<u32>,
    pub(crate) uuid: String,
    /// Empty if NVML reports none.
    pub(crate) name: String,
    /// `None` on GPUs that use the memory of the machine, such as GB10.
    pub(crate) memory: Option<Memory>,
    /// `9.0`; empty if NVML reports none.
    pub(crate) compute_capability: String,
    /// Bus address in NVML's notation: `00000000:18:00.0`; empty if NVML reports none.
    pub(crate) bus: String,
    /// PCI device id without the vendor, as NVML reports it.
    pub(crate) pci_device: u16,
    /// From the PCI bus; `None` on a machine without NUMA.
    pub(crate) numa_node: Option<i64>,
    /// UUIDs.
    pub(crate) nvlink_peers: Vec<String>,
    pub(crate) mig_enabled: Option<bool>,
    pub(crate) slices: Vec<SliceFacts>,
    pub(crate) ecc_enabled: Option<bool>,
    pub(crate) ecc_uncorrected: Option<u64>,
    pub(crate) fast: FastFacts,
    pub(crate) processes: Option<Vec<GpuProcess>>,
}

impl GpuFacts {
    pub(crate) fn class(&self) -> Class {
        Class::of(
            &self.name,
            self.memory.map(|memory| memory.total),
            self.pci_device,
        )
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    /// Reserved by the driver.
    pub(crate) reserved: u64,
    pub(crate) used: u64,
    pub(crate) free: u64,
}

/// A MIG slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SliceFacts {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
}

/// Values that change every second. They become metrics and are not written to objects.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct FastFacts {
    pub(crate) gpu_percent: Option<u32>,
    pub(crate) memory_percent: Option<u32>,
    pub(crate) power_milliwatts: Option<u32>,
    pub(crate) power_limit_milliwatts: Option<u32>,
    /// Since the driver was loaded.
    pub(crate) energy_millijoules: Option<u64>,
    pub(crate) temperature_celsius: Option<u32>,
    pub(crate) sm_clock_mhz: Option<u32>,
    pub(crate) memory_clock_mhz: Option<u32>,
    /// NVML's bit mask.
    pub(crate) throttle_reasons: Option<u64>,
    pub(crate) pcie_generation: Option<u32>,
    pub(crate) pcie_width: Option<u32>,
}

/// A process that computes on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GpuProcess {
    pub(crate) pid: u32,
}

/// An Xid that the driver reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct XidEvent {
    pub(crate) uuid: String,
    pub(crate) xid: u64,
}

/// Reads the hardware repeatedly.
pub(crate) trait Probe {
    fn read(&mut self) -> Result<Reading, ProbeError>;
    /// Events since the last call. It does not block.
    fn events(&mut self) -> Vec<XidEvent>;
}

/// Why the hardware could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(
        "cannot load the driver's library: {0}; install the NVIDIA driver, or set --nvml to the path of the library"
    )]
    NoLibrary(String),
    #[error("the driver returned an error: {0}; see the NVRM lines of `dmesg`")]
    Failed(String),
}

/// What a source other than NVML reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source<T> {
    Reported(T),
    /// The source could not be read; the text says why.
    Unavailable(String),
    /// This node does not have the source.
    Absent,
}

impl<T> Source<T> {
    pub(crate) fn reported(&self) -> Option<&T> {
        match self {
            Self::Reported(said) => Some(said),
            Self::Unavailable(_) | Self::Absent => None,
        }
    }

    pub(crate) fn as_ref(&self) -> Source<&T> {
        match self {
            Self::Reported(said) => Source::Reported(said),
            Self::Unavailable(why) => Source::Unavailable(why.clone()),
            Self::Absent => Source::Absent,
        }
    }

    pub(crate) fn map<U>(self, with: impl FnOnce(T) -> U) -> Source<U> {
        match self {
            Self::Reported(said) => Source::Reported(with(said)),
            Self::Unavailable(why) => Source::Unavailable(why),
            Self::Absent => Source::Absent,
        }
    }
}

impl<T, E: fmt::Display> From<Result<T, E>> for Source<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(said) => Self::Reported(said),
            Err(error) => Self::Unavailable(format!("{error:#}")),
        }
    }
}

/// Normalises a bus address of NVML or sysfs so that they can be compared: `0000:18:00.0`.
pub(crate) fn bus_key(bus: &str) -> String {
    let lower = bus.to_ascii_lowercase();
    // NVML writes the domain with eight digits, sysfs with at least four.
    match lower.split_once(':') {
        Some((domain, rest)) => format!("{:0>4}:{rest}", domain.trim_start_matches('0')),
        None => lower,
    }
}

/// The ids under which a device plugin can advertise a GPU: its own, or those of its MIG slices.
pub(crate) fn plugin_ids(gpu: &GpuFacts) -> BTreeSet<&str> {
    if gpu.slices.is_empty() {
        BTreeSet::from([gpu.uuid.as_str()])
    } else {
        gpu.slices.iter().map(|slice| slice.uuid.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_address_is_equal_in_both_notations() {
        assert_eq!(bus_key("00000000:1B:00.0"), bus_key("0000:1b:00.0"));
        assert_eq!(bus_key("00010000:01:00.0"), "10000:01:00.0");
        assert_ne!(bus_key("00000001:1B:00.0"), bus_key("0000:1b:00.0"));
    }
}
