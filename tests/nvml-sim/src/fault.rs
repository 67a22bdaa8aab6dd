//! Faults, in the notation of the command line and as they are stored in the file.

use std::str::FromStr;

use crate::file::{Event, Gpu, Process};

/// Maximum number of events kept in the file, to keep it small.
const EVENTS_MAX: usize = 64;

/// One change of a GPU. It remains until [`Fault::Clear`], except for the last group.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// `lost`: fallen off the bus.
    Lost,
    /// `unplug`: removed from NVML, sysfs and the device plugin.
    Unplug,
    /// `withhold`: only the device plugin reports it as unhealthy.
    Withhold,
    /// `hang` or `hang=QUERY`: calls block until cleared.
    Hang(String),
    /// `unsupported=QUERY`.
    Unsupported(String),
    /// `name=TEXT`: NVML reports this name.
    Name(String),
    /// `uuid=TEXT`: NVML reports this UUID.
    Uuid(String),
    /// `bus=0000:18:00.0`: NVML reports this bus address.
    Bus(String),
    /// `ecc` or `ecc=N`: N more uncorrectable errors.
    Ecc(u64),
    /// `xid=N`: an event for current watchers.
    Xid(u64),
    /// `busy=PID[:BYTES]`: a process computes on the GPU, which draws its power limit meanwhile.
    Busy(Process),
    /// `idle`: no process.
    Idle,
    /// `clear`: removes faults, ECC errors and events; processes stay.
    Clear,
}

/// A fault that cannot be parsed or applied.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    #[error(
        "unknown fault {0:?}; one of lost, unplug, withhold, hang[=QUERY], unsupported=QUERY, name=TEXT, uuid=TEXT, \
         bus=ADDRESS, ecc[=N], xid=N, busy=PID[:BYTES], idle, clear"
    )]
    Unknown(String),
    #[error("{fault} needs a number, not {value:?}")]
    Number { fault: &'static str, value: String },
    #[error("the model {0} has no ECC")]
    NoEcc(String),
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let number = |fault, value: &str| {
            value.parse().map_err(|_| FaultError::Number {
                fault,
                value: value.to_owned(),
            })
        };
        Ok(match text.split_once('=') {
            None => match text {
                "lost" => Self::Lost,
                "unplug" => Self::Unplug,
                "withhold" => Self::Withhold,
                "hang" => Self::Hang("*".to_owned()),
                "ecc" => Self::Ecc(1),
                "idle" => Self::Idle,
                "clear" => Self::Clear,
                _ => return Err(FaultError::Unknown(text.to_owned())),
            },
            Some(("hang", query)) => Self::Hang(query.to_owned()),
            Some(("unsupported", query)) => Self::Unsupported(query.to_owned()),
            Some(("name", name)) => Self::Name(name.to_owned()),
            Some(("uuid", uuid)) => Self::Uuid(uuid.to_owned()),
            Some(("bus", bus)) => Self::Bus(bus.to_owned()),
            Some(("ecc", count)) => Self::Ecc(number("ecc", count)?),
            Some(("xid", xid)) => Self::Xid(number("xid", xid)?),
            Some(("busy", process)) => {
                let (pid, bytes) = process.split_once(':').unwrap_or((process, "1073741824"));
                let pid = pid.parse().map_err(|_| FaultError::Number {
                    fault: "busy",
                    value: pid.to_owned(),
                })?;
                Self::Busy(Process {
                    pid,
                    used_bytes: number("busy", bytes)?,
                    slice: None,
                })
            }
            Some(_) => return Err(FaultError::Unknown(text.to_owned())),
        })
    }
}

impl Gpu {
    /// Applies a change at a time.
    pub fn apply(&mut self, fault: &Fault, unix_ms: u64) -> Result<(), FaultError> {
        match fault {
            Fault::Lost => self.faults.lost = true,
            Fault::Unplug => self.faults.unplugged = true,
            Fault::Withhold => self.faults.withheld = true,
            Fault::Hang(query) => self.faults.hang.push(query.clone()),
            Fault::Unsupported(query) => self.faults.unsupported.push(query.clone()),
            Fault::Name(name) => self.faults.name = Some(name.clone()),
            Fault::Uuid(uuid) => self.faults.uuid = Some(uuid.clone()),
            Fault::Bus(bus) => self.faults.bus = Some(bus.clone()),
            Fault::Ecc(count) => {
                let ecc = self
                    .ecc
                    .as_mut()
                    .ok_or_else(|| FaultError::NoEcc(self.model.clone()))?;
                ecc.uncorrected += count;
            }
            Fault::Xid(xid) => self.event(*xid),
            Fault::Busy(process) => self.busy(*process, unix_ms),
            Fault::Idle => self.idle(unix_ms),
            Fault::Clear => {
                self.faults = crate::file::Faults::default();
                self.events.clear();
                if let Some(ecc) = &mut self.ecc {
                    ecc.uncorrected = 0;
                    ecc.corrected = 0;
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, xid: u64) {
        self.events.push(Event {
            seq: self.next_event,
            xid,
        });
        self.next_event += 1;
        if self.events.len() > EVENTS_MAX {
            self.events.remove(0);
        }
    }

    fn busy(&mut self, process: Process, unix_ms: u64) {
        self.processes.push(process);
        self.used_bytes += process.used_bytes;
        self.utilization = crate::file::Utilization { gpu: 97, memory: 61 };
        self.temperature_celsius = 67;
        self.set_power(self.power_limit_milliwatts, unix_ms);
    }

    fn idle(&mut self, unix_ms: u64) {
        for process in self.processes.drain(..) {
            self.used_bytes = self.used_bytes.saturating_sub(process.used_bytes);
        }
        self.utilization = crate::file::Utilization { gpu: 0, memory: 0 };
        self.temperature_celsius = 34;
        let idle_watts = crate::Model::find(&self.model).map_or(20, |model| model.idle_watts);
        self.set_power(idle_watts * 1000, unix_ms);
    }
}
