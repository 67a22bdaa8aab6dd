//! The file behind the library: the GPUs of the simulated node, and their faults.
//!
//! One JSON document with one entry per GPU. Values that the hardware determines (bus, device id) are separate from
//! `faults`, which change only what NVML *reports*. So the sysfs tree always shows the real values.

use serde::{Deserialize, Serialize};

/// The node as the simulated driver sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuFile {
    /// Name of the node; UUIDs are derived from it.
    pub node: String,
    pub driver_version: String,
    /// Highest CUDA version of the driver, `major.minor`.
    pub cuda_version: String,
    /// Queries of the library that block until they are removed from this list; `*` means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hang: Vec<String>,
    /// Queries of the library that return `NVML_ERROR_NOT_SUPPORTED`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsupported: Vec<String>,
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gpu {
    /// Name of the model of this entry, for information only.
    pub model: String,
    pub name: String,
    pub uuid: String,
    pub serial: String,
    /// Bus address in sysfs notation: `0000:18:00.0`.
    pub bus: String,
    /// PCI device id without the vendor, hexadecimal: `2330`.
    pub pci_device: String,
    /// PCI subsystem id, device then vendor, hexadecimal: `16c110de`.
    pub pci_subsystem: String,
    pub numa_node: i32,
    pub pcie_generation: u32,
    pub pcie_width: u32,
    pub memory_bytes: u64,
    /// Memory reserved by the driver.
    pub reserved_bytes: u64,
    pub used_bytes: u64,
    /// `major.minor`.
    pub compute_capability: String,
    /// Absent if the model has no MIG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<Mig>,
    /// Absent if the model has no ECC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc: Option<Ecc>,
    /// Whether NVLink connects this GPU to the others of the node that have it too.
    #[serde(default)]
    pub nvlink: bool,
    pub utilization: Utilization,
    pub power_milliwatts: u32,
    pub power_limit_milliwatts: u32,
    pub energy: Energy,
    pub temperature_celsius: u32,
    pub clocks: Clocks,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttle: Vec<Throttle>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    /// Xid events so far, oldest first. A watcher gets those whose `seq` is above the highest at its registration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
    /// Sequence number of the next event. It never decreases, even if `events` is emptied.
    #[serde(default)]
    pub next_event: u64,
    #[serde(default, skip_serializing_if = "Faults::is_none")]
    pub faults: Faults,
}

/// Faults of a GPU.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Faults {
    /// Every call on the GPU, and getting its handle, fails with `NVML_ERROR_GPU_IS_LOST`. It stays in sysfs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Removed from the count, from sysfs and from the device plugin.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unplugged: bool,
    /// Only the device plugin reports it as unhealthy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
    /// Queries that block until removed from this list; `*` means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hang: Vec<String>,
    /// Queries that return `NVML_ERROR_NOT_SUPPORTED`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsupported: Vec<String>,
    /// The name that NVML reports instead of the real one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The UUID that NVML reports instead of the real one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The bus address that NVML reports instead of the real one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
}

impl Faults {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Multi-instance GPU: the slices are devices of their own.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mig {
    pub enabled: bool,
    #[serde(default)]
    pub slices: Vec<MigSlice>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigSlice {
    /// `1g.10gb`, as in the device's name.
    pub profile: String,
    pub uuid: String,
    pub gpu_instance: u32,
    pub compute_slices: u32,
    pub multiprocessors: u32,
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ecc {
    pub enabled: bool,
    /// Since the driver was loaded.
    pub corrected: u64,
    /// Since the driver was loaded.
    pub uncorrected: u64,
}

/// Percent of the last sample period.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Utilization {
    pub gpu: u32,
    pub memory: u32,
}

/// Base of the energy counter: it had the value `millijoules` at `at_unix_ms`, and has grown with the power since.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Energy {
    pub millijoules: u64,
    pub at_unix_ms: u64,
}

/// MHz.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    pub graphics: u32,
    pub sm: u32,
    pub memory: u32,
    pub video: u32,
}

/// Reasons for throttled clocks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Throttle {
    Idle,
    PowerCap,
    HwSlowdown,
    SwThermal,
    HwThermal,
    HwPowerBrake,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    pub used_bytes: u64,
    /// Index into the slices of a GPU with MIG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<usize>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    pub seq: u64,
    pub xid: u64,
}

/// An invalid value in the file.
#[derive(Debug, thiserror::Error)]
#[error("{field} is {value:?}, expected {expected}")]
pub struct BadValue {
    pub field: &'static str,
    pub value: String,
    pub expected: &'static str,
}

impl Gpu {
    /// The name that NVML reports.
    #[must_use]
    pub fn reported_name(&self) -> &str {
        self.faults.name.as_deref().unwrap_or(&self.name)
    }

    /// The UUID that NVML reports.
    #[must_use]
    pub fn reported_uuid(&self) -> &str {
        self.faults.uuid.as_deref().unwrap_or(&self.uuid)
    }

    /// The bus address that NVML reports, in sysfs notation.
    #[must_use]
    pub fn reported_bus(&self) -> &str {
        self.faults.bus.as_deref().unwrap_or(&self.bus)
    }

    /// The MIG slices; none without MIG.
    #[must_use]
    pub fn slices(&self) -> &[MigSlice] {
        match &self.mig {
            Some(mig) if mig.enabled => &mig.slices,
            _ => &[],
        }
    }

    /// The energy counter at a time, in millijoules.
    #[must_use]
    pub fn energy_millijoules(&self, unix_ms: u64) -> u64 {
        let elapsed_ms = unix_ms.saturating_sub(self.energy.at_unix_ms);
        self.energy.millijoules + elapsed_ms.saturating_mul(u64::from(self.power_milliwatts)) / 1000
    }

    /// Changes the power without decreasing the energy counter.
    pub fn set_power(&mut self, milliwatts: u32, unix_ms: u64) {
        self.energy = Energy {
            millijoules: self.energy_millijoules(unix_ms),
            at_unix_ms: unix_ms,
        };
        self.power_milliwatts = milliwatts;
    }
}

/// Parses a version such as `9.0`.
pub(crate) fn version(text: &str, field: &'static str) -> Result<(i32, i32), BadValue> {
    let parse = || {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    parse().ok_or_else(|| BadValue {
        field,
        value: text.to_owned(),
        expected: "two numbers with a dot, as in 12.8",
    })
}
