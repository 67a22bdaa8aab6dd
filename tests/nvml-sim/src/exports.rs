//! The C ABI: the symbols that the agent calls through nvml-wrapper, with NVML's signatures and return codes.
//!
//! Every function is a few lines on top of [`device`] or [`library`], which handle what all have in common:
//! initialisation, hanging, lost and unsupported. A MIG slice answers like a real one: it has its own memory and
//! name, but no power and temperature.
#![allow(
    unsafe_code,
    reason = "a C ABI takes raw pointers; each is checked for null before it is written"
)]
#![allow(non_upper_case_globals, reason = "NVML's own names")]

/// One symbol that writes one value.
macro_rules! ask {
    ($symbol:ident, $query:literal, $kind:ty, |$seen:ident| $value:expr) => {
        /// # Safety
        /// As in nvml.h: `out` points to a value of its type.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(
            handle: nvml_wrapper_sys::bindings::nvmlDevice_t,
            out: *mut $kind,
        ) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            super::device(handle, $query, |$seen| {
                let value: Result<$kind, nvml_wrapper_sys::bindings::nvmlReturn_t> = $value;
                // SAFETY: the caller's promise.
                unsafe { super::put(out, value?) }
            })
        }
    };
}

/// One symbol that writes a text.
macro_rules! ask_text {
    ($symbol:ident, $query:literal, |$seen:ident| $value:expr) => {
        /// # Safety
        /// As in nvml.h: `out` has room for `length` bytes.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(
            handle: nvml_wrapper_sys::bindings::nvmlDevice_t,
            out: *mut c_char,
            length: c_uint,
        ) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            super::device(handle, $query, |$seen| {
                let value: Result<String, nvml_wrapper_sys::bindings::nvmlReturn_t> = $value;
                // SAFETY: the caller's promise.
                unsafe { super::put_text(out, length, &value?) }
            })
        }
    };
}

mod device;
mod events;
mod links;
mod mig;
mod processes;
mod system;

use std::{
    ffi::{CStr, c_char, c_uint},
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlDevice_t, nvmlReturn_t};

use crate::{
    file::{Gpu, GpuFile, MigSlice},
    live,
};

const SUCCESS: nvmlReturn_t = sys::nvmlReturn_enum_NVML_SUCCESS;
const UNINITIALIZED: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;
const INVALID_ARGUMENT: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const NOT_SUPPORTED: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
const NOT_FOUND: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
const INSUFFICIENT_SIZE: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
const TIMEOUT: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT;
const GPU_IS_LOST: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;
const UNKNOWN: nvmlReturn_t = sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN;

type Answer = Result<(), nvmlReturn_t>;

/// `nvmlInit` less `nvmlShutdown`.
static USERS: AtomicUsize = AtomicUsize::new(0);

/// A device as C holds it: a number that is never a valid pointer, made of the GPU's place in the file and, for a
/// slice, one more than its place on the GPU. It stays good however the file changes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Handle {
    gpu: usize,
    slice: Option<usize>,
}

const HANDLE_MARK: usize = 0x0001_0000;

impl Handle {
    fn to_c(self) -> nvmlDevice_t {
        let slice = self.slice.map_or(0, |slice| slice + 1);
        ptr::without_provenance_mut(HANDLE_MARK | self.gpu << 8 | slice)
    }

    fn from_c(device: nvmlDevice_t) -> Result<Self, nvmlReturn_t> {
        let number = device.addr();
        if number & !0xffff != HANDLE_MARK {
            return Err(INVALID_ARGUMENT);
        }
        Ok(Self {
            gpu: number >> 8 & 0xff,
            slice: (number & 0xff).checked_sub(1),
        })
    }
}

/// What a call on a device gets to see.
struct Seen<'a> {
    file: &'a GpuFile,
    handle: Handle,
    gpu: &'a Gpu,
    slice: Option<&'a MigSlice>,
}

impl Seen<'_> {
    /// Refuses a query that NVML answers for whole GPUs only.
    fn whole(&self) -> Answer {
        if self.slice.is_some() {
            Err(NOT_SUPPORTED)
        } else {
            Ok(())
        }
    }
}

/// A call that concerns the library, not a device.
fn library(query: &str, act: impl FnOnce(&GpuFile) -> Answer) -> nvmlReturn_t {
    code((|| {
        initialised()?;
        let file = live::wait_while(|file| live::names(&file.hang, query))?;
        if live::names(&file.unsupported, query) {
            return Err(NOT_SUPPORTED);
        }
        act(&file)
    })())
}

/// A call on a device handle.
fn device(device: nvmlDevice_t, query: &str, act: impl FnOnce(Seen<'_>) -> Answer) -> nvmlReturn_t {
    code((|| {
        initialised()?;
        let handle = Handle::from_c(device)?;
        let file = live::wait_while(|file| {
            let gpu_hangs = file
                .gpus
                .get(handle.gpu)
                .is_some_and(|gpu| live::names(&gpu.faults.hang, query));
            gpu_hangs || live::names(&file.hang, query)
        })?;
        let gpu = file.gpus.get(handle.gpu).ok_or(INVALID_ARGUMENT)?;
        reachable(gpu)?;
        if live::names(&gpu.faults.unsupported, query) {
            return Err(NOT_SUPPORTED);
        }
        let slice = match handle.slice {
            Some(index) => Some(gpu.slices().get(index).ok_or(INVALID_ARGUMENT)?),
            None => None,
        };
        act(Seen {
            file: &file,
            handle,
            gpu,
            slice,
        })
    })())
}

fn initialised() -> Answer {
    if USERS.load(Ordering::Acquire) == 0 {
        Err(UNINITIALIZED)
    } else {
        Ok(())
    }
}

fn reachable(gpu: &Gpu) -> Answer {
    if gpu.faults.lost || gpu.faults.unplugged {
        Err(GPU_IS_LOST)
    } else {
        Ok(())
    }
}

fn code(answer: Answer) -> nvmlReturn_t {
    match answer {
        Ok(()) => SUCCESS,
        Err(code) => code,
    }
}

/// Writes a value where C asked for it.
///
/// # Safety
/// `out` is null or has room for a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Answer {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller vouches for the room.
    unsafe { out.write(value) };
    Ok(())
}

/// Writes a text with its NUL, or tells that the buffer is too small.
///
/// # Safety
/// `out` is null or has room for `length` bytes.
unsafe fn put_text(out: *mut c_char, length: c_uint, text: &str) -> Answer {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    let length = usize::try_from(length).map_err(|_| INVALID_ARGUMENT)?;
    if text.len() >= length {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: not null; text and NUL fit the room that the caller vouches for.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), out, text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// A C string of the caller's.
///
/// # Safety
/// `text` is null or ends in a NUL.
unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, nvmlReturn_t> {
    if text.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller vouches for the NUL.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| INVALID_ARGUMENT)
}

/// A count as C holds it.
fn small(number: usize) -> Result<c_uint, nvmlReturn_t> {
    c_uint::try_from(number).map_err(|_| UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_survive_the_conversion_to_c() {
        for handle in [
            Handle { gpu: 0, slice: None },
            Handle {
                gpu: 15,
                slice: Some(6),
            },
        ] {
            assert_eq!(Handle::from_c(handle.to_c()), Ok(handle));
        }
        assert_eq!(Handle::from_c(ptr::null_mut()), Err(INVALID_ARGUMENT));
    }
}
