//! The status: conditions with reasons, and no values that change with time alone.

use std::collections::BTreeSet;

use leasehold_crds::shared::conditions::find;

use super::*;
use crate::{
    health::Rules,
    health::checks::World,
    sources::facts::{Reading, Slot},
    sources::kubelet::Holder,
};

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn gpu(index: u32) -> GpuFacts {
    GpuFacts {
        index,
        uuid: format!("GPU-{index}"),
        name: "Tesla T4".to_owned(),
        memory: Some(Memory {
            total: 15360 << 20,
            reserved: 444 << 20,
            ..Memory::default()
        }),
        compute_capability: "7.5".to_owned(),
        bus: format!("00000000:{index:02X}:00.0"),
        pci_device: 0x1eb8,
        ..GpuFacts::default()
    }
}

fn reading(gpus: Vec<GpuFacts>) -> Outcome {
    Outcome::Read(Reading {
        driver_version: "580.95.05".to_owned(),
        cuda_version: "13.0".to_owned(),
        slots: gpus.into_iter().map(|gpu| Slot::Read(Box::new(gpu))).collect(),
    })
}

struct Fixture {
    outcome: Outcome,
    history: HealthHistory,
    kubelet: Source<Allocation>,
    foreign_processes: Source<Vec<String>>,
    unheld_memory: Source<Vec<String>>,
}

/// A node without a kubelet, after enough readings to confirm everything.
fn scene(outcome: Outcome) -> Fixture {
    let mut history = HealthHistory::default();
    if let Outcome::Read(reading) = &outcome {
        for second in 0..3 {
            let world = World {
                reading: reading.clone(),
                xids: Vec::new(),
                pci: Source::Absent,
                kubelet: Source::Absent,
            };
            history = history
                .after(&world, Rules { recovery_readings: 3 }, time(second))
                .0;
        }
    }
    Fixture {
        outcome,
        history,
        kubelet: Source::Absent,
        foreign_processes: Source::Reported(Vec::new()),
        unheld_memory: Source::Reported(Vec::new()),
    }
}

impl Fixture {
    fn status(&self, before: &GpuNodeStatus, second: i64) -> GpuNodeStatus {
        let known = Known {
            outcome: &self.outcome,
            history: &self.history,
            pci: &Source::Reported(()),
            kubelet: &self.kubelet,
            foreign_processes: &self.foreign_processes,
            unheld_memory: &self.unheld_memory,
            generation: 1,
        };
        status(before, &known, time(second))
    }

