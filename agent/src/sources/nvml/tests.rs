//! The probe over the simulated library, which has the same symbols, structures and error codes as the real one.

use std::path::PathBuf;

use nvidia_ml_sim::Fixture;

use super::*;

/// Queries that many cards do not support.
const OPTIONAL: [&str; 8] = [
    "power",
    "energy",
    "temperature",
    "clocks",
    "throttle",
    "processes",
    "ecc",
    "minor",
];

struct Node {
    _dir: tempfile::TempDir,
    fixture: Fixture,
}

fn node(model: &str, count: usize) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::create(dir.path(), "n1", model, count).unwrap();
    Node { _dir: dir, fixture }
}

impl Node {
    fn fault(&self, gpu: usize, fault: &str) {
        self.fixture.fault(gpu, &fault.parse().unwrap()).unwrap();
    }

    /// Opens the library and calls `ask` with a probe.
    fn with<T>(&self, mut ask: impl FnMut(&mut dyn Probe) -> T) -> T {
        let mut answer = None;
        with_probe(&self.fixture.library(), &mut |probe| answer = Some(ask(probe))).unwrap();
        answer.unwrap()
    }

    fn read(&self) -> Vec<Slot> {
        self.with(|probe| probe.read().unwrap().slots)
    }

    fn gpu(&self, index: usize) -> GpuFacts {
        match self.read().remove(index) {
            Slot::Read(gpu) => *gpu,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_h100_is_read_completely() {
    let n = node("h100-80g-sxm", 4);
    n.fault(1, "busy=4242");
    let reading = n.with(|probe| probe.read().unwrap());
    assert_eq!(
        (reading.driver_version.as_str(), reading.cuda_version.as_str()),
        ("580.95.05", "13.0")
    );
    assert_eq!(reading.slots.len(), 4);
    let gpu = n.gpu(1);
    let file = n.fixture.read().unwrap();
    assert_eq!(gpu.uuid, file.gpus[1].uuid);
    assert_eq!(gpu.bus, "00000000:2A:00.0");
    assert_eq!((gpu.pci_device, gpu.minor), (0x2330, Some(1)));
    assert_eq!(gpu.compute_capability, "9.0");
    assert_eq!(gpu.class().to_string(), "h100-80g-sxm");
    let peers: Vec<&String> = [0, 2, 3].iter().map(|i| &file.gpus[*i].uuid).collect();
    assert_eq!(gpu.nvlink_peers.iter().collect::<Vec<_>>(), peers);
    assert_eq!(
        (gpu.mig_enabled, gpu.ecc_enabled, gpu.ecc_uncorrected),
        (Some(false), Some(true), Some(0))
    );
    assert_eq!(gpu.processes, Some(vec![GpuProcess { pid: 4242 }]));
    assert_eq!(gpu.fast.power_milliwatts, Some(700_000));
    assert_eq!(gpu.fast.gpu_percent, Some(97));
    assert_eq!(gpu.fast.temperature_celsius, Some(67));
    assert!(gpu.fast.energy_millijoules.is_some() && gpu.fast.sm_clock_mhz == Some(1980));
    assert_eq!(
        (gpu.fast.pcie_generation, gpu.fast.pcie_width),
        (Some(5), Some(16))
    );
}

#[test]
fn every_model_has_the_class_it_is_named_by() {
    for slug in ["rtx4090-24g", "a100-80g-pcie", "h100-80g-sxm", "t4-16g"] {
        let gpu = node(slug, 1).gpu(0);
        assert_eq!(gpu.class().to_string(), slug);
    }
    let gpu = node("unknown", 1).gpu(0);
    let class = gpu.class().to_string();
    assert_eq!(class, "xylo77engineeringsample-12g");
}

#[test]
fn an_unsupported_value_is_none_and_not_an_error() {
    let gpu = node("unknown", 1).gpu(0);
    assert_eq!(
        (gpu.mig_enabled, gpu.ecc_enabled, gpu.ecc_uncorrected),
        (None, None, None)
    );
    let n = node("h100-80g-sxm", 1);
    for query in OPTIONAL {
        n.fault(0, &format!("unsupported={query}"));
    }
    let gpu = n.gpu(0);
    assert_eq!(
        (gpu.fast.power_milliwatts, gpu.processes, gpu.ecc_enabled),
        (None, None, None)
    );
    assert_eq!(gpu.fast.gpu_percent, Some(0));
}

#[test]
fn no_query_but_the_uuid_is_needed_to_list_a_gpu() {
    let others = [
        "memory",
        "name",
        "pci",
        "mig",
        "computeCapability",
        "utilization",
        "pcie",
        "powerLimit",
        "events",
        "p2p",
    ];
    let queries = || others.into_iter().chain(OPTIONAL);
    let n = node("h100-80g-sxm", 2);
    for query in queries() {
        n.fault(0, "clear");
        n.fault(0, &format!("unsupported={query}"));
        assert!(matches!(n.read()[..], [Slot::Read(_), Slot::Read(_)]), "{query}");
    }
    for query in queries() {
        n.fault(0, &format!("unsupported={query}"));
    }
    let gpu = n.gpu(0);
    assert_eq!((gpu.memory, gpu.name.as_str(), gpu.bus.as_str()), (None, "", ""));
    n.fault(0, "clear");
    n.fault(0, "unsupported=uuid");
    assert!(matches!(n.read()[..], [Slot::Failed(_), Slot::Read(_)]));
    n.fixture
        .edit(|file| {
            file.unsupported = vec!["driverVersion".to_owned(), "cudaVersion".to_owned()];
            Ok(())
        })
        .unwrap();
    let reading = n.with(|probe| probe.read().unwrap());
    assert_eq!(
        (reading.driver_version.as_str(), reading.cuda_version.as_str()),
        ("", "")
    );
    assert_eq!(reading.slots.len(), 2);
}

#[test]
fn a_mig_gpu_has_its_slices() {
    let gpu = node("a100-80g-pcie-mig", 1).gpu(0);
    assert_eq!(gpu.mig_enabled, Some(true));
    assert_eq!(gpu.slices.len(), 4);
    assert!(gpu.slices[3].name.ends_with("MIG 1g.10gb") && gpu.slices[3].memory_bytes > 9 << 30);
    assert_eq!(gpu.fast.gpu_percent, None);
}

#[test]
fn a_lost_gpu_does_not_affect_the_others() {
    let n = node("h100-80g-sxm", 3);
    n.fault(1, "lost");
    let slots = n.read();
    assert!(
        matches!(slots[..], [Slot::Read(_), Slot::Lost, Slot::Read(_)]),
        "{slots:?}"
    );
    n.fault(1, "clear");
    n.fault(0, "unplug");
    assert_eq!(n.read().len(), 2);
}

#[test]
fn xids_are_attributed_to_their_gpu_even_when_it_is_lost() {
    let n = node("h100-80g-sxm", 2);
    let uuid = n.fixture.read().unwrap().gpus[1].uuid.clone();
    let heard = n.with(|probe| {
        probe.read().unwrap();
        assert!(probe.events().is_empty());
        n.fault(1, "xid=79");
        n.fault(1, "lost");
        probe.events()
    });
    assert_eq!(heard, [XidEvent { uuid, xid: 79 }]);
}

#[test]
fn without_a_library_the_error_says_what_to_do() {
    let error = with_probe(&PathBuf::from("/nowhere/libnvidia-ml.so.1"), &mut |_| {
        panic!("opened")
    })
    .unwrap_err();
    assert!(matches!(error, ProbeError::NoLibrary(_)));
    assert!(error.to_string().contains("--nvml"), "{error}");
}

#[test]
fn without_a_driver_the_library_opens_and_returns_an_error() {
    let n = node("t4-16g", 1);
    std::fs::remove_file(n.fixture.file()).unwrap();
    let error = with_probe(&n.fixture.library(), &mut |_| panic!("opened")).unwrap_err();
    assert!(matches!(error, ProbeError::Failed(_)), "{error:?}");
}
