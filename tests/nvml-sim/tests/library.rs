//! The library as a program sees it: loaded by nvml-wrapper, with every value and every fault.
#![allow(clippy::unwrap_used, reason = "a failed step of a test panics")]

use std::{
    fs,
    sync::mpsc,
    time::{Duration, Instant},
};

use nvidia_ml_sim::{Fault, Fixture};
use nvml_wrapper::{
    Nvml,
    bitmasks::{device::ThrottleReasons, event::EventTypes},
    enum_wrappers::device::{
        Clock, EccCounter, MemoryError, P2pCapabilitiesIndex, P2pStatus, TemperatureSensor,
    },
    enums::device::UsedGpuMemory,
    enums::event::XidError,
    error::NvmlError,
};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Node {
    fixture: Fixture,
    nvml: Nvml,
    _dir: TempDir,
}

fn node(model: &str, count: usize) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::create(dir.path(), "n1", model, count).unwrap();
    let nvml = Nvml::builder()
        .lib_path(fixture.library().as_os_str())
        .init()
        .unwrap();
    Node {
        fixture,
        nvml,
        _dir: dir,
    }
}

impl Node {
    fn fault(&self, gpu: usize, text: &str) {
        self.fixture.fault(gpu, &text.parse().unwrap()).unwrap();
    }
}

#[test]
fn an_h100_answers_like_a_real_one() {
    let n = node("h100-80g-sxm", 4);
    assert_eq!(n.nvml.sys_driver_version().unwrap(), "580.95.05");
    assert_eq!(n.nvml.sys_cuda_driver_version().unwrap(), 13000);
    assert_eq!(n.nvml.device_count().unwrap(), 4);

    let gpu = n.nvml.device_by_index(1).unwrap();
    assert_eq!(gpu.name().unwrap(), "NVIDIA H100 80GB HBM3");
    assert_eq!(gpu.uuid().unwrap(), n.fixture.read().unwrap().gpus[1].uuid);
    assert_eq!(gpu.minor_number().unwrap(), 1);
    assert_eq!(gpu.index().unwrap(), 1);
    assert!(!gpu.serial().unwrap().is_empty());
    let pci = gpu.pci_info().unwrap();
    assert_eq!(pci.bus_id, "00000000:2A:00.0");
    assert_eq!(pci.pci_device_id, 0x2330_10de);
    let memory = gpu.memory_info().unwrap();
    assert_eq!(memory.total, 81559 * MIB);
    assert_eq!(memory.free, memory.total - memory.used - memory.reserved);
    let capability = gpu.cuda_compute_capability().unwrap();
    assert_eq!((capability.major, capability.minor), (9, 0));
    assert_eq!(gpu.power_usage().unwrap(), 71_000);
    assert_eq!(gpu.enforced_power_limit().unwrap(), 700_000);
    assert_eq!(gpu.power_management_limit().unwrap(), 700_000);
    assert_eq!(gpu.temperature(TemperatureSensor::Gpu).unwrap(), 34);
    assert_eq!(gpu.clock_info(Clock::SM).unwrap(), 1980);
    assert_eq!(gpu.clock_info(Clock::Memory).unwrap(), 2619);
    assert_eq!(gpu.utilization_rates().unwrap().gpu, 0);
    assert_eq!(gpu.current_throttle_reasons().unwrap(), ThrottleReasons::empty());
    assert_eq!(gpu.mig_mode().unwrap().current, 0);
    assert!(gpu.is_ecc_enabled().unwrap().currently_enabled);
    assert_eq!(
        gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
            .unwrap(),
        0
    );
    assert_eq!(gpu.current_pcie_link_gen().unwrap(), 5);
    assert_eq!(gpu.current_pcie_link_width().unwrap(), 16);
    assert!(gpu.running_compute_processes().unwrap().is_empty());
    assert!(gpu.running_graphics_processes().unwrap().is_empty());
}

