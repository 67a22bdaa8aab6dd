//! The PCI bus: the part of `/sys` that a kernel would show for the same GPUs.
//!
//! It shows the hardware, not what NVML reports: a GPU with a false name in NVML has its real device id here. A GPU
//! that fell off the bus stays listed, as on a real machine; an unplugged one is removed.

use std::{fs, io, path::Path};

use crate::file::{Gpu, GpuFile};

/// Writes the tree below `sysfs` (which stands for `/sys`) and removes devices that no longer exist.
pub(crate) fn write(sysfs: &Path, file: &GpuFile) -> io::Result<()> {
    let devices = sysfs.join("bus/pci/devices");
    fs::create_dir_all(&devices)?;
    let present: Vec<&Gpu> = file.gpus.iter().filter(|gpu| !gpu.faults.unplugged).collect();
    for entry in fs::read_dir(&devices)? {
        let entry = entry?;
        if !present.iter().any(|gpu| *gpu.bus == *entry.file_name()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    for gpu in present {
        write_device(&devices.join(&gpu.bus), gpu)?;
    }
    Ok(())
}

fn write_device(dir: &Path, gpu: &Gpu) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let speed = link_speed(gpu.pcie_generation);
    let (subsystem_device, subsystem_vendor) = gpu.pci_subsystem.split_at(gpu.pci_subsystem.len().min(4));
    let attributes = [
        ("vendor", "0x10de".to_owned()),
        ("device", format!("0x{}", gpu.pci_device)),
        ("subsystem_vendor", format!("0x{subsystem_vendor}")),
        ("subsystem_device", format!("0x{subsystem_device}")),
        // 3D controller: the class of cards without display output.
        ("class", "0x030200".to_owned()),
        ("revision", "0xa1".to_owned()),
        ("numa_node", gpu.numa_node.to_string()),
        ("current_link_speed", speed.clone()),
        ("max_link_speed", speed),
        ("current_link_width", gpu.pcie_width.to_string()),
        ("max_link_width", gpu.pcie_width.to_string()),
        ("enable", "1".to_owned()),
    ];
    for (name, value) in attributes {
        let path = dir.join(name);
        let text = format!("{value}\n");
        // Write only changed attributes, so that a reader does not see a partially written one.
        if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            fs::write(path, text)?;
        }
    }
    Ok(())
}

fn link_speed(generation: u32) -> String {
    let transfers = match generation {
        1 => "2.5",
        2 => "5.0",
        3 => "8.0",
        4 => "16.0",
        5 => "32.0",
        _ => "64.0",
    };
    format!("{transfers} GT/s PCIe")
}
