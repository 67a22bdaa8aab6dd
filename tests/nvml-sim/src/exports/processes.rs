//! Processes on a GPU, by process id and, with MIG, by instance.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlProcessInfo_t, nvmlReturn_t};

use super::{Answer, INSUFFICIENT_SIZE, INVALID_ARGUMENT, device, small};
use crate::file::{Gpu, Process};

const NO_INSTANCE: c_uint = c_uint::MAX;

/// # Safety
/// As in nvml.h: `count` points to the number of entries that `out` has room for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    handle: nvmlDevice_t,
    count: *mut c_uint,
    out: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    device(handle, "processes", |seen| {
        let mine = |process: &&Process| seen.handle.slice.is_none() || process.slice == seen.handle.slice;
        let processes: Vec<nvmlProcessInfo_t> = seen
            .gpu
            .processes
            .iter()
            .filter(mine)
            .map(|process| process_info(seen.gpu, process))
            .collect();
        // SAFETY: the caller's promise.
        unsafe { put_list(count, out, &processes) }
    })
}

/// # Safety
/// As in nvml.h: `count` points to the number of entries that `out` has room for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    handle: nvmlDevice_t,
    count: *mut c_uint,
    out: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    // SAFETY: the caller's promise. There are no graphics processes.
    device(handle, "processes", |_| unsafe { put_list(count, out, &[]) })
}

fn process_info(gpu: &Gpu, process: &Process) -> nvmlProcessInfo_t {
    let slice = process.slice.and_then(|index| gpu.slices().get(index));
    nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.used_bytes,
        gpuInstanceId: slice.map_or(NO_INSTANCE, |slice| slice.gpu_instance),
        computeInstanceId: slice.map_or(NO_INSTANCE, |_| 0),
    }
}

/// Lists in NVML: if the buffer is too small, the call fails and returns the needed size.
///
/// # Safety
///
/// `count` is null or points to the number of entries that `out`, unless null, has room for.
unsafe fn put_list(count: *mut c_uint, out: *mut nvmlProcessInfo_t, list: &[nvmlProcessInfo_t]) -> Answer {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let needed = small(list.len())?;
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe {
        let room = count.read();
        count.write(needed);
        if needed == 0 {
            return Ok(());
        }
        if out.is_null() || room < needed {
            return Err(INSUFFICIENT_SIZE);
        }
        std::ptr::copy_nonoverlapping(list.as_ptr(), out, list.len());
    }
    Ok(())
}