#[test]
fn nvlink_connects_h100s_and_not_4090s() {
    let linked = |model| {
        let n = node(model, 2);
        let (a, b) = (
            n.nvml.device_by_index(0).unwrap(),
            n.nvml.device_by_index(1).unwrap(),
        );
        (
            a.p2p_status(&b, P2pCapabilitiesIndex::NvLink).unwrap(),
            a.link_wrapper_for(0).is_active().ok(),
        )
    };
    assert_eq!(linked("h100-80g-sxm"), (P2pStatus::Ok, Some(true)));
    assert_eq!(linked("rtx4090-24g"), (P2pStatus::NotSupported, None));
}

#[test]
fn every_model_answers_and_the_unknown_one_too() {
    for (model, name, mib, ecc) in [
        ("rtx4090-24g", "NVIDIA GeForce RTX 4090", 24564, Some(false)),
        ("a100-80g-pcie", "NVIDIA A100 80GB PCIe", 81920, Some(true)),
        ("t4-16g", "Tesla T4", 15360, Some(true)),
        ("unknown", "NVIDIA Xylo 77 Engineering Sample", 12282, None),
    ] {
        let n = node(model, 1);
        let gpu = n.nvml.device_by_index(0).unwrap();
        assert_eq!(gpu.name().unwrap(), name);
        assert_eq!(gpu.memory_info().unwrap().total, mib * MIB);
        assert_eq!(
            gpu.is_ecc_enabled().ok().map(|state| state.currently_enabled),
            ecc
        );
    }
}

#[test]
fn a_mig_gpu_has_slices_of_its_own_name_and_memory() {
    let n = node("a100-80g-pcie-mig", 1);
    let gpu = n.nvml.device_by_index(0).unwrap();
    assert_eq!(gpu.mig_mode().unwrap().current, 1);
    assert!(matches!(gpu.utilization_rates(), Err(NvmlError::NotSupported)));
    let slices: Vec<_> = (0..gpu.mig_device_count().unwrap())
        .filter_map(|index| gpu.mig_device_by_index(index).ok())
        .map(|slice| {
            assert!(slice.mig_is_mig_device_handle().unwrap());
            assert_eq!(
                slice.mig_parent_device().unwrap().uuid().unwrap(),
                gpu.uuid().unwrap()
            );
            assert!(slice.uuid().unwrap().starts_with("MIG-"));
            assert_eq!(
                slice.attributes().unwrap().memory_size_mb * MIB,
                slice.memory_info().unwrap().total
            );
            slice.name().unwrap()
        })
        .collect();
    let expected =
        ["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"].map(|p| format!("NVIDIA A100 80GB PCIe MIG {p}"));
    assert_eq!(slices, expected);
}

#[test]
fn nodes_of_no_gpu_and_of_sixteen() {
    assert_eq!(node("t4-16g", 0).nvml.device_count().unwrap(), 0);
    let n = node("t4-16g", 16);
    let uuids: std::collections::BTreeSet<_> = (0..16)
        .map(|index| n.nvml.device_by_index(index).unwrap().uuid().unwrap())
        .collect();
    assert_eq!(uuids.len(), 16);
    assert!(Fixture::create(n.fixture.dir(), "n1", "t4-16g", 17).is_err());
}

#[test]
fn the_same_node_has_the_same_uuids_and_another_has_others() {
    let uuid = |name| {
        let dir = tempfile::tempdir().unwrap();
        Fixture::create(dir.path(), name, "t4-16g", 1)
            .unwrap()
            .read()
            .unwrap()
            .gpus[0]
            .uuid
            .clone()
    };
    assert_eq!(uuid("n1"), uuid("n1"));
    assert_ne!(uuid("n1"), uuid("n2"));
}

