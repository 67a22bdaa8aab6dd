//! Symbols for the library and the driver: initialisation, versions, and lookup of devices.

use std::{
    ffi::{c_char, c_int, c_uint},
    sync::atomic::Ordering,
};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use super::{
    Handle, INVALID_ARGUMENT, NOT_FOUND, SUCCESS, UNINITIALIZED, UNKNOWN, USERS, code, library, put,
    put_text, reachable, text,
};
use crate::{
    file::{Gpu, GpuFile, version},
    live,
};

/// The version of NVML that these symbols implement.
const NVML_VERSION: &str = "13.580.95.05";

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    code(live::wait_while(|file| live::names(&file.hang, "init")).map(|_| {
        USERS.fetch_add(1, Ordering::AcqRel);
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    let less_one = USERS.fetch_update(Ordering::AcqRel, Ordering::Acquire, |users| users.checked_sub(1));
    if less_one.is_ok() { SUCCESS } else { UNINITIALIZED }
}

/// # Safety
/// As in nvml.h: `out` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller's promise.
    library("driverVersion", |file| unsafe {
        put_text(out, length, &file.driver_version)
    })
}

/// # Safety
/// As in nvml.h: `out` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(out: *mut c_char, length: c_uint) -> nvmlReturn_t {
    // SAFETY: the caller's promise.
    library("nvmlVersion", |_| unsafe { put_text(out, length, NVML_VERSION) })
}

/// # Safety
/// As in nvml.h: `out` points to an int.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(out: *mut c_int) -> nvmlReturn_t {
    library("cudaVersion", |file| {
        let (major, minor) = version(&file.cuda_version, "cudaVersion").map_err(|_| UNKNOWN)?;
        // SAFETY: the caller's promise.
        unsafe { put(out, major * 1000 + minor * 10) }
    })
}

/// # Safety
/// As in nvml.h: `out` points to an unsigned int.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(out: *mut c_uint) -> nvmlReturn_t {
    library("count", |file| {
        let count = c_uint::try_from(live::visible(file).len()).map_err(|_| UNKNOWN)?;
        // SAFETY: the caller's promise.
        unsafe { put(out, count) }
    })
}

/// # Safety
/// As in nvml.h: `out` points to a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    out: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    find(out, INVALID_ARGUMENT, |file| {
        live::visible(file)
            .get(usize::try_from(index).ok()?)
            .map(|(place, gpu)| (*place, *gpu))
    })
}

/// # Safety
/// As in nvml.h: `uuid` ends in a NUL, `out` points to a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    out: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise.
    match unsafe { text(uuid) } {
        Ok(uuid) => find(out, NOT_FOUND, |file| {
            live::visible(file)
                .into_iter()
                .find(|(_, gpu)| gpu.reported_uuid() == uuid)
        }),
        Err(code) => code,
    }
}

/// # Safety
/// As in nvml.h: `bus` ends in a NUL, `out` points to a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    bus: *const c_char,
    out: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise.
    match unsafe { text(bus) } {
        Ok(bus) => find(out, NOT_FOUND, |file| {
            live::visible(file).into_iter().find(|(_, gpu)| {
                bus.to_ascii_lowercase()
                    .ends_with(&gpu.reported_bus().to_ascii_lowercase())
            })
        }),
        Err(code) => code,
    }
}

/// Returns the handle of a GPU. As in NVML, this fails for a lost GPU and blocks for a hanging one.
fn find(
    out: *mut nvmlDevice_t,
    missing: nvmlReturn_t,
    pick: impl Fn(&GpuFile) -> Option<(usize, &Gpu)>,
) -> nvmlReturn_t {
    library("handle", |_| {
        let file = live::wait_while(|file| {
            pick(file).is_some_and(|(_, gpu)| live::names(&gpu.faults.hang, "handle"))
        })?;
        let (gpu, entry) = pick(&file).ok_or(missing)?;
        reachable(entry)?;
        // SAFETY: every caller of this function promises it for its own `out`.
        unsafe { put(out, Handle { gpu, slice: None }.to_c()) }
    })
}
