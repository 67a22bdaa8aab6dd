//! The health of each GPU over time: computes the next state from the previous one and an observation. Pure.
//!
//! A single reading does not make a GPU unhealthy, unless it is an event (an Xid): a fault is confirmed by a second
//! reading, which is requested soon. A single reading does not restore a GPU either: after a fault, a GPU must pass
//! several readings and be advertised by the device plugin. After a fatal Xid it must also have been reset.
//!
//! A healthy GPU that the device plugin stops advertising stays healthy: the device plugin is consulted when a container
//! starts and not afterwards, so that its restart takes no GPU from a container. Such a GPU is not sold: the condition
//! `WitnessesAgree` of the node shows it.

use jiff::Timestamp;
use leasehold_crds::provider::node::DeviceHealth;

pub(crate) mod checks;
pub(crate) mod confirmation;
pub(crate) mod foreign_processes;
pub(crate) mod unheld_memory;

use crate::{
    health::checks::{Finding, World, finding, is_advertised, is_held, is_withheld, unmatched_devices},
    sources::facts::{GpuFacts, Slot, bus_key},
};

/// Consecutive readings that confirm a fault.
const CONFIRMATIONS: u32 = 2;

/// Health of all GPUs of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HealthHistory {
    pub(crate) gpus: Vec<Record>,
    /// GPUs that only other sources report, and the number of consecutive readings that showed any.
    pub(crate) unmatched_devices: Vec<String>,
    unmatched_readings: u32,
}

/// Health of one GPU.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// Facts of the last reading.
    pub(crate) gpu: GpuFacts,
    pub(crate) health: DeviceHealth,
    pub(crate) message: String,
    pub(crate) since: Timestamp,
    unconfirmed: Option<Unconfirmed>,
    /// Time of the last reading in which the GPU was healthy.
    last_healthy: Option<Timestamp>,
    /// Consecutive readings without a finding.
    clean_readings: u32,
    reset: Reset,
}

/// A fault that is not confirmed yet.
#[derive(Clone, Debug, PartialEq)]
struct Unconfirmed {
    finding: Finding,
    readings: u32,
}

/// Whether the GPU was reset since its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    Unseen,
    /// The device plugin stopped advertising the GPU. When it advertises it again, the GPU was repaired or reset.
    Withheld,
    Seen,
}

/// Configurable rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Consecutive readings without a finding that a GPU needs after a fault.
    pub(crate) recovery_readings: u32,
}

/// When to read the hardware again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextReading {
    /// Soon, to confirm a fault.
    Soon,
    AtPeriod,
}

impl HealthHistory {
    /// Restores the state from before the agent's restart. If the machine was booted since, its GPUs were reset.
    pub(crate) fn restored(records: Vec<Record>, booted: Option<Timestamp>) -> Self {
        let gpus = records
            .into_iter()
            .map(|record| {
                let healthy = record.health == DeviceHealth::Healthy;
                let rebooted = booted.is_some_and(|booted| booted > record.since);
                Record {
                    health: if healthy {
                        DeviceHealth::Unknown
                    } else {
                        record.health
                    },
                    reset: if rebooted { Reset::Seen } else { Reset::Unseen },
                    ..record
                }
            })
            .collect();
        Self {
            gpus,
            ..Self::default()
        }
    }

    /// Computes the state after an observation.
    pub(crate) fn after(self, world: &World, rules: Rules, now: Timestamp) -> (Self, NextReading) {
        let mut unmatched = self.gpus;
        let mut gpus = Vec::new();
        for gpu in world.reading.gpus() {
            let before = take_match(&mut unmatched, world, gpu);
            gpus.push(Record::read(before, world, gpu, rules, now));
        }
        for before in unmatched {
            if let Some(missing) = before.not_read(world, now) {
                gpus.push(missing);
            }
        }
        gpus.sort_by_key(|record| record.gpu.index);
        let mut strange = unmatched_devices(world);
        strange.extend(unknown_slots(world, &gpus));
        let history = Self {
            gpus,
            unmatched_readings: if strange.is_empty() {
                0
            } else {
                self.unmatched_readings.saturating_add(1)
            },
            unmatched_devices: strange,
        };
        let next = if history.has_unconfirmed() {
            NextReading::Soon
        } else {
            NextReading::AtPeriod
        };
        (history, next)
    }

    /// The state while NVML is unavailable: a healthy GPU becomes unknown, a fault stays a fault.
    #[must_use]
    pub(crate) fn nvml_unavailable(mut self, why: &str, now: Timestamp) -> Self {
        for record in &mut self.gpus {
            record.unconfirmed = None;
            record.clean_readings = 0;
            if matches!(record.health, DeviceHealth::Healthy | DeviceHealth::Unknown) {
                record.set_health(DeviceHealth::Unknown, why.to_owned(), now);
            }
        }
        self
    }