#[test]
fn a_lost_gpu_fails_every_call_and_comes_back_when_cleared() {
    let n = node("h100-80g-sxm", 2);
    let gpu = n.nvml.device_by_index(0).unwrap();
    n.fault(0, "lost");
    assert!(matches!(gpu.uuid(), Err(NvmlError::GpuLost)));
    assert!(matches!(gpu.power_usage(), Err(NvmlError::GpuLost)));
    assert!(matches!(n.nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    assert_eq!(n.nvml.device_count().unwrap(), 2);
    assert!(n.nvml.device_by_index(1).unwrap().uuid().is_ok());
    n.fault(0, "clear");
    assert!(n.nvml.device_by_index(0).unwrap().uuid().is_ok());
}

#[test]
fn an_unplugged_gpu_leaves_count_and_sysfs() {
    let n = node("h100-80g-sxm", 2);
    let file = n.fixture.read().unwrap();
    n.fault(0, "unplug");
    assert_eq!(n.nvml.device_count().unwrap(), 1);
    assert_eq!(
        n.nvml.device_by_index(0).unwrap().uuid().unwrap(),
        file.gpus[1].uuid
    );
    assert!(matches!(
        n.nvml.device_by_uuid(file.gpus[0].uuid.as_str()),
        Err(NvmlError::NotFound)
    ));
    let devices = n.fixture.sysfs().join("bus/pci/devices");
    assert!(!devices.join(&file.gpus[0].bus).exists());
    assert!(devices.join(&file.gpus[1].bus).exists());
}

#[test]
fn xid_events_reach_those_who_registered_before_and_the_timeout_is_honoured() {
    let n = node("h100-80g-sxm", 2);
    n.fault(1, "xid=13");
    let mut set = n.nvml.create_event_set().unwrap();
    for index in 0..2 {
        let gpu = n.nvml.device_by_index(index).unwrap();
        assert!(
            gpu.supported_event_types()
                .unwrap()
                .contains(EventTypes::CRITICAL_XID_ERROR)
        );
        set = gpu.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
    }
    let before = Instant::now();
    assert!(
        matches!(set.wait(150), Err(NvmlError::Timeout)),
        "the earlier event is not delivered"
    );
    assert!(before.elapsed() >= Duration::from_millis(150));
    n.fault(1, "xid=79");
    n.fault(1, "xid=48");
    for expected in [79, 48] {
        let event = set.wait(5000).unwrap();
        assert!(matches!(event.event_data, Some(XidError::Value(xid)) if xid == expected));
        assert_eq!(
            event.device.uuid().unwrap(),
            n.fixture.read().unwrap().gpus[1].uuid
        );
    }
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    // Emptying the list does not reset sequence numbers: the next event is new.
    n.fault(1, "clear");
    n.fault(1, "xid=94");
    assert!(matches!(
        set.wait(5000).unwrap().event_data,
        Some(XidError::Value(94))
    ));
}

#[test]
fn ecc_errors_are_counted() {
    let n = node("a100-80g-pcie", 1);
    n.fault(0, "ecc=3");
    let gpu = n.nvml.device_by_index(0).unwrap();
    assert_eq!(
        gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)
            .unwrap(),
        3
    );
    assert_eq!(
        gpu.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile)
            .unwrap(),
        0
    );
    let plain = node("unknown", 1);
    assert!(
        plain.fixture.fault(0, &Fault::Ecc(1)).is_err(),
        "a card without ECC cannot have ECC errors"
    );
}

#[test]
fn a_hanging_call_blocks_until_the_file_changes() {
    let n = node("h100-80g-sxm", 1);
    n.fault(0, "hang=power");
    std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel();
        let nvml = &n.nvml;
        scope.spawn(move || {
            let gpu = nvml.device_by_index(0).unwrap();
            gpu.temperature(TemperatureSensor::Gpu).unwrap();
            done.send(gpu.power_usage()).unwrap();
        });
        assert!(
            wait.recv_timeout(Duration::from_millis(300)).is_err(),
            "the call hangs"
        );
        n.fault(0, "clear");
        assert_eq!(
            wait.recv_timeout(Duration::from_secs(5)).unwrap().unwrap(),
            71_000
        );
    });
}

#[test]
fn an_unsupported_query_says_so_and_the_others_answer() {
    let n = node("h100-80g-sxm", 1);
    n.fault(0, "unsupported=power");
    let gpu = n.nvml.device_by_index(0).unwrap();
    assert!(matches!(gpu.power_usage(), Err(NvmlError::NotSupported)));
    assert!(gpu.total_energy_consumption().is_ok());
}

