//! The cards that can be simulated, with the values that their drivers report.
//!
//! Device ids are those of the PCI ID database. Memory sizes are the totals that NVML reports on real cards, which
//! differ from the nominal sizes.

use sha2::{Digest, Sha256};

use crate::file::{Clocks, Ecc, Energy, Faults, Gpu, GpuFile, Mig, MigSlice, Utilization};

const MIB: u64 = 1 << 20;

/// Properties of a model.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub slug: &'static str,
    pub name: &'static str,
    pub pci_device: &'static str,
    pub pci_subsystem: &'static str,
    pub memory_mib: u64,
    pub reserved_mib: u64,
    pub compute_capability: &'static str,
    pub pcie_generation: u32,
    pub power_limit_watts: u32,
    pub idle_watts: u32,
    pub clocks: Clocks,
    /// `None`: the card has no ECC. `Some`: whether it is enabled.
    pub ecc: Option<bool>,
    pub nvlink: bool,
    /// `None`: the card has no MIG. `Some`: the slices; empty if MIG is disabled.
    pub slices: Option<&'static [Profile]>,
}

/// A MIG profile in NVIDIA's notation.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    name: &'static str,
    compute_slices: u32,
    multiprocessors: u32,
    memory_mib: u64,
}

const P3G40: Profile = Profile {
    name: "3g.40gb",
    compute_slices: 3,
    multiprocessors: 42,
    memory_mib: 40192,
};
const P2G20: Profile = Profile {
    name: "2g.20gb",
    compute_slices: 2,
    multiprocessors: 28,
    memory_mib: 19968,
};
const P1G10: Profile = Profile {
    name: "1g.10gb",
    compute_slices: 1,
    multiprocessors: 14,
    memory_mib: 9728,
};

const A100_PCIE: Model = Model {
    slug: "a100-80g-pcie",
    name: "NVIDIA A100 80GB PCIe",
    pci_device: "20b5",
    pci_subsystem: "153310de",
    memory_mib: 81920,
    reserved_mib: 604,
    compute_capability: "8.0",
    pcie_generation: 4,
    power_limit_watts: 300,
    idle_watts: 44,
    clocks: Clocks {
        graphics: 1410,
        sm: 1410,
        memory: 1512,
        video: 1275,
    },
    ecc: Some(true),
    nvlink: false,
    slices: Some(&[]),
};

/// Every model, by its name on the command line.
pub const MODELS: &[Model] = &[
    Model {
        slug: "rtx4090-24g",
        name: "NVIDIA GeForce RTX 4090",
        pci_device: "2684",
        pci_subsystem: "16f310de",
        memory_mib: 24564,
        reserved_mib: 346,
        compute_capability: "8.9",
        pcie_generation: 4,
        power_limit_watts: 450,
        idle_watts: 22,
        clocks: Clocks {
            graphics: 2520,
            sm: 2520,
            memory: 10501,
            video: 2010,
        },
        ecc: Some(false),
        nvlink: false,
        slices: None,
    },
    A100_PCIE,
    Model {
        slug: "a100-80g-pcie-mig",
        slices: Some(&[P3G40, P2G20, P1G10, P1G10]),
        ..A100_PCIE
    },
    Model {
        slug: "h100-80g-sxm",
        name: "NVIDIA H100 80GB HBM3",
        pci_device: "2330",
        pci_subsystem: "16c110de",
        memory_mib: 81559,
        reserved_mib: 551,
        compute_capability: "9.0",
        pcie_generation: 5,
        power_limit_watts: 700,
        idle_watts: 71,
        clocks: Clocks {
            graphics: 1980,
            sm: 1980,
            memory: 2619,
            video: 1545,
        },
        ecc: Some(true),
        nvlink: true,
        slices: Some(&[]),
    },
    Model {
        slug: "t4-16g",
        name: "Tesla T4",
        pci_device: "1eb8",
        pci_subsystem: "12a210de",
        memory_mib: 15360,
        reserved_mib: 444,
        compute_capability: "7.5",
        pcie_generation: 3,
        power_limit_watts: 70,
        idle_watts: 9,
        clocks: Clocks {
            graphics: 1590,
            sm: 1590,
            memory: 5000,
            video: 1470,
        },
        ecc: Some(true),
        nvlink: false,
        slices: None,
    },
    // A card that is in no list of names or device ids.
    Model {
        slug: "unknown",
        name: "NVIDIA Xylo 77 Engineering Sample",
        pci_device: "2fff",
        pci_subsystem: "000010de",
        memory_mib: 12282,
        reserved_mib: 280,
        compute_capability: "12.9",
        pcie_generation: 5,
        power_limit_watts: 200,
        idle_watts: 15,
        clocks: Clocks {
            graphics: 2400,
            sm: 2400,
            memory: 9001,
            video: 1950,
        },
        ecc: None,
        nvlink: false,
        slices: None,
    },
];

