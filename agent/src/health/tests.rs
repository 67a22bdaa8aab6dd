//! A GPU's health over sequences of observations.

use std::collections::BTreeSet;

use super::*;
use crate::{
    sources::facts::{Memory, Reading, Source, XidEvent},
    sources::kubelet::{Allocation, Holder},
    sources::pci::PciGpu,
};

mod unreported;

const RULES: Rules = Rules { recovery_readings: 3 };

/// A node whose sources a test can change.
struct Node {
    world: World,
    history: HealthHistory,
    second: i64,
    next: NextReading,
}

fn gpu(index: u32) -> GpuFacts {
    GpuFacts {
        index,
        uuid: format!("GPU-{index}"),
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        memory: Some(Memory {
            total: 81559 << 20,
            ..Memory::default()
        }),
        bus: format!("00000000:{:02X}:00.0", 0x10 + index),
        pci_device: 0x2330,
        ecc_uncorrected: Some(0),
        ..GpuFacts::default()
    }
}

fn node(count: u32) -> Node {
    let card = |index| PciGpu {
        bus: format!("0000:{:02x}:00.0", 0x10 + index),
        device: 0x2330,
        numa_node: Some(0),
        other_driver: false,
    };
    let world = World {
        reading: Reading {
            slots: (0..count).map(|index| Slot::Read(Box::new(gpu(index)))).collect(),
            ..Reading::default()
        },
        xids: Vec::new(),
        pci: Source::Reported((0..count).map(card).collect()),
        kubelet: Source::Reported(Allocation {
            allocatable: (0..count).map(|index| format!("GPU-{index}")).collect(),
            ..Allocation::default()
        }),
    };
    let mut node = Node {
        world,
        history: HealthHistory::default(),
        second: 0,
        next: NextReading::AtPeriod,
    };
    node.observe();
    node
}

impl Node {
    /// One observation, a second after the last. Events are delivered once.
    fn observe(&mut self) {
        self.second += 1;
        let now = Timestamp::from_second(self.second).unwrap();
        let (history, next) = std::mem::take(&mut self.history).after(&self.world, RULES, now);
        (self.history, self.next) = (history, next);
        self.world.xids.clear();
    }

    fn health(&self) -> Vec<DeviceHealth> {
        self.history.gpus.iter().map(|record| record.health).collect()
    }

    fn first(&self) -> DeviceHealth {
        self.health()[0]
    }

    fn change(&mut self, index: usize, change: impl FnOnce(&mut GpuFacts)) {
        let Slot::Read(gpu) = &mut self.world.reading.slots[index] else {
            panic!("GPU {index} is not read")
        };
        change(gpu);
    }

    fn allocatable(&mut self) -> &mut BTreeSet<String> {
        let Source::Reported(kubelet) = &mut self.world.kubelet else {
            panic!("the kubelet is unavailable")
        };
        &mut kubelet.allocatable
    }

    fn xid(&mut self, xid: u64) {
        self.world.xids.push(XidEvent {
            uuid: "GPU-0".to_owned(),
            xid,
        });
    }

    /// Observes until the first GPU is healthy, and returns the number of observations.
    fn observations_to_health(&mut self) -> u32 {
        for count in 1..20 {
            self.observe();
            if self.first() == DeviceHealth::Healthy {
                return count;
            }
        }
        panic!("still {:?}: {}", self.first(), self.history.gpus[0].message);
    }
}

#[test]
fn a_gpu_confirmed_by_all_sources_is_healthy_immediately() {
    assert_eq!(node(4).health(), [DeviceHealth::Healthy; 4]);
}

#[test]
fn a_gpu_is_not_healthy_before_the_device_plugin_advertises_it() {
    let mut node = node(1);
    node.history = HealthHistory::default();
    node.allocatable().clear();
    node.observe();
    node.observe();
    assert_eq!(node.first(), DeviceHealth::Unknown);
    node.allocatable().insert("GPU-0".to_owned());
    assert_eq!(
        node.observations_to_health(),
        1,
        "it had no fault to recover from"
    );
}

#[test]
fn a_fault_needs_two_readings() {
    let mut node = node(2);
    node.world.reading.slots[0] = Slot::Lost;
    node.observe();
    assert_eq!(
        (node.first(), node.next),
        (DeviceHealth::Healthy, NextReading::Soon)
    );
    node.observe();
    assert_eq!(node.health(), [DeviceHealth::Lost, DeviceHealth::Healthy]);
    assert_eq!(node.history.gpus[0].message, "NVML: the GPU is lost");
    assert!(node.history.needs_new_session());
}

