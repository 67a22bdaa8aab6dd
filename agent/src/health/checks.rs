//! Checks of one GPU in one observation, the most severe first. Pure.
//!
//! Each check compares NVML with another source. `health` decides how a finding changes the GPU's health.

use leasehold_crds::provider::node::DeviceHealth;

use crate::{
    gpu_class::is_near,
    health::foreign_processes::holds,
    sources::facts::{GpuFacts, Reading, Source, XidEvent, bus_key, plugin_ids},
    sources::kubelet::Allocation,
    sources::nvml::xid::{Severity, severity},
    sources::pci::PciGpu,
    sources::pci::ids,
};

/// Everything that was observed about the node at one moment.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) reading: Reading,
    /// Xids since the previous observation.
    pub(crate) xids: Vec<XidEvent>,
    pub(crate) pci: Source<Vec<PciGpu>>,
    pub(crate) kubelet: Source<Allocation>,
}

/// One fault found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) health: DeviceHealth,
    pub(crate) message: String,
}

type Check = fn(&World, &GpuFacts) -> Option<Finding>;

/// The order is the priority.
const CHECKS: &[Check] = &[
    fatal_xid,
    ecc_uncorrectable,
    duplicate_uuid,
    duplicate_bus,
    not_on_the_bus,
    another_card_on_the_bus,
    another_card_by_name,
];

/// Returns the first fault of a GPU that NVML could read.
pub(crate) fn finding(world: &World, gpu: &GpuFacts) -> Option<Finding> {
    CHECKS.iter().find_map(|check| check(world, gpu))
}

/// GPUs that other sources report and NVML does not. They belong to no device in the status.
pub(crate) fn unmatched_devices(world: &World) -> Vec<String> {
    let read: Vec<&GpuFacts> = world.reading.gpus().collect();
    let broken = world.reading.slots.len() - read.len();
    let without_bus = read.iter().filter(|gpu| gpu.bus.is_empty()).count();
    let mut strange = Vec::new();
    if let Some(pci) = world.pci.reported() {
        let unseen: Vec<&str> = pci
            .iter()
            .filter(|card| {
                !card.other_driver && !read.iter().any(|gpu| bus_key(&gpu.bus) == bus_key(&card.bus))
            })
            .map(|card| card.bus.as_str())
            .collect();
        // A GPU that NVML counts but cannot read, or whose address it does not report, accounts for one of them.
        if unseen.len() > broken + without_bus {
            strange.push(format!("on the PCI bus but not in NVML: {}", unseen.join(", ")));
        }
    }
    if let Some(kubelet) = world.kubelet.reported() {
        let unknown: Vec<&str> = kubelet
            .allocatable
            .iter()
            .filter(|id| !read.iter().any(|gpu| plugin_ids(gpu).contains(id.as_str())))
            .map(String::as_str)
            .collect();
        if unknown.len() > broken {
            strange.push(format!(
                "advertised by the device plugin but not in NVML: {}",
                unknown.join(", ")
            ));
        }
    }
    strange
}

impl World {
    /// The card on the PCI bus at the address that NVML reports for this GPU.
    pub(crate) fn card(&self, gpu: &GpuFacts) -> Option<&PciGpu> {
        self.pci
            .reported()?
            .iter()
            .find(|card| bus_key(&card.bus) == bus_key(&gpu.bus))
    }
}

fn found(health: DeviceHealth, message: String) -> Option<Finding> {
    Some(Finding { health, message })
}

fn fatal_xid(world: &World, gpu: &GpuFacts) -> Option<Finding> {
    world
        .xids
        .iter()
        .filter(|event| event.uuid == gpu.uuid)
        .find_map(|event| match severity(event.xid) {
            Severity::Fatal(meaning) => {
                found(DeviceHealth::FatalXid, format!("Xid {}: {meaning}", event.xid))
            }
            Severity::NonFatal => None,
        })
}