/// Bus addresses of the GPUs of a node, by index. The first eight are those of an HGX board.
const BUSES: [u8; 16] = [
    0x18, 0x2a, 0x3a, 0x5d, 0x9a, 0xab, 0xba, 0xdb, 0x1b, 0x2d, 0x3d, 0x61, 0x9d, 0xae, 0xbd, 0xde,
];

impl Model {
    /// The model with that name.
    #[must_use]
    pub fn find(slug: &str) -> Option<&'static Model> {
        MODELS.iter().find(|model| model.slug == slug)
    }

    /// A GPU of this model, idle and without faults. A node has at most 16.
    #[must_use]
    pub fn gpu(&self, node: &str, index: usize, unix_ms: u64) -> Option<Gpu> {
        let bus = *BUSES.get(index)?;
        Some(Gpu {
            model: self.slug.to_owned(),
            name: self.name.to_owned(),
            uuid: uuid("GPU", &format!("{node}/{index}")),
            serial: serial(node, index),
            bus: format!("0000:{bus:02x}:00.0"),
            pci_device: self.pci_device.to_owned(),
            pci_subsystem: self.pci_subsystem.to_owned(),
            numa_node: i32::from(bus >= 0x80),
            pcie_generation: self.pcie_generation,
            pcie_width: 16,
            memory_bytes: self.memory_mib * MIB,
            reserved_bytes: self.reserved_mib * MIB,
            used_bytes: 4 * MIB,
            compute_capability: self.compute_capability.to_owned(),
            mig: self.slices.map(|profiles| Mig {
                enabled: !profiles.is_empty(),
                slices: profiles
                    .iter()
                    .zip(0..)
                    .map(|(p, slice)| p.slice(node, index, slice))
                    .collect(),
            }),
            ecc: self.ecc.map(|enabled| Ecc {
                enabled,
                corrected: 0,
                uncorrected: 0,
            }),
            nvlink: self.nvlink,
            utilization: Utilization { gpu: 0, memory: 0 },
            power_milliwatts: self.idle_watts * 1000,
            power_limit_milliwatts: self.power_limit_watts * 1000,
            energy: Energy {
                millijoules: 0,
                at_unix_ms: unix_ms,
            },
            temperature_celsius: 34,
            clocks: self.clocks,
            throttle: Vec::new(),
            processes: Vec::new(),
            events: Vec::new(),
            next_event: 1,
            faults: Faults::default(),
        })
    }

    /// A node with `count` GPUs of this model, at most 16.
    #[must_use]
    pub fn node(&self, node: &str, count: usize, unix_ms: u64) -> Option<GpuFile> {
        Some(GpuFile {
            node: node.to_owned(),
            driver_version: "580.95.05".to_owned(),
            cuda_version: "13.0".to_owned(),
            hang: Vec::new(),
            unsupported: Vec::new(),
            gpus: (0..count)
                .map(|index| self.gpu(node, index, unix_ms))
                .collect::<Option<_>>()?,
        })
    }
}

impl Profile {
    fn slice(&self, node: &str, gpu: usize, slice: u32) -> MigSlice {
        MigSlice {
            profile: self.name.to_owned(),
            uuid: uuid("MIG", &format!("{node}/{gpu}/{slice}")),
            gpu_instance: slice + 1,
            compute_slices: self.compute_slices,
            multiprocessors: self.multiprocessors,
            memory_bytes: self.memory_mib * MIB,
        }
    }
}

/// The same seed gives the same UUID, so that a rebuilt node has the same GPUs.
fn uuid(prefix: &str, seed: &str) -> String {
    let hash = Sha256::digest(seed.as_bytes());
    let hex =
        |range: std::ops::Range<usize>| hash[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
    format!(
        "{prefix}-{}-{}-{}-{}-{}",
        hex(0..4),
        hex(4..6),
        hex(6..8),
        hex(8..10),
        hex(10..16)
    )
}

fn serial(node: &str, index: usize) -> String {
    let hash = Sha256::digest(format!("serial {node}/{index}").as_bytes());
    let number = u64::from_be_bytes([0, 0, 0, hash[0], hash[1], hash[2], hash[3], hash[4]]);
    format!("165{:010}", number % 10_000_000_000)
}
