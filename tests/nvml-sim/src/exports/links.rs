//! NVLink: active links, and the GPUs that they connect.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlDevice_t, nvmlEnableState_t, nvmlGpuP2PCapsIndex_t, nvmlGpuP2PStatus_t, nvmlReturn_t};

use super::{Handle, INVALID_ARGUMENT, NOT_SUPPORTED, device, put, reachable};

/// Number of NVLink links of an H100.
const NVLINKS: c_uint = 18;

/// # Safety
/// As in nvml.h: `out` points to a state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    handle: nvmlDevice_t,
    link: c_uint,
    out: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    device(handle, "nvlink", |seen| {
        seen.whole()?;
        if !seen.gpu.nvlink {
            return Err(NOT_SUPPORTED);
        }
        if link >= NVLINKS {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: the caller's promise.
        unsafe { put(out, sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED) }
    })
}

/// # Safety
/// As in nvml.h: `out` points to a status.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetP2PStatus(
    handle: nvmlDevice_t,
    other: nvmlDevice_t,
    kind: nvmlGpuP2PCapsIndex_t,
    out: *mut nvmlGpuP2PStatus_t,
) -> nvmlReturn_t {
    device(handle, "p2p", |seen| {
        let other = seen
            .file
            .gpus
            .get(Handle::from_c(other)?.gpu)
            .ok_or(INVALID_ARGUMENT)?;
        reachable(other)?;
        let linked = match kind {
            sys::nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_NVLINK => seen.gpu.nvlink && other.nvlink,
            _ => true,
        };
        let status = if linked {
            sys::nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_OK
        } else {
            sys::nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_NOT_SUPPORTED
        };
        // SAFETY: the caller's promise.
        unsafe { put(out, status) }
    })
}