fn ecc_uncorrectable(_: &World, gpu: &GpuFacts) -> Option<Finding> {
    let errors = gpu.ecc_uncorrected.filter(|errors| *errors > 0)?;
    found(
        DeviceHealth::EccUncorrectable,
        format!("{errors} uncorrectable memory errors since the driver was loaded; reset the GPU"),
    )
}

fn duplicate_uuid(world: &World, gpu: &GpuFacts) -> Option<Finding> {
    let others = world
        .reading
        .gpus()
        .filter(|other| other.uuid == gpu.uuid)
        .count()
        - 1;
    (others > 0).then(|| {
        found(
            DeviceHealth::Duplicate,
            format!("{others} other GPUs of this node have the same UUID"),
        )
    })?
}

fn duplicate_bus(world: &World, gpu: &GpuFacts) -> Option<Finding> {
    if gpu.bus.is_empty() {
        return None;
    }
    let others = world
        .reading
        .gpus()
        .filter(|other| bus_key(&other.bus) == bus_key(&gpu.bus))
        .count()
        - 1;
    (others > 0).then(|| {
        found(
            DeviceHealth::Duplicate,
            format!("{others} other GPUs report the same bus address {}", gpu.bus),
        )
    })?
}

fn not_on_the_bus(world: &World, gpu: &GpuFacts) -> Option<Finding> {
    if gpu.bus.is_empty() || world.pci.reported().is_none() || world.card(gpu).is_some() {
        return None;
    }
    found(
        DeviceHealth::WitnessesDisagree,
        format!(
            "there is no card on the PCI bus at {}, the address that NVML reports",
            gpu.bus
        ),
    )
}

fn another_card_on_the_bus(world: &World, gpu: &GpuFacts) -> Option<Finding> {
    let card = world.card(gpu)?;
    (card.device != gpu.pci_device).then(|| {
        found(
            DeviceHealth::WitnessesDisagree,
            format!(
                "NVML reports PCI device id {:04x}, the PCI bus reports {:04x}",
                gpu.pci_device, card.device
            ),
        )
    })?
}

/// Compares the device id on the bus with the name and the memory that NVML reports. What it does not report is not
/// compared.
fn another_card_by_name(world: &World, gpu: &GpuFacts) -> Option<Finding> {
    let product = ids::product(world.card(gpu)?.device)?;
    let same_model = gpu.name.is_empty() || gpu.class().model == product.model;
    let same_memory = gpu
        .memory
        .is_none_or(|memory| is_near(product.memory_gib, memory.total));
    if same_model && same_memory {
        return None;
    }
    let memory = gpu
        .memory
        .map_or_else(String::new, |memory| format!(" with {} GiB", memory.total >> 30));
    found(
        DeviceHealth::WitnessesDisagree,
        format!(
            "name is {:?}{memory}, but the PCI device id belongs to a {} with {} GiB",
            gpu.name, product.model, product.memory_gib
        ),
    )
}

/// Whether the device plugin is known not to advertise a GPU. This is not among the checks: the device plugin may be
/// starting, or restarting.
pub(crate) fn is_withheld(kubelet: &Source<Allocation>, gpu: &GpuFacts) -> bool {
    kubelet
        .reported()
        .is_some_and(|kubelet| !plugin_ids(gpu).iter().any(|id| kubelet.allocatable.contains(*id)))
}

/// Whether the device plugin advertises a GPU. On a node without a kubelet this is always true.
pub(crate) fn is_advertised(kubelet: &Source<Allocation>, gpu: &GpuFacts) -> bool {
    match kubelet {
        Source::Reported(_) => !is_withheld(kubelet, gpu),
        Source::Unavailable(_) => false,
        Source::Absent => true,
    }
}

/// Whether a pod is known to hold a GPU, or a slice of it.
pub(crate) fn is_held(kubelet: &Source<Allocation>, gpu: &GpuFacts) -> bool {
    kubelet
        .reported()
        .is_some_and(|kubelet| kubelet.holders.iter().any(|holder| holds(holder, gpu)))
}
