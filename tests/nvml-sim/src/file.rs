//! The file that drives the library: what the simulated node has, and what is wrong with it.
//!
//! One JSON document with one entry a GPU. Values that the hardware fixes (bus, device id) are kept apart from
//! `faults`, which only change what NVML *says*: so the sysfs tree stays the honest witness that a lying name is
//! checked against.

use serde::{Deserialize, Serialize};

/// The whole node as the simulated driver sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuFile {
    /// Name of the node; UUIDs are derived from it.
    pub node: String,
    pub driver_version: String,
    /// Highest CUDA version of the driver, `major.minor`.
    pub cuda_version: String,
    /// Queries of the whole library that block until they are removed from this list; `*` is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hang: Vec<String>,
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gpu {
    /// Name of the model that this entry was made from, for people.
    pub model: String,
    pub name: String,
    pub uuid: String,
    pub serial: String,
    /// Address on the bus as sysfs writes it: `0000:18:00.0`.
    pub bus: String,
    /// PCI device id without the vendor, hexadecimal: `2330`.
    pub pci_device: String,
    /// PCI subsystem id, device then vendor, hexadecimal: `16c110de`.
    pub pci_subsystem: String,
    pub numa_node: i32,
    pub pcie_generation: u32,
    pub pcie_width: u32,
    pub memory_bytes: u64,
    /// Memory the driver keeps for itself.
    pub reserved_bytes: u64,
    pub used_bytes: u64,
    /// `major.minor`.
    pub compute_capability: String,
    /// Absent where the model has no MIG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<Mig>,
    /// Absent where the model has no ECC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc: Option<Ecc>,
    /// Whether NVLink joins this GPU to the others of the node that have it too.
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
    /// Sequence number of the next event; it never goes back, not even when `events` is emptied.
    #[serde(default)]
    pub next_event: u64,
    #[serde(default, skip_serializing_if = "Faults::is_none")]
    pub faults: Faults,
}

/// What is wrong with a GPU.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Faults {
    /// Every call on the GPU, and getting its handle, fails with `NVML_ERROR_GPU_IS_LOST`. It stays in sysfs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Gone from the count, from sysfs and from the device plugin.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unplugged: bool,
    /// The device plugin alone calls it unhealthy; NVML sees nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
    /// Queries that block until removed from this list; `*` is all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hang: Vec<String>,
    /// Queries that answer `NVML_ERROR_NOT_SUPPORTED`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsupported: Vec<String>,
    /// What NVML says instead of the real name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What NVML says instead of the real UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What NVML says instead of the real bus address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
}

impl Faults {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Multi-instance GPU: the parent is whole, its slices are devices of their own.
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

/// An anchor: the counter stood at `millijoules` at `at_unix_ms` and grows with the power since then.
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

/// Why clocks are held down.
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

/// A value in the file that can't be what it stands for.
#[derive(Debug, thiserror::Error)]
#[error("{field} is {value:?}, expected {expected}")]
pub struct BadValue {
    pub field: &'static str,
    pub value: String,
    pub expected: &'static str,
}

impl Gpu {
    /// The name that NVML tells.
    #[must_use]
    pub fn told_name(&self) -> &str {
        self.faults.name.as_deref().unwrap_or(&self.name)
    }

    /// The UUID that NVML tells.
    #[must_use]
    pub fn told_uuid(&self) -> &str {
        self.faults.uuid.as_deref().unwrap_or(&self.uuid)
    }

    /// The bus address that NVML tells, as sysfs would write it.
    #[must_use]
    pub fn told_bus(&self) -> &str {
        self.faults.bus.as_deref().unwrap_or(&self.bus)
    }

    /// The slices that exist, none without MIG.
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

    /// Changes the power and keeps the energy counter monotone.
    pub fn set_power(&mut self, milliwatts: u32, unix_ms: u64) {
        self.energy = Energy {
            millijoules: self.energy_millijoules(unix_ms),
            at_unix_ms: unix_ms,
        };
        self.power_milliwatts = milliwatts;
    }
}

/// `9.0` as two numbers.
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
