//! The probe over NVML, through nvml-wrapper. The library is opened at run time.
//!
//! Each GPU has an event set of its own: an Xid often means that the GPU is lost, and then NVML can no longer map an
//! event to its GPU.

use std::path::Path;

use nvml_wrapper::{
    Device, Nvml,
    bitmasks::event::EventTypes,
    cuda_driver_version_major, cuda_driver_version_minor,
    enum_wrappers::device::{
        Clock, EccCounter, MemoryError, P2pCapabilitiesIndex, P2pStatus, TemperatureSensor,
    },
    enums::event::XidError,
    error::NvmlError,
    event::EventSet,
};

pub(crate) mod watchdog;
pub(crate) mod xid;

use crate::sources::facts::{
    FastFacts, GpuFacts, GpuProcess, Memory, Probe, ProbeError, Reading, SliceFacts, Slot, XidEvent,
};

/// Maximum number of GPUs read. A larger count is an error of the driver.
const GPUS_MAX: u32 = 64;
/// Maximum number of events taken from one event set per call.
const EVENTS_MAX: usize = 16;

/// Opens the library, calls `lend` with a probe, and closes the library.
pub(crate) fn with_probe(library: &Path, lend: &mut dyn FnMut(&mut dyn Probe)) -> Result<(), ProbeError> {
    let nvml = Nvml::builder()
        .lib_path(library.as_os_str())
        .init()
        .map_err(|error| match error {
            NvmlError::LibloadingError(_) | NvmlError::FailedToLoadSymbol(_) => {
                ProbeError::NoLibrary(error.to_string())
            }
            error => ProbeError::Failed(error.to_string()),
        })?;
    lend(&mut NvmlProbe {
        nvml: &nvml,
        watched: Vec::new(),
        peers: Peers::default(),
    });
    Ok(())
}

struct NvmlProbe<'nvml> {
    nvml: &'nvml Nvml,
    watched: Vec<Watched<'nvml>>,
    peers: Peers,
}

/// A GPU whose events are received.
struct Watched<'nvml> {
    uuid: String,
    set: EventSet<'nvml>,
}

/// NVLink peers of each GPU. They take one call per pair of GPUs and change only when the GPUs change.
#[derive(Default)]
struct Peers {
    of: Vec<String>,
    peers: Vec<Vec<String>>,
}

impl Probe for NvmlProbe<'_> {
    fn read(&mut self) -> Result<Reading, ProbeError> {
        let failed = |error: NvmlError| ProbeError::Failed(error.to_string());
        let count = self.nvml.device_count().map_err(failed)?.min(GPUS_MAX);
        let cuda = supported(self.nvml.sys_cuda_driver_version()).map_err(failed)?;
        let driver = supported(self.nvml.sys_driver_version()).map_err(failed)?;
        let devices: Vec<Result<Device<'_>, NvmlError>> =
            (0..count).map(|index| self.nvml.device_by_index(index)).collect();
        let mut slots = Vec::with_capacity(devices.len());
        for (index, device) in (0..).zip(&devices) {
            slots.push(match device {
                Ok(device) => slot(read_gpu(index, device)),
                Err(error) => broken(error),
            });
        }
        self.watch(&slots);
        self.link(&devices, &mut slots);
        Ok(Reading {
            driver_version: driver.unwrap_or_default(),
            cuda_version: cuda.map_or_else(String::new, |version| {
                let (major, minor) = (
                    cuda_driver_version_major(version),
                    cuda_driver_version_minor(version),
                );
                format!("{major}.{minor}")
            }),
            slots,
        })
    }

    fn events(&mut self) -> Vec<XidEvent> {
        self.watched.iter().flat_map(Watched::take).collect()
    }
}

impl<'nvml> NvmlProbe<'nvml> {
    /// Registers for events of GPUs that are new.
    fn watch(&mut self, slots: &[Slot]) {
        for gpu in slots.iter().filter_map(facts) {
            if !self.watched.iter().any(|watched| watched.uuid == gpu.uuid)
                && let Some(set) = self.register(gpu.index)
            {
                self.watched.push(Watched {
                    uuid: gpu.uuid.clone(),
                    set,
                });
            }
        }
    }

    fn register(&self, index: u32) -> Option<EventSet<'nvml>> {
        let device = self.nvml.device_by_index(index).ok()?;
        let kinds = device.supported_event_types().ok()?;
        if !kinds.contains(EventTypes::CRITICAL_XID_ERROR) {
            return None;
        }
        let set = self.nvml.create_event_set().ok()?;
        match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
            Ok(set) => Some(set),
            Err(error) => {
                tracing::debug!(index, %error, "cannot receive Xids of this GPU");
                None
            }
        }
    }

    /// Fills in the NVLink peers.
    fn link(&mut self, devices: &[Result<Device<'_>, NvmlError>], slots: &mut [Slot]) {
        let present: Vec<String> = slots
            .iter()
            .filter_map(facts)
            .map(|gpu| gpu.uuid.clone())
            .collect();
        if present != self.peers.of {
            let handles: Vec<&Device<'_>> = devices
                .iter()
                .zip(&*slots)
                .filter(|(_, slot)| facts(slot).is_some())
                .filter_map(|(device, _)| device.as_ref().ok())
                .collect();
            self.peers = Peers {
                peers: handles.iter().map(|of| peers(of, &handles, &present)).collect(),
                of: present,
            };
        }
        let read = slots.iter_mut().filter_map(|slot| match slot {
            Slot::Read(gpu) => Some(gpu),
            Slot::Lost | Slot::Failed(_) => None,
        });
        for (gpu, peers) in read.zip(&self.peers.peers) {
            gpu.nvlink_peers.clone_from(peers);
        }
    }
}