    /// Status and reason of a condition.
    fn condition(&self, type_: NodeCondition) -> (String, String) {
        let status = self.status(&GpuNodeStatus::default(), 9);
        let condition = find(&status.conditions, type_).unwrap();
        assert!(!condition.message.is_empty());
        (condition.status.clone(), condition.reason.clone())
    }
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_healthy_node_reports_its_devices() {
    let status = scene(reading(vec![gpu(0), gpu(1)])).status(&GpuNodeStatus::default(), 9);
    assert_eq!((status.class.as_str(), status.gpu_count), ("t4-16g", 2));
    let device = &status.devices[1];
    assert_eq!(
        (device.uuid.as_str(), device.class.as_str(), device.health),
        ("GPU-1", "t4-16g", DeviceHealth::Healthy)
    );
    assert_eq!(device.memory_nominal_bytes, 16 << 30);
    assert_eq!(device.memory_usable_bytes, (15360 - 444) << 20);
    let conditions: Vec<(&str, &str)> = status
        .conditions
        .iter()
        .map(|c| (c.type_.as_str(), c.status.as_str()))
        .collect();
    assert_eq!(
        conditions,
        [
            ("Healthy", "True"),
            ("WitnessesAgree", "True"),
            ("NoForeignProcesses", "True"),
            ("UnheldMemoryFree", "True")
        ]
    );
}

#[test]
fn different_cards_are_mixed() {
    let other = GpuFacts {
        name: "NVIDIA L4".to_owned(),
        memory: Some(Memory {
            total: 23034 << 20,
            ..Memory::default()
        }),
        ..gpu(1)
    };
    assert_eq!(
        scene(reading(vec![gpu(0), other]))
            .status(&GpuNodeStatus::default(), 9)
            .class,
        "mixed"
    );
}

#[test]
fn time_alone_changes_nothing() {
    let scene = scene(reading(vec![GpuFacts {
        fast: Default::default(),
        ..gpu(0)
    }]));
    let first = scene.status(&GpuNodeStatus::default(), 1);
    assert_eq!(scene.status(&first, 1000), first);
    let mut busy = self::scene(reading(vec![gpu(0)]));
    if let Outcome::Read(reading) = &mut busy.outcome
        && let Slot::Read(gpu) = &mut reading.slots[0]
    {
        gpu.fast.power_milliwatts = Some(70_000);
        gpu.memory.as_mut().unwrap().used = 1 << 30;
    }
    assert_eq!(busy.status(&first, 2000), first, "fast facts are metrics");
}

#[test]
fn each_unknown_state_has_its_reason() {
    let no_library = Outcome::Failed(ProbeError::NoLibrary("no such file".to_owned()));
    assert_eq!(
        scene(no_library.clone()).condition(NodeCondition::Healthy),
        pair("False", "NoLibrary")
    );
    let mut known = scene(reading(vec![gpu(0)]));
    known.outcome = no_library;
    assert_eq!(
        known.condition(NodeCondition::Healthy),
        pair("Unknown", "NoLibrary"),
        "its GPUs were read before"
    );
    assert_eq!(
        scene(Outcome::Hung).condition(NodeCondition::Healthy),
        pair("Unknown", "NvmlHung")
    );
    assert_eq!(
        scene(Outcome::Hung).condition(NodeCondition::WitnessesAgree),
        pair("Unknown", "NvmlSilent")
    );
    let failed = Outcome::Failed(ProbeError::Failed("driver not loaded".to_owned()));
    assert_eq!(
        scene(failed).condition(NodeCondition::Healthy),
        pair("Unknown", "NvmlFailed")
    );
    assert_eq!(
        scene(reading(vec![])).condition(NodeCondition::Healthy),
        pair("False", "NoGpus")
    );
    let mut silent = scene(reading(vec![gpu(0)]));
    silent.kubelet = Source::Unavailable("away".to_owned());
    assert_eq!(
        silent.condition(NodeCondition::WitnessesAgree),
        pair("Unknown", "KubeletSilent")
    );
    silent.foreign_processes = Source::Unavailable("away".to_owned());
    assert_eq!(
        silent.condition(NodeCondition::NoForeignProcesses),
        pair("Unknown", "OwnersUnknown")
    );
}

#[test]
fn a_gpu_that_the_device_plugin_does_not_advertise_is_no_fault_and_keeps_the_node_from_sale() {
    let mut scene = scene(reading(vec![gpu(0), gpu(1)]));
    scene.kubelet = Source::Reported(Allocation {
        allocatable: BTreeSet::from(["GPU-0".to_owned()]),
        ..Allocation::default()
    });
    assert_eq!(
        scene.condition(NodeCondition::Healthy),
        pair("True", "AllHealthy")
    );
    assert_eq!(
        scene.condition(NodeCondition::WitnessesAgree),
        pair("False", "GpusNotAdvertised")
    );
    let status = scene.status(&GpuNodeStatus::default(), 9);
    let agree = find(&status.conditions, NodeCondition::WitnessesAgree).unwrap();
    assert_eq!(agree.message, "the device plugin does not advertise GPU-1");
}

#[test]
fn faults_and_foreign_processes_name_the_gpu() {
    let broken = GpuFacts {
        ecc_uncorrected: Some(3),
        ..gpu(1)
    };
    let mut scene = scene(reading(vec![gpu(0), broken]));
    scene.foreign_processes = Source::Reported(vec!["process 7 of the host on GPU-0".to_owned()]);
    assert_eq!(
        scene.condition(NodeCondition::Healthy),
        pair("False", "EccUncorrectable")
    );
    assert_eq!(
        scene.condition(NodeCondition::NoForeignProcesses),
        pair("False", "ForeignProcess")
    );
    let status = scene.status(&GpuNodeStatus::default(), 9);
    let healthy = find(&status.conditions, NodeCondition::Healthy).unwrap();
    assert!(
        healthy.message.starts_with("GPU 1 (GPU-1): 3 uncorrectable"),
        "{}",
        healthy.message
    );
}

#[test]
fn holders_are_kept_while_the_kubelet_is_unavailable() {
    let mut scene = scene(reading(vec![gpu(0)]));
    let holder = Holder {
        namespace: "team-a".to_owned(),
        pod: "train-0".to_owned(),
        ids: BTreeSet::from(["GPU-0".to_owned()]),
    };
    scene.kubelet = Source::Reported(Allocation {
        holders: vec![holder],
        ..Allocation::default()
    });
    let status = scene.status(&GpuNodeStatus::default(), 9);
    assert_eq!(status.holders[0].pod, "train-0");
    scene.kubelet = Source::Unavailable("away".to_owned());
    assert_eq!(
        scene.status(&status, 10).holders,
        status.holders,
        "an unavailable kubelet does not mean that GPUs are free"
    );
    scene.kubelet = Source::Reported(Allocation::default());
    assert!(scene.status(&status, 11).holders.is_empty());
}

#[test]
fn a_gpu_that_is_advertised_as_replicas_is_shared() {
    let mut scene = scene(reading(vec![gpu(0), gpu(1)]));
    let shared = |status: &GpuNodeStatus| status.devices.iter().map(|d| d.shared).collect::<Vec<_>>();
    scene.kubelet = Source::Reported(Allocation {
        shared: BTreeSet::from(["GPU-1".to_owned()]),
        ..Allocation::default()
    });
    let status = scene.status(&GpuNodeStatus::default(), 9);
    assert_eq!(shared(&status), [false, true]);
    scene.kubelet = Source::Unavailable("away".to_owned());
    assert_eq!(shared(&scene.status(&status, 10)), [false, true]);
    scene.kubelet = Source::Reported(Allocation::default());
    assert_eq!(shared(&scene.status(&status, 11)), [false, false]);
}

#[test]
fn memory_in_use_without_a_holder_is_reported_and_the_gpu_stays_healthy() {
    let mut scene = scene(reading(vec![gpu(0)]));
    let type_ = NodeCondition::UnheldMemoryFree;
    assert_eq!(scene.condition(type_), pair("True", "MemoryFree"));
    scene.unheld_memory = Source::Reported(vec!["2048 MiB of GPU-0 are in use".to_owned()]);
    assert_eq!(scene.condition(type_), pair("False", "MemoryInUse"));
    assert_eq!(
        scene.condition(NodeCondition::Healthy),
        pair("True", "AllHealthy")
    );
    scene.unheld_memory = Source::Unavailable("away".to_owned());
    assert_eq!(scene.condition(type_), pair("Unknown", "KubeletSilent"));
}

#[test]
fn a_gpu_that_reports_no_memory_is_healthy_and_listed_without_memory() {
    let unified = GpuFacts {
        name: "NVIDIA GB10".to_owned(),
        memory: None,
        ..gpu(0)
    };
    let scene = scene(reading(vec![unified]));
    assert_eq!(
        scene.condition(NodeCondition::Healthy),
        pair("True", "AllHealthy")
    );
    let status = scene.status(&GpuNodeStatus::default(), 9);
    assert_eq!(
        (status.class.as_str(), status.devices[0].memory_nominal_bytes),
        ("gb10", 0)
    );
    assert_eq!(records(&status)[0].gpu.memory, None);
}

#[test]
fn a_node_of_equal_slices_has_the_class_of_the_slice() {
    let slice = |uuid: &str, profile: &str| SliceFacts {
        uuid: uuid.to_owned(),
        name: format!("Tesla T4 MIG {profile}"),
        memory_bytes: 9 << 30,
    };
    let sliced = |index, profiles: [&str; 2]| GpuFacts {
        mig_enabled: Some(true),
        slices: profiles
            .iter()
            .zip(0..)
            .map(|(profile, n)| slice(&format!("MIG-{index}-{n}"), profile))
            .collect(),
        ..gpu(index)
    };
    let equal = scene(reading(vec![
        sliced(0, ["1g.10gb", "1g.10gb"]),
        sliced(1, ["1g.10gb", "1g.10gb"]),
    ]));
    let status = equal.status(&GpuNodeStatus::default(), 9);
    assert_eq!(status.class, "t4-16g-mig-1g-10gb");
    let device = &status.devices[1];
    assert_eq!((device.class.as_str(), device.slices.len()), ("t4-16g", 2));
    assert_eq!(
        (device.slices[0].uuid.as_str(), device.slices[0].memory_bytes),
        ("MIG-1-0", 9 << 30)
    );
    let restored = Fixture {
        history: HealthHistory::restored(records(&status), None),
        ..scene(Outcome::Hung)
    };
    assert_eq!(restored.status(&status, 10).class, status.class);
    let unequal = scene(reading(vec![sliced(0, ["1g.10gb", "2g.20gb"])]));
    assert_eq!(unequal.status(&GpuNodeStatus::default(), 9).class, "mixed");
}

#[test]
fn a_hostile_name_fits_the_schema() {
    let name = format!("{}日本\u{0}\u{1b}[2J", "A".repeat(95));
    let status = scene(reading(vec![GpuFacts { name, ..gpu(0) }])).status(&GpuNodeStatus::default(), 9);
    assert!(status.devices[0].name.len() <= 96 && status.devices[0].class.len() <= 63);
}

#[test]
fn a_restart_reads_back_what_was_written() {
    let status = scene(reading(vec![GpuFacts {
        ecc_uncorrected: Some(3),
        ..gpu(0)
    }]))
    .status(&GpuNodeStatus::default(), 9);
    let restored = HealthHistory::restored(records(&status), None);
    let record = &restored.gpus[0];
    assert_eq!(
        (record.health, record.gpu.uuid.as_str()),
        (DeviceHealth::EccUncorrectable, "GPU-0")
    );
    assert_eq!(record.since, time(0));
    let again = Fixture {
        history: restored,
        ..scene(Outcome::Hung)
    }
    .status(&status, 20);
    assert_eq!(again.devices[0].health, DeviceHealth::EccUncorrectable);
    assert_eq!(again.devices[0].class, "t4-16g");
}