#[test]
fn a_fault_seen_only_once_is_ignored() {
    let mut node = node(1);
    node.world.reading.slots[0] = Slot::Lost;
    node.observe();
    node.world.reading.slots[0] = Slot::Read(Box::new(gpu(0)));
    node.observe();
    assert_eq!(
        (node.first(), node.next),
        (DeviceHealth::Healthy, NextReading::AtPeriod)
    );
}

#[test]
fn a_gpu_that_the_device_plugin_stops_advertising_stays_healthy() {
    let mut node = node(2);
    let since = node.history.gpus[0].since;
    for advertised in [0, 2, 1, 2] {
        let ids = (0..advertised).map(|index| format!("GPU-{index}"));
        *node.allocatable() = ids.collect();
        for _ in 0..5 {
            node.observe();
            assert_eq!(
                (node.health(), node.next),
                (vec![DeviceHealth::Healthy; 2], NextReading::AtPeriod),
                "the device plugin restarts, or withdraws a GPU that a container computes on"
            );
        }
    }
    assert_eq!(node.history.gpus[0].since, since);
}

/// While the device plugin is away, the kubelet's list of holders shows that a container has the GPU.
#[test]
fn after_a_restart_a_held_gpu_needs_no_device_plugin_to_be_healthy() {
    let mut node = node(2);
    node.history = HealthHistory::restored(node.history.gpus.clone(), None);
    let Source::Reported(kubelet) = &mut node.world.kubelet else {
        panic!("the kubelet is unavailable")
    };
    kubelet.allocatable.clear();
    kubelet.holders.push(Holder {
        namespace: "lease-a".to_owned(),
        pod: "lease-0".to_owned(),
        ids: BTreeSet::from(["GPU-0".to_owned()]),
    });
    node.observe();
    assert_eq!(node.health(), [DeviceHealth::Healthy, DeviceHealth::Unknown]);
    assert_eq!(
        node.history.gpus[1].message,
        "the device plugin does not advertise it"
    );

    // A GPU that recovers from a fault needs both.
    node.world.reading.slots[0] = Slot::Lost;
    node.observe();
    node.observe();
    node.world.reading.slots[0] = Slot::Read(Box::new(gpu(0)));
    for _ in 0..5 {
        node.observe();
    }
    assert_eq!(node.first(), DeviceHealth::Recovering);
}

#[test]
fn a_lost_gpu_recovers_after_clean_readings_and_when_it_is_advertised() {
    let mut node = node(1);
    node.world.reading.slots[0] = Slot::Lost;
    node.allocatable().clear();
    node.observe();
    node.observe();
    assert_eq!(node.first(), DeviceHealth::Lost);
    node.world.reading.slots[0] = Slot::Read(Box::new(gpu(0)));
    for _ in 0..5 {
        node.observe();
        assert_ne!(
            node.first(),
            DeviceHealth::Healthy,
            "the device plugin does not advertise it yet"
        );
    }
    node.allocatable().insert("GPU-0".to_owned());
    assert_eq!(node.observations_to_health(), 3);
}

#[test]
fn an_unplugged_gpu_is_lost_and_the_others_keep_their_health() {
    let mut node = node(3);
    node.world.reading.slots.remove(0);
    node.change(0, |gpu| gpu.index = 0);
    node.change(1, |gpu| gpu.index = 1);
    let Source::Reported(pci) = &mut node.world.pci else {
        panic!()
    };
    pci.remove(0);
    node.allocatable().remove("GPU-0");
    node.observe();
    node.observe();
    let lost: Vec<&str> = node
        .history
        .gpus
        .iter()
        .filter(|record| record.health == DeviceHealth::Lost)
        .map(|record| record.gpu.uuid.as_str())
        .collect();
    assert_eq!(lost, ["GPU-0"]);
    assert_eq!(
        node.health()
            .iter()
            .filter(|health| **health == DeviceHealth::Healthy)
            .count(),
        2
    );
}

#[test]
fn a_fatal_xid_counts_immediately_and_until_the_gpu_was_reset() {
    let mut node = node(1);
    node.xid(79);
    node.observe();
    assert_eq!(node.first(), DeviceHealth::FatalXid);
    for _ in 0..10 {
        node.observe();
    }
    assert_eq!(
        node.first(),
        DeviceHealth::FatalXid,
        "readings without a fault are no reset"
    );
    // The device plugin stops advertising it, it is reset, and the plugin advertises it again.
    node.allocatable().clear();
    node.observe();
    assert_eq!(
        node.first(),
        DeviceHealth::FatalXid,
        "the more severe reason stays"
    );
    node.allocatable().insert("GPU-0".to_owned());
    assert_eq!(node.observations_to_health(), 3);
}

