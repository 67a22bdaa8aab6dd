//! The PCI bus: which NVIDIA cards the kernel sees, independently of the driver's library.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub(crate) mod ids;

/// One card on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PciGpu {
    /// Bus address in sysfs notation: `0000:18:00.0`.
    pub(crate) bus: String,
    pub(crate) device: u16,
    /// `None` on a machine without NUMA.
    pub(crate) numa_node: Option<i64>,
    /// Whether the card is bound to a driver other than NVIDIA's, such as vfio-pci for a virtual machine.
    pub(crate) other_driver: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the PCI bus in {path}: {source}; mount the host's /sys, or set --sysfs to its path", path = path.display())]
pub(crate) struct SysfsError {
    path: PathBuf,
    source: io::Error,
}

const NVIDIA: &str = "0x10de";
/// VGA and 3D controllers. A card's audio and USB functions have other classes.
const DISPLAY_CLASSES: [&str; 2] = ["0x0300", "0x0302"];

/// The NVIDIA cards below `sysfs` (`/sys`), sorted by address.
pub(crate) fn gpus(sysfs: &Path) -> Result<Vec<PciGpu>, SysfsError> {
    let path = sysfs.join("bus/pci/devices");
    let at = |source| SysfsError {
        path: path.clone(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).map_err(at)? {
        if let Some(gpu) = gpu(&entry.map_err(at)?.path()) {
            found.push(gpu);
        }
    }
    found.sort_by(|a, b| a.bus.cmp(&b.bus));
    Ok(found)
}

/// Returns `None` for devices of other vendors or classes, and for a device that disappears while it is read.
fn gpu(dir: &Path) -> Option<PciGpu> {
    let attribute = |name: &str| {
        fs::read_to_string(dir.join(name))
            .ok()
            .map(|text| text.trim().to_owned())
    };
    if attribute("vendor")? != NVIDIA {
        return None;
    }
    let class = attribute("class")?;
    if !DISPLAY_CLASSES.iter().any(|display| class.starts_with(display)) {
        return None;
    }
    let driver = fs::read_link(dir.join("driver")).ok();
    Some(PciGpu {
        bus: dir.file_name()?.to_str()?.to_owned(),
        device: u16::from_str_radix(attribute("device")?.trim_start_matches("0x"), 16).ok()?,
        numa_node: attribute("numa_node")
            .and_then(|node| node.parse().ok())
            .filter(|node| *node >= 0),
        other_driver: driver.is_some_and(|driver| driver.file_name().is_some_and(|name| name != "nvidia")),
    })
}

#[cfg(test)]
mod tests {
    use nvidia_ml_sim::Fixture;

    use super::*;

    #[test]
    fn cards_are_found_and_their_other_functions_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::create(dir.path(), "n1", "h100-80g-sxm", 5).unwrap();
        let devices = fixture.sysfs().join("bus/pci/devices");
        for (bus, vendor, class) in [
            ("0000:18:00.1", "0x10de", "0x040300"),
            ("0000:00:02.0", "0x8086", "0x030000"),
        ] {
            fs::create_dir(devices.join(bus)).unwrap();
            fs::write(devices.join(bus).join("vendor"), vendor).unwrap();
            fs::write(devices.join(bus).join("class"), class).unwrap();
            fs::write(devices.join(bus).join("device"), "0x1234").unwrap();
        }
        std::os::unix::fs::symlink("../../drivers/vfio-pci", devices.join("0000:2a:00.0/driver")).unwrap();
        let found = gpus(&fixture.sysfs()).unwrap();
        assert_eq!(found.len(), 5);
        assert_eq!(
            found[0],
            PciGpu {
                bus: "0000:18:00.0".to_owned(),
                device: 0x2330,
                numa_node: Some(0),
                other_driver: false
            }
        );
        assert!(found[1].other_driver);
        assert_eq!(found[4].numa_node, Some(1));
    }

    #[test]
    fn a_missing_tree_is_reported_with_a_remedy() {
        let error = gpus(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("--sysfs"), "{error}");
    }
}
