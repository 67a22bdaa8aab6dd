//! Symbols that ask one device for one thing.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings as sys;
use sys::{
    nvmlClockType_t, nvmlDevice_t, nvmlEccCounterType_t, nvmlEnableState_t, nvmlMemory_t, nvmlMemory_v2_t,
    nvmlMemoryErrorType_t, nvmlPciInfo_t, nvmlReturn_t, nvmlTemperatureSensors_t, nvmlUtilization_t,
};

use super::{INVALID_ARGUMENT, NOT_SUPPORTED, Seen, UNKNOWN, device, put, small};
use crate::{
    clock,
    file::{Gpu, Process, Throttle, version},
    live,
};

ask_text!(nvmlDeviceGetName, "name", |seen| Ok(match seen.slice {
    Some(slice) => format!("{} MIG {}", seen.gpu.reported_name(), slice.profile),
    None => seen.gpu.reported_name().to_owned(),
}));
ask_text!(nvmlDeviceGetUUID, "uuid", |seen| Ok(match seen.slice {
    Some(slice) => slice.uuid.clone(),
    None => seen.gpu.reported_uuid().to_owned(),
}));
ask_text!(nvmlDeviceGetSerial, "serial", |seen| seen
    .whole()
    .map(|()| seen.gpu.serial.clone()));

ask!(nvmlDeviceGetIndex, "index", c_uint, |seen| match seen.slice {
    Some(_) => small(seen.handle.slice.unwrap_or(0)),
    None => live::visible(seen.file)
        .iter()
        .position(|(place, _)| *place == seen.handle.gpu)
        .ok_or(INVALID_ARGUMENT)
        .and_then(small),
});
ask!(nvmlDeviceGetMinorNumber, "minor", c_uint, |seen| small(
    seen.handle.gpu
));
ask!(nvmlDeviceGetPciInfo_v3, "pci", nvmlPciInfo_t, |seen| pci_info(
    seen.gpu
));
ask!(nvmlDeviceGetMemoryInfo, "memory", nvmlMemory_t, |seen| {
    let memory = Memory::of(&seen);
    Ok(nvmlMemory_t {
        total: memory.total,
        free: memory.free,
        used: memory.used + memory.reserved,
    })
});
ask!(
    nvmlDeviceGetUtilizationRates,
    "utilization",
    nvmlUtilization_t,
    |seen| {
        // A GPU with MIG slices has no utilisation, and neither has a slice.
        if seen.gpu.slices().is_empty() {
            Ok(nvmlUtilization_t {
                gpu: seen.gpu.utilization.gpu,
                memory: seen.gpu.utilization.memory,
            })
        } else {
            Err(NOT_SUPPORTED)
        }
    }
);
ask!(nvmlDeviceGetPowerUsage, "power", c_uint, |seen| seen
    .whole()
    .map(|()| seen.gpu.power_milliwatts));
ask!(nvmlDeviceGetPowerManagementLimit, "powerLimit", c_uint, |seen| {
    seen.whole().map(|()| seen.gpu.power_limit_milliwatts)
});
ask!(nvmlDeviceGetEnforcedPowerLimit, "powerLimit", c_uint, |seen| {
    seen.whole().map(|()| seen.gpu.power_limit_milliwatts)
});
ask!(
    nvmlDeviceGetTotalEnergyConsumption,
    "energy",
    c_ulonglong,
    |seen| {
        seen.whole()
            .map(|()| seen.gpu.energy_millijoules(clock::unix_ms()))
    }
);
ask!(
    nvmlDeviceGetCurrentClocksThrottleReasons,
    "throttle",
    c_ulonglong,
    |seen| {
        seen.whole()
            .map(|()| c_ulonglong::from(seen.gpu.throttle.iter().fold(0, |bits, why| bits | bit(*why))))
    }
);
ask!(nvmlDeviceGetCurrPcieLinkGeneration, "pcie", c_uint, |seen| {
    seen.whole().map(|()| seen.gpu.pcie_generation)
});
ask!(nvmlDeviceGetCurrPcieLinkWidth, "pcie", c_uint, |seen| seen
    .whole()
    .map(|()| seen.gpu.pcie_width));
/// # Safety
/// As in nvml.h: `out` points to a memory structure with its version set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    handle: nvmlDevice_t,
    out: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    device(handle, "memory", |seen| {
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null; the caller vouches for the rest.
        let version = unsafe { (*out).version };
        if version >> 24 != 2 {
            return Err(sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
        }
        let Memory {
            total,
            reserved,
            free,
            used,
        } = Memory::of(&seen);
        // SAFETY: as above.
        unsafe {
            put(
                out,
                nvmlMemory_v2_t {
                    version,
                    total,
                    reserved,
                    free,
                    used,
                },
            )
        }
    })
}

/// # Safety
/// As in nvml.h: `major` and `minor` point to an int each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    handle: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> nvmlReturn_t {
    device(handle, "computeCapability", |seen| {
        let capability = version(&seen.gpu.compute_capability, "computeCapability").map_err(|_| UNKNOWN)?;
        // SAFETY: the caller's promise.
        unsafe {
            put(major, capability.0)?;
            put(minor, capability.1)
        }
    })
}