impl Watched<'_> {
    fn take(&self) -> Vec<XidEvent> {
        let mut events = Vec::new();
        // One millisecond is the shortest timeout that every driver accepts. The event set of a lost GPU returns an
        // error.
        while events.len() < EVENTS_MAX
            && let Ok(event) = self.set.wait(1)
        {
            let xid = match event.event_data {
                Some(XidError::Value(xid)) => xid,
                Some(XidError::Unknown) => 999,
                None => continue,
            };
            events.push(XidEvent {
                uuid: self.uuid.clone(),
                xid,
            });
        }
        events
    }
}

fn facts(slot: &Slot) -> Option<&GpuFacts> {
    match slot {
        Slot::Read(gpu) => Some(gpu),
        Slot::Lost | Slot::Failed(_) => None,
    }
}

fn slot(read: Result<GpuFacts, NvmlError>) -> Slot {
    match read {
        Ok(gpu) => Slot::Read(Box::new(gpu)),
        Err(error) => broken(&error),
    }
}

fn broken(error: &NvmlError) -> Slot {
    match error {
        NvmlError::GpuLost => Slot::Lost,
        error => Slot::Failed(error.to_string()),
    }
}

fn read_gpu(index: u32, device: &Device<'_>) -> Result<GpuFacts, NvmlError> {
    let pci = supported(device.pci_info())?;
    let memory = supported(device.memory_info())?.filter(|memory| memory.total > 0);
    let capability = optional(device.cuda_compute_capability())?;
    let ecc = optional(device.is_ecc_enabled())?.map(|mode| mode.currently_enabled);
    let mig = supported(device.mig_mode())?.map(|mode| mode.current == 1);
    Ok(GpuFacts {
        index,
        minor: optional(device.minor_number())?,
        uuid: device.uuid()?,
        name: supported(device.name())?.unwrap_or_default(),
        memory: memory.map(|memory| Memory {
            total: memory.total,
            reserved: memory.reserved,
            used: memory.used,
            free: memory.free,
        }),
        compute_capability: capability
            .map(|c| format!("{}.{}", c.major, c.minor))
            .unwrap_or_default(),
        // The upper half of NVML's id. The lower half is the vendor.
        pci_device: pci
            .as_ref()
            .and_then(|pci| u16::try_from(pci.pci_device_id >> 16).ok())
            .unwrap_or_default(),
        bus: pci.map(|pci| pci.bus_id).unwrap_or_default(),
        numa_node: None,
        nvlink_peers: Vec::new(),
        mig_enabled: mig,
        slices: if mig == Some(true) {
            slices(device)?
        } else {
            Vec::new()
        },
        ecc_enabled: ecc,
        ecc_uncorrected: match ecc {
            Some(true) => optional(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile))?,
            Some(false) | None => None,
        },
        fast: fast(device)?,
        processes: optional(device.running_compute_processes())?.map(|list| {
            list.into_iter()
                .map(|process| GpuProcess { pid: process.pid })
                .collect()
        }),
    })
}

fn fast(device: &Device<'_>) -> Result<FastFacts, NvmlError> {
    let utilization = optional(device.utilization_rates())?;
    Ok(FastFacts {
        gpu_percent: utilization.as_ref().map(|rates| rates.gpu),
        memory_percent: utilization.map(|rates| rates.memory),
        power_milliwatts: optional(device.power_usage())?,
        power_limit_milliwatts: optional(device.enforced_power_limit())?,
        energy_millijoules: optional(device.total_energy_consumption())?,
        temperature_celsius: optional(device.temperature(TemperatureSensor::Gpu))?,
        sm_clock_mhz: optional(device.clock_info(Clock::SM))?,
        memory_clock_mhz: optional(device.clock_info(Clock::Memory))?,
        throttle_reasons: optional(device.current_throttle_reasons())?.map(|reasons| reasons.bits()),
        pcie_generation: optional(device.current_pcie_link_gen())?,
        pcie_width: optional(device.current_pcie_link_width())?,
    })
}

fn slices(device: &Device<'_>) -> Result<Vec<SliceFacts>, NvmlError> {
    let mut found = Vec::new();
    for index in 0..optional(device.mig_device_count())?.unwrap_or(0) {
        // An index without a slice returns NotFound. After another error the list would be incomplete, and a slice that a
        // lease holds would count as gone.
        let slice = match device.mig_device_by_index(index) {
            Err(NvmlError::NotFound) => continue,
            answer => supported(answer)?,
        };
        let Some(slice) = slice else { continue };
        // A slice is known by its UUID.
        if let Some(uuid) = supported(slice.uuid())? {
            found.push(SliceFacts {
                uuid,
                name: optional(slice.name())?.unwrap_or_default(),
                memory_bytes: optional(slice.memory_info())?.map_or(0, |memory| memory.total),
            });
        }
    }
    Ok(found)
}

fn peers(of: &Device<'_>, handles: &[&Device<'_>], uuids: &[String]) -> Vec<String> {
    let own = of.uuid().unwrap_or_default();
    handles
        .iter()
        .zip(uuids)
        .filter(|(_, uuid)| **uuid != own)
        .filter(|(other, _)| {
            matches!(
                of.p2p_status(other, P2pCapabilitiesIndex::NvLink),
                Ok(P2pStatus::Ok)
            )
        })
        .map(|(_, uuid)| uuid.clone())
        .collect()
}

/// A value that a card may not support. Only the error GpuLost fails the whole GPU.
fn optional<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::GpuLost) => Err(NvmlError::GpuLost),
        Err(_) => Ok(None),
    }
}

/// A value by which a GPU is sold, and that a card or its driver may not support. Another error fails the whole GPU.
fn supported<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(
            NvmlError::NotSupported
            | NvmlError::FunctionNotFound
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::NoPermission,
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