    /// GPUs that only other sources report, once confirmed.
    pub(crate) fn confirmed_unmatched(&self) -> &[String] {
        if self.unmatched_readings >= CONFIRMATIONS {
            &self.unmatched_devices
        } else {
            &[]
        }
    }

    /// Whether NVML must be reopened: a GPU that was reset is visible only to sessions opened afterwards.
    pub(crate) fn needs_new_session(&self) -> bool {
        self.gpus.iter().any(|record| record.health == DeviceHealth::Lost)
            || !self.unmatched_devices.is_empty()
    }

    fn has_unconfirmed(&self) -> bool {
        let unsure = self.unmatched_readings > 0 && self.unmatched_readings < CONFIRMATIONS;
        unsure || self.gpus.iter().any(|record| record.unconfirmed.is_some())
    }
}

/// Slots of NVML that cannot be read and whose GPU is not known from an earlier reading.
fn unknown_slots(world: &World, gpus: &[Record]) -> Vec<String> {
    let known = |index: u32| gpus.iter().any(|record| record.gpu.index == index);
    (0..)
        .zip(&world.reading.slots)
        .filter(|(index, slot)| !matches!(slot, Slot::Read(_)) && !known(*index))
        .map(|(index, _)| format!("NVML can't read GPU {index}, and it was never read before"))
        .collect()
}

/// Removes and returns the record of a GPU: matched by UUID and bus, or by UUID alone where it is unique.
fn take_match(unmatched: &mut Vec<Record>, world: &World, gpu: &GpuFacts) -> Option<Record> {
    let same_bus = |record: &Record| bus_key(&record.gpu.bus) == bus_key(&gpu.bus);
    let exact = unmatched
        .iter()
        .position(|record| record.gpu.uuid == gpu.uuid && same_bus(record));
    let unique = world
        .reading
        .gpus()
        .filter(|other| other.uuid == gpu.uuid)
        .count()
        == 1;
    let found = exact.or_else(|| {
        unmatched
            .iter()
            .position(|record| unique && record.gpu.uuid == gpu.uuid)
    })?;
    Some(unmatched.remove(found))
}

impl Record {
    /// A record restored from the status.
    pub(crate) fn remembered(gpu: GpuFacts, health: DeviceHealth, message: String, since: Timestamp) -> Self {
        Self {
            gpu,
            health,
            message,
            since,
            unconfirmed: None,
            last_healthy: None,
            clean_readings: 0,
            reset: Reset::Unseen,
        }
    }

    /// Updates the record of a GPU that was read.
    fn read(before: Option<Self>, world: &World, gpu: &GpuFacts, rules: Rules, now: Timestamp) -> Self {
        let fresh = || {
            Self::remembered(
                gpu.clone(),
                DeviceHealth::Unknown,
                "not confirmed yet".to_owned(),
                now,
            )
        };
        let mut record = before.unwrap_or_else(fresh);
        record.reset = record.reset_after(world, gpu);
        let numa_node = record.gpu.numa_node;
        record.gpu = gpu.clone();
        record.gpu.numa_node = world.card(gpu).map_or(numa_node, |card| card.numa_node);
        match finding(world, gpu) {
            Some(found) => record.add_finding(found, now),
            None => record.no_finding(world, rules, now),
        }
        record
    }

    /// Updates the record of a GPU that was not read: NVML reports it as lost, cannot read it, or no longer counts
    /// it. Returns `None` if another GPU is in its slot, as then this one was removed.
    fn not_read(mut self, world: &World, now: Timestamp) -> Option<Self> {
        let key = bus_key(&self.gpu.bus);
        if !key.is_empty()
            && world
                .reading
                .gpus()
                .any(|other| bus_key(&other.bus) == key && other.uuid != self.gpu.uuid)
        {
            return None;
        }
        let index = usize::try_from(self.gpu.index).ok()?;
        let on_bus = world
            .pci
            .reported()
            .filter(|_| !key.is_empty())
            .map(|pci| pci.iter().any(|card| bus_key(&card.bus) == key));
        let message = match (world.reading.slots.get(index), on_bus) {
            (Some(Slot::Lost), _) => "NVML: the GPU is lost".to_owned(),
            (Some(Slot::Failed(why)), _) => format!("NVML cannot read it: {why}"),
            (_, Some(false)) => "missing in NVML and on the PCI bus".to_owned(),
            (_, Some(true) | None) => "missing in NVML".to_owned(),
        };
        // After a reboot, a card that is not on the bus was removed while the machine was off.
        if self.reset == Reset::Seen && on_bus == Some(false) && self.health == DeviceHealth::Lost {
            return None;
        }
        self.add_finding(
            Finding {
                health: DeviceHealth::Lost,
                message,
            },
            now,
        );
        if self.health == DeviceHealth::Lost {
            // If it is ever read again, it was reset.
            self.reset = Reset::Withheld;
        }
        Some(self)
    }

