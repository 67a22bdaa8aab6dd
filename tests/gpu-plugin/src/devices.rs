//! Converts the GPU file into the devices that are advertised to the kubelet: ids, health, NUMA nodes. Pure.

use nvidia_ml_sim::{Gpu, GpuFile};

use crate::api;

/// Xids caused by the program on the GPU. NVIDIA's device plugin ignores the same ones.
const APPLICATION_XIDS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// One device as advertised to the kubelet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) healthy: bool,
    pub(crate) numa_node: i64,
}

/// The devices to advertise: whole GPUs, or the MIG slices of a GPU. Unplugged GPUs are left out; of two with the
/// same id, only the first is advertised.
pub(crate) fn advertised(file: &GpuFile) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for gpu in file.gpus.iter().filter(|gpu| !gpu.faults.unplugged) {
        let ids: Vec<&str> = match gpu.slices() {
            [] => vec![gpu.reported_uuid()],
            slices => slices.iter().map(|slice| slice.uuid.as_str()).collect(),
        };
        for id in ids {
            if !devices.iter().any(|device| device.id == id) {
                devices.push(Device {
                    id: id.to_owned(),
                    healthy: is_healthy(gpu),
                    numa_node: i64::from(gpu.numa_node.max(0)),
                });
            }
        }
    }
    devices
}

fn is_healthy(gpu: &Gpu) -> bool {
    let fatal = gpu
        .events
        .iter()
        .any(|event| !APPLICATION_XIDS.contains(&event.xid));
    let uncorrected = gpu.ecc.is_some_and(|ecc| ecc.uncorrected > 0);
    !(gpu.faults.lost || gpu.faults.withheld || fatal || uncorrected)
}

impl From<Device> for api::Device {
    fn from(device: Device) -> Self {
        Self {
            id: device.id,
            health: if device.healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
            topology: Some(api::TopologyInfo {
                nodes: vec![api::NumaNode { id: device.numa_node }],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use nvidia_ml_sim::{Fault, Model};

    use super::*;

    fn file(model: &str, count: usize) -> GpuFile {
        Model::find(model).unwrap().node("n1", count, 0).unwrap()
    }

    fn healthy(fault: &str) -> Option<bool> {
        let mut file = file("h100-80g-sxm", 2);
        let fault: Fault = fault.parse().unwrap();
        file.gpus[0].apply(&fault, 0).unwrap();
        let uuid = file.gpus[0].uuid.clone();
        advertised(&file)
            .into_iter()
            .find(|device| device.id == uuid)
            .map(|device| device.healthy)
    }

    #[test]
    fn a_faulty_gpu_is_unhealthy_and_an_unplugged_one_is_removed() {
        for (fault, expected) in [
            ("idle", Some(true)),
            ("xid=13", Some(true)),
            ("xid=79", Some(false)),
            ("lost", Some(false)),
            ("ecc", Some(false)),
            ("withhold", Some(false)),
            ("unplug", None),
        ] {
            assert_eq!(healthy(fault), expected, "{fault}");
        }
    }

    #[test]
    fn a_gpu_with_mig_is_advertised_by_its_slices() {
        let file = file("a100-80g-pcie-mig", 2);
        let devices = advertised(&file);
        assert_eq!(devices.len(), 8);
        assert!(devices.iter().all(|device| device.id.starts_with("MIG-")));
    }

    #[test]
    fn two_gpus_with_one_uuid_are_one_device() {
        let mut file = file("t4-16g", 2);
        let uuid = file.gpus[0].uuid.clone();
        file.gpus[1].apply(&Fault::Uuid(uuid), 0).unwrap();
        assert_eq!(advertised(&file).len(), 1);
    }
}