/// # Safety
/// As in nvml.h: both pointers point to a state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEccMode(
    handle: nvmlDevice_t,
    current: *mut nvmlEnableState_t,
    pending: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    device(handle, "ecc", |seen| {
        let mode = nvmlEnableState_t::from(seen.gpu.ecc.ok_or(NOT_SUPPORTED)?.enabled);
        // SAFETY: the caller's promise.
        unsafe {
            put(current, mode)?;
            put(pending, mode)
        }
    })
}

/// # Safety
/// As in nvml.h: `out` points to an unsigned long long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    handle: nvmlDevice_t,
    kind: nvmlMemoryErrorType_t,
    _since: nvmlEccCounterType_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    device(handle, "ecc", |seen| {
        seen.whole()?;
        let ecc = seen.gpu.ecc.filter(|ecc| ecc.enabled).ok_or(NOT_SUPPORTED)?;
        let uncorrected = kind == sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED;
        // SAFETY: the caller's promise.
        unsafe {
            put(
                out,
                if uncorrected {
                    ecc.uncorrected
                } else {
                    ecc.corrected
                },
            )
        }
    })
}

/// # Safety
/// As in nvml.h: `out` points to an unsigned int.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    handle: nvmlDevice_t,
    _sensor: nvmlTemperatureSensors_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    device(handle, "temperature", |seen| {
        seen.whole()?;
        // SAFETY: the caller's promise.
        unsafe { put(out, seen.gpu.temperature_celsius) }
    })
}

/// # Safety
/// As in nvml.h: `out` points to an unsigned int.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(
    handle: nvmlDevice_t,
    kind: nvmlClockType_t,
    out: *mut c_uint,
) -> nvmlReturn_t {
    device(handle, "clocks", |seen| {
        seen.whole()?;
        let clocks = seen.gpu.clocks;
        let mhz = match kind {
            sys::nvmlClockType_enum_NVML_CLOCK_GRAPHICS => clocks.graphics,
            sys::nvmlClockType_enum_NVML_CLOCK_SM => clocks.sm,
            sys::nvmlClockType_enum_NVML_CLOCK_MEM => clocks.memory,
            sys::nvmlClockType_enum_NVML_CLOCK_VIDEO => clocks.video,
            _ => return Err(INVALID_ARGUMENT),
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, mhz) }
    })
}

struct Memory {
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

impl Memory {
    fn of(seen: &Seen<'_>) -> Self {
        let (total, reserved, used) = match seen.slice {
            Some(slice) => {
                let held = |process: &&Process| process.slice == seen.handle.slice;
                (
                    slice.memory_bytes,
                    0,
                    seen.gpu.processes.iter().filter(held).map(|p| p.used_bytes).sum(),
                )
            }
            None => (
                seen.gpu.memory_bytes,
                seen.gpu.reserved_bytes,
                seen.gpu.used_bytes,
            ),
        };
        Self {
            total,
            reserved,
            free: total.saturating_sub(reserved + used),
            used,
        }
    }
}

fn pci_info(gpu: &Gpu) -> Result<nvmlPciInfo_t, nvmlReturn_t> {
    let hex = |text: &str| c_uint::from_str_radix(text, 16).map_err(|_| UNKNOWN);
    let reported = gpu.reported_bus();
    let mut parts = reported.split([':', '.']);
    let mut next = || parts.next().ok_or(UNKNOWN).and_then(hex);
    let (domain, bus, slot, function) = (next()?, next()?, next()?, next()?);
    let mut info = nvmlPciInfo_t {
        busIdLegacy: [0; 16],
        domain,
        bus,
        device: slot,
        pciDeviceId: hex(&gpu.pci_device)? << 16 | 0x10de,
        pciSubSystemId: hex(&gpu.pci_subsystem)?,
        busId: [0; 32],
    };
    fill(
        &mut info.busIdLegacy,
        &format!("{domain:04X}:{bus:02X}:{slot:02X}.{function:X}"),
    );
    fill(
        &mut info.busId,
        &format!("{domain:08X}:{bus:02X}:{slot:02X}.{function:X}"),
    );
    Ok(info)
}

fn fill(out: &mut [c_char], text: &str) {
    let room = out.len() - 1;
    for (to, from) in out.iter_mut().zip(text.bytes().take(room)) {
        // ASCII: the same in a signed and an unsigned char.
        *to = c_char::from_ne_bytes([from]);
    }
}

fn bit(why: Throttle) -> u32 {
    match why {
        Throttle::Idle => sys::nvmlClocksEventReasonGpuIdle,
        Throttle::PowerCap => sys::nvmlClocksEventReasonSwPowerCap,
        Throttle::HwSlowdown => sys::nvmlClocksThrottleReasonHwSlowdown,
        Throttle::SwThermal => sys::nvmlClocksEventReasonSwThermalSlowdown,
        Throttle::HwThermal => sys::nvmlClocksThrottleReasonHwThermalSlowdown,
        Throttle::HwPowerBrake => sys::nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
}