    /// Applies a finding: immediately if it is an event or the GPU is not healthy anyway, otherwise once confirmed.
    fn add_finding(&mut self, found: Finding, now: Timestamp) {
        self.clean_readings = 0;
        if self.health == DeviceHealth::FatalXid && found.health == DeviceHealth::WitnessesDisagree {
            // Other sources may react to the Xid too. Keep the more severe reason.
            return;
        }
        let readings = match &self.unconfirmed {
            Some(before) if before.finding.health == found.health => before.readings + 1,
            Some(_) | None => 1,
        };
        let in_sale = self.health == DeviceHealth::Healthy;
        let event = found.health == DeviceHealth::FatalXid;
        if event || !in_sale || readings >= CONFIRMATIONS {
            self.unconfirmed = None;
            if found.health == DeviceHealth::FatalXid {
                self.reset = Reset::Unseen;
            }
            self.set_health(found.health, found.message, now);
        } else {
            self.unconfirmed = Some(Unconfirmed {
                finding: found,
                readings,
            });
        }
    }

    /// Applies a reading without a finding.
    fn no_finding(&mut self, world: &World, rules: Rules, now: Timestamp) {
        self.unconfirmed = None;
        match self.health {
            DeviceHealth::Healthy => (),
            // The GPU was never offered, or its state was unknown for a while: there is no fault to recover from.
            DeviceHealth::Unknown => {
                if is_advertised(&world.kubelet, &self.gpu) || is_held(&world.kubelet, &self.gpu) {
                    self.set_health(DeviceHealth::Healthy, String::new(), now);
                } else if is_withheld(&world.kubelet, &self.gpu) {
                    self.set_health(
                        DeviceHealth::Unknown,
                        "the device plugin does not advertise it".to_owned(),
                        now,
                    );
                } else {
                    let message = "the device plugin's list is unavailable".to_owned();
                    self.set_health(DeviceHealth::Unknown, message, now);
                }
            }
            DeviceHealth::FatalXid if self.reset != Reset::Seen => (),
            DeviceHealth::FatalXid
            | DeviceHealth::Lost
            | DeviceHealth::EccUncorrectable
            | DeviceHealth::Duplicate
            | DeviceHealth::WitnessesDisagree => {
                self.clean_readings = u32::from(is_advertised(&world.kubelet, &self.gpu));
                let message = format!(
                    "recovering from: {}; it is offered again after several readings without a fault",
                    self.message
                );
                self.set_health(DeviceHealth::Recovering, message, now);
            }
            DeviceHealth::Recovering => {
                self.clean_readings = match is_advertised(&world.kubelet, &self.gpu) {
                    true => self.clean_readings + 1,
                    false => 0,
                };
                if self.clean_readings >= rules.recovery_readings {
                    self.set_health(DeviceHealth::Healthy, String::new(), now);
                }
            }
        }
        if self.health == DeviceHealth::Healthy {
            self.last_healthy = Some(now);
        }
    }

    /// Detects a reset: counters that restarted, or a device plugin that stopped advertising the GPU and advertises
    /// it again.
    fn reset_after(&self, world: &World, gpu: &GpuFacts) -> Reset {
        let fell =
            |before: Option<u64>, now: Option<u64>| matches!((before, now), (Some(b), Some(n)) if n < b);
        let restarted = fell(self.gpu.fast.energy_millijoules, gpu.fast.energy_millijoules)
            || fell(self.gpu.ecc_uncorrected, gpu.ecc_uncorrected);
        match self.reset {
            Reset::Seen => Reset::Seen,
            _ if restarted => Reset::Seen,
            Reset::Unseen if is_withheld(&world.kubelet, gpu) => Reset::Withheld,
            Reset::Unseen => Reset::Unseen,
            Reset::Withheld if is_advertised(&world.kubelet, gpu) => Reset::Seen,
            Reset::Withheld => Reset::Withheld,
        }
    }

    /// `since` changes with the health, not with the message. A fault begins at the last reading in which the GPU was
    /// healthy, as it is unknown whether it worked after that. Recovering belongs to the same fault.
    fn set_health(&mut self, health: DeviceHealth, message: String, now: Timestamp) {
        let well = self.last_healthy.take_if(|_| is_fault(health));
        if self.health != health && !(health == DeviceHealth::Recovering && is_fault(self.health)) {
            self.since = well.unwrap_or(now);
        }
        self.health = health;
        self.message = message;
    }
}

/// Whether the GPU is known to be faulty.
pub(crate) const fn is_fault(health: DeviceHealth) -> bool {
    match health {
        DeviceHealth::Healthy | DeviceHealth::Unknown => false,
        DeviceHealth::Lost
        | DeviceHealth::FatalXid
        | DeviceHealth::EccUncorrectable
        | DeviceHealth::Duplicate
        | DeviceHealth::WitnessesDisagree
        | DeviceHealth::Recovering => true,
    }
}

#[cfg(test)]
mod tests;