#[test]
fn a_counter_that_restarted_shows_a_reset() {
    let mut node = node(1);
    node.change(0, |gpu| gpu.fast.energy_millijoules = Some(1000));
    node.xid(48);
    node.observe();
    node.change(0, |gpu| gpu.fast.energy_millijoules = Some(5));
    assert_eq!(node.observations_to_health(), 3);
}

#[test]
fn a_program_s_xid_changes_nothing() {
    let mut node = node(1);
    node.xid(13);
    node.observe();
    assert_eq!(node.first(), DeviceHealth::Healthy);
}

#[test]
fn uncorrectable_memory_errors_count_until_a_reset_clears_them() {
    let mut node = node(1);
    node.change(0, |gpu| gpu.ecc_uncorrected = Some(2));
    node.observe();
    node.observe();
    assert_eq!(node.first(), DeviceHealth::EccUncorrectable);
    node.change(0, |gpu| gpu.ecc_uncorrected = Some(0));
    assert_eq!(node.observations_to_health(), 3);
}

#[test]
fn eight_gpus_with_one_bus_address_are_duplicates_and_recover() {
    let mut node = node(8);
    for index in 0..8 {
        node.change(index, |gpu| gpu.bus = "00000000:10:00.0".to_owned());
    }
    node.observe();
    node.observe();
    assert_eq!(node.health(), [DeviceHealth::Duplicate; 8]);
    for index in 0..8 {
        node.change(usize::try_from(index).unwrap(), |facts| {
            facts.bus = gpu(index).bus
        });
    }
    node.observations_to_health();
    assert_eq!(node.health(), [DeviceHealth::Healthy; 8]);
}

#[test]
fn two_gpus_with_one_uuid_are_duplicates_and_recover() {
    let mut node = node(2);
    node.change(1, |gpu| gpu.uuid = "GPU-0".to_owned());
    node.observe();
    node.observe();
    assert_eq!(node.health(), [DeviceHealth::Duplicate; 2]);
    node.change(1, |gpu| gpu.uuid = "GPU-1".to_owned());
    node.observations_to_health();
    assert_eq!(node.health(), [DeviceHealth::Healthy; 2]);
}

#[test]
fn a_card_with_a_false_name_is_found_by_its_device_id() {
    let mut node = node(1);
    node.change(0, |gpu| gpu.name = "NVIDIA GeForce RTX 4090".to_owned());
    node.observe();
    node.observe();
    assert_eq!(node.first(), DeviceHealth::WitnessesDisagree);
    assert!(
        node.history.gpus[0]
            .message
            .contains("the PCI device id belongs to a h100"),
        "{:?}",
        node.history
    );
    // If the device id that NVML reports is wrong too, the PCI bus still shows the real one.
    let mut node = self::node(1);
    let Source::Reported(pci) = &mut node.world.pci else {
        panic!()
    };
    pci[0].device = 0x1eb8;
    node.observe();
    node.observe();
    assert_eq!(node.first(), DeviceHealth::WitnessesDisagree);
}

#[test]
fn an_unavailable_source_is_neither_a_fault_nor_a_confirmation() {
    let mut node = node(1);
    node.world.pci = Source::Unavailable("no /sys".to_owned());
    node.world.kubelet = Source::Unavailable("away".to_owned());
    node.observe();
    node.observe();
    assert_eq!(
        node.first(),
        DeviceHealth::Healthy,
        "an unavailable source is no fault"
    );
    node.history = HealthHistory::default();
    node.observe();
    assert_eq!(
        node.first(),
        DeviceHealth::Unknown,
        "an unavailable source does not confirm health"
    );
    node.world.kubelet = Source::Absent;
    assert_eq!(
        node.observations_to_health(),
        1,
        "a node without a kubelet has two sources"
    );
}

#[test]
fn a_hanging_driver_makes_health_unknown_and_keeps_faults() {
    let mut node = node(2);
    node.world.reading.slots[0] = Slot::Lost;
    node.observe();
    node.observe();
    let now = Timestamp::from_second(99).unwrap();
    node.history = std::mem::take(&mut node.history).nvml_unavailable("hung", now);
    assert_eq!(node.health(), [DeviceHealth::Lost, DeviceHealth::Unknown]);
    node.observe();
    assert_eq!(node.health(), [DeviceHealth::Lost, DeviceHealth::Healthy]);
}

