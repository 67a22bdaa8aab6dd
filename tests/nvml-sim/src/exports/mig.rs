//! Multi-instance GPUs: the mode, the slices of a GPU, and queries for slices.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlDeviceAttributes_t, nvmlReturn_t};

use super::{Handle, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, device, put};
use crate::live;

/// Maximum number of slices of a GPU.
const SLICES_MAX: c_uint = 7;

ask!(nvmlDeviceGetMaxMigDeviceCount, "mig", c_uint, |seen| {
    seen.whole()?;
    Ok(if seen.gpu.mig.is_some() { SLICES_MAX } else { 0 })
});
ask!(nvmlDeviceIsMigDeviceHandle, "mig", c_uint, |seen| Ok(
    c_uint::from(seen.slice.is_some())
));
ask!(
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle,
    "mig",
    nvmlDevice_t,
    |seen| match seen.slice {
        Some(_) => Ok(Handle {
            gpu: seen.handle.gpu,
            slice: None
        }
        .to_c()),
        None => Err(INVALID_ARGUMENT),
    }
);
ask!(nvmlDeviceGetGpuInstanceId, "mig", c_uint, |seen| {
    seen.slice.map(|slice| slice.gpu_instance).ok_or(NOT_SUPPORTED)
});
ask!(nvmlDeviceGetComputeInstanceId, "mig", c_uint, |seen| seen
    .slice
    .map(|_| 0)
    .ok_or(NOT_SUPPORTED));
ask!(
    nvmlDeviceGetAttributes_v2,
    "mig",
    nvmlDeviceAttributes_t,
    |seen| {
        let slice = seen.slice.ok_or(NOT_SUPPORTED)?;
        Ok(nvmlDeviceAttributes_t {
            multiprocessorCount: slice.multiprocessors,
            sharedCopyEngineCount: slice.compute_slices,
            sharedDecoderCount: slice.compute_slices / 2,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: slice.compute_slices,
            computeInstanceSliceCount: slice.compute_slices,
            memorySizeMB: slice.memory_bytes >> 20,
        })
    }
);

/// # Safety
/// As in nvml.h: both pointers point to an unsigned int.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    handle: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    device(handle, "mig", |seen| {
        seen.whole()?;
        let mode = c_uint::from(seen.gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?.enabled);
        // SAFETY: the caller's promise.
        unsafe {
            put(current, mode)?;
            put(pending, mode)
        }
    })
}

/// # Safety
/// As in nvml.h: `out` points to a device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    handle: nvmlDevice_t,
    index: c_uint,
    out: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    device(handle, "mig", |seen| {
        seen.whole()?;
        seen.gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        let place = usize::try_from(index).map_err(|_| INVALID_ARGUMENT)?;
        let granted = seen
            .gpu
            .slices()
            .get(place)
            .filter(|slice| live::sees_slice(&slice.uuid));
        granted.ok_or(NOT_FOUND)?;
        // SAFETY: the caller's promise.
        unsafe {
            put(
                out,
                Handle {
                    gpu: seen.handle.gpu,
                    slice: Some(place),
                }
                .to_c(),
            )
        }
    })
}