#[test]
fn nvml_reports_false_values_and_sysfs_the_real_ones() {
    let n = node("t4-16g", 2);
    let file = n.fixture.read().unwrap();
    n.fault(0, "name=NVIDIA H100 80GB HBM3");
    n.fault(1, &format!("uuid={}", file.gpus[0].uuid));
    n.fault(1, &format!("bus={}", file.gpus[0].bus));
    let (a, b) = (
        n.nvml.device_by_index(0).unwrap(),
        n.nvml.device_by_index(1).unwrap(),
    );
    assert_eq!(a.name().unwrap(), "NVIDIA H100 80GB HBM3");
    assert_eq!(a.uuid().unwrap(), b.uuid().unwrap());
    assert_eq!(a.pci_info().unwrap().bus_id, b.pci_info().unwrap().bus_id);
    let devices = n.fixture.sysfs().join("bus/pci/devices");
    for gpu in &file.gpus {
        assert_eq!(
            fs::read_to_string(devices.join(&gpu.bus).join("device")).unwrap(),
            "0x1eb8\n"
        );
    }
}

#[test]
fn a_busy_gpu_shows_its_process_and_its_energy_never_goes_back() {
    let n = node("h100-80g-sxm", 1);
    let gpu = n.nvml.device_by_index(0).unwrap();
    let idle = gpu.memory_info().unwrap().used;
    n.fault(0, "busy=4242:2147483648");
    let processes = gpu.running_compute_processes().unwrap();
    assert_eq!(processes.len(), 1);
    assert_eq!(processes[0].pid, 4242);
    assert!(matches!(
        processes[0].used_gpu_memory,
        UsedGpuMemory::Used(2_147_483_648)
    ));
    assert_eq!(gpu.memory_info().unwrap().used, idle + 2_147_483_648);
    assert_eq!(gpu.power_usage().unwrap(), 700_000);
    assert_eq!(gpu.utilization_rates().unwrap().gpu, 97);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut last = gpu.total_energy_consumption().unwrap();
    let start = last;
    while last < start + 70_000 / 2 {
        assert!(Instant::now() < deadline, "700 W are 35 J in 50 ms");
        let now = gpu.total_energy_consumption().unwrap();
        assert!(now >= last);
        last = now;
    }
    n.fault(0, "idle");
    assert!(
        gpu.total_energy_consumption().unwrap() >= last,
        "less power is not less energy"
    );
    assert!(gpu.running_compute_processes().unwrap().is_empty());
    assert_eq!(gpu.memory_info().unwrap().used, idle);
}

#[test]
fn sysfs_contains_what_a_kernel_shows() {
    let n = node("h100-80g-sxm", 8);
    let device = n.fixture.sysfs().join("bus/pci/devices/0000:9a:00.0");
    for (attribute, value) in [
        ("vendor", "0x10de"),
        ("device", "0x2330"),
        ("class", "0x030200"),
        ("numa_node", "1"),
        ("current_link_speed", "32.0 GT/s PCIe"),
        ("current_link_width", "16"),
        ("subsystem_vendor", "0x10de"),
        ("subsystem_device", "0x16c1"),
    ] {
        assert_eq!(
            fs::read_to_string(device.join(attribute)).unwrap().trim(),
            value,
            "{attribute}"
        );
    }
}

#[test]
fn without_a_file_there_is_no_driver() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::create(dir.path(), "n1", "t4-16g", 1).unwrap();
    let nvml = Nvml::builder()
        .lib_path(fixture.library().as_os_str())
        .init()
        .unwrap();
    fs::remove_file(fixture.file()).unwrap();
    assert!(matches!(nvml.device_count(), Err(NvmlError::DriverNotLoaded)));
}

#[test]
fn a_missing_symbol_is_an_error() {
    let n = node("t4-16g", 1);
    let gpu = n.nvml.device_by_index(0).unwrap();
    assert!(matches!(
        gpu.vbios_version(),
        Err(NvmlError::FailedToLoadSymbol(_))
    ));
}