#[test]
fn a_card_that_only_the_pci_bus_reports_is_unmatched() {
    let mut node = node(2);
    node.world.reading.slots.pop();
    node.history = HealthHistory::default();
    node.observe();
    assert!(node.history.confirmed_unmatched().is_empty());
    assert_eq!(node.next, NextReading::Soon);
    node.observe();
    let unmatched_devices = node.history.confirmed_unmatched().join("; ");
    assert!(
        unmatched_devices.contains("on the PCI bus but not in NVML: 0000:11:00.0"),
        "{unmatched_devices}"
    );
    assert!(
        unmatched_devices.contains("advertised by the device plugin but not in NVML: GPU-1"),
        "{unmatched_devices}"
    );
    let Source::Reported(pci) = &mut node.world.pci else {
        panic!()
    };
    pci[1].other_driver = true;
    node.allocatable().remove("GPU-1");
    node.observe();
    assert!(
        node.history.confirmed_unmatched().is_empty(),
        "a card bound to another driver is ignored"
    );
}

#[test]
fn a_gpu_that_was_never_read_is_reported() {
    let mut node = node(1);
    node.history = HealthHistory::default();
    node.world.reading.slots[0] = Slot::Lost;
    node.observe();
    node.observe();
    assert!(node.history.gpus.is_empty());
    assert_eq!(
        node.history.confirmed_unmatched(),
        ["NVML can't read GPU 0, and it was never read before"]
    );
}

#[test]
fn a_restart_keeps_faults_and_a_reboot_is_a_reset() {
    let mut node = node(1);
    node.xid(79);
    node.observe();
    let fault = node.history.gpus.clone();
    let (before, after) = (
        Timestamp::from_second(1).unwrap(),
        Timestamp::from_second(1000).unwrap(),
    );
    node.history = HealthHistory::restored(fault.clone(), Some(before));
    for _ in 0..10 {
        node.observe();
    }
    assert_eq!(node.first(), DeviceHealth::FatalXid);
    node.history = HealthHistory::restored(fault, Some(after));
    node.observations_to_health();
}

#[test]
fn a_card_taken_out_while_the_machine_was_off_is_forgotten() {
    let mut node = node(2);
    node.world.reading.slots.pop();
    let Source::Reported(pci) = &mut node.world.pci else {
        panic!()
    };
    pci.pop();
    node.allocatable().remove("GPU-1");
    node.observe();
    node.observe();
    assert_eq!(node.health(), [DeviceHealth::Healthy, DeviceHealth::Lost]);
    let booted = Timestamp::from_second(1000).unwrap();
    node.history = HealthHistory::restored(node.history.gpus.clone(), Some(booted));
    node.observe();
    assert_eq!(node.health(), [DeviceHealth::Healthy]);
}

#[test]
fn since_changes_only_with_the_health() {
    let mut node = node(1);
    let since = node.history.gpus[0].since;
    for _ in 0..5 {
        node.observe();
    }
    assert_eq!(node.history.gpus[0].since, since);
}

#[test]
fn a_fault_begins_at_the_last_healthy_reading() {
    let mut node = node(1);
    node.observe();
    let well = Timestamp::from_second(node.second).unwrap();
    node.change(0, |gpu| gpu.ecc_uncorrected = Some(1));
    node.observe();
    assert_eq!(
        node.first(),
        DeviceHealth::Healthy,
        "one reading does not confirm a fault"
    );
    node.observe();
    assert_eq!(node.first(), DeviceHealth::EccUncorrectable);
    assert_eq!(node.history.gpus[0].since, well);
    node.change(0, |gpu| gpu.ecc_uncorrected = Some(0));
    node.observe();
    assert_eq!(node.first(), DeviceHealth::Recovering);
    assert_eq!(
        node.history.gpus[0].since, well,
        "recovering belongs to the same fault"
    );
    node.observations_to_health();
    let healthy = Timestamp::from_second(node.second).unwrap();
    assert_eq!(node.history.gpus[0].since, healthy);

    // A driver that hangs meanwhile does not change that time.
    node.history =
        std::mem::take(&mut node.history).nvml_unavailable("hangs", Timestamp::from_second(500).unwrap());
    node.second = 600;
    node.xid(79);
    node.observe();
    assert_eq!(node.first(), DeviceHealth::FatalXid);
    assert_eq!(node.history.gpus[0].since, healthy);
}
