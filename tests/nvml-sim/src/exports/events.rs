//! The event set API, which delivers Xid errors.
//!
//! A set receives events that happen after the registration of a GPU, once each. A wait respects its timeout.

use std::{
    collections::BTreeMap,
    ffi::{c_uint, c_ulonglong},
    ptr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlEventTypeClock, nvmlEventTypeDoubleBitEccError,
    nvmlEventTypePState, nvmlEventTypeSingleBitEccError, nvmlEventTypeXidCriticalError, nvmlReturn_t,
};

use super::{Answer, Handle, INVALID_ARGUMENT, TIMEOUT, code, device, initialised, library, put};
use crate::live;

/// Sequence number of the last delivered event of each GPU.
type Delivered = BTreeMap<usize, u64>;

struct Sets {
    next: usize,
    open: BTreeMap<usize, Delivered>,
}

static SETS: Mutex<Sets> = Mutex::new(Sets {
    next: 1,
    open: BTreeMap::new(),
});

const NO_INSTANCE: c_uint = c_uint::MAX;

fn with_sets<T>(act: impl FnOnce(&mut Sets) -> T) -> T {
    act(&mut SETS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// # Safety
/// As in nvml.h: `out` points to a set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(out: *mut nvmlEventSet_t) -> nvmlReturn_t {
    library("events", |_| {
        let id = with_sets(|sets| {
            let id = sets.next;
            sets.next += 1;
            sets.open.insert(id, Delivered::new());
            id
        });
        // SAFETY: the caller's promise.
        unsafe { put(out, ptr::without_provenance_mut(id)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    code(
        with_sets(|sets| sets.open.remove(&set.addr()))
            .map(|_| ())
            .ok_or(INVALID_ARGUMENT),
    )
}

/// # Safety
/// As in nvml.h: `out` points to an unsigned long long.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    gpu: nvmlDevice_t,
    out: *mut c_ulonglong,
) -> nvmlReturn_t {
    device(gpu, "events", |seen| {
        seen.whole()?;
        let ecc = match seen.gpu.ecc {
            Some(ecc) if ecc.enabled => nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError,
            _ => 0,
        };
        let types = nvmlEventTypeXidCriticalError | nvmlEventTypePState | nvmlEventTypeClock | ecc;
        // SAFETY: the caller's promise.
        unsafe { put(out, c_ulonglong::from(types)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    gpu: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    device(gpu, "events", |seen| {
        seen.whole()?;
        with_sets(|sets| {
            let delivered = sets.open.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?;
            // The other kinds of events never occur, so there is nothing to store for them.
            if types & c_ulonglong::from(nvmlEventTypeXidCriticalError) != 0 {
                delivered.insert(seen.handle.gpu, seen.gpu.next_event.saturating_sub(1));
            }
            Ok(())
        })
    })
}

/// # Safety
/// As in nvml.h: `out` points to an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    out: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    code((|| {
        initialised()?;
        live::wait_while(|file| live::names(&file.hang, "events"))?;
        let event = next_event(set.addr(), Duration::from_millis(u64::from(timeout_ms)))?;
        // SAFETY: the caller's promise.
        unsafe { put(out, event) }
    })())
}

fn next_event(set: usize, timeout: Duration) -> Result<nvmlEventData_t, nvmlReturn_t> {
    let delivered = with_sets(|sets| sets.open.get(&set).cloned()).ok_or(INVALID_ARGUMENT)?;
    let found = live::wait_for(timeout, |file| {
        delivered.iter().find_map(|(gpu, last)| {
            file.gpus
                .get(*gpu)?
                .events
                .iter()
                .find(|event| event.seq > *last)
                .map(|event| (*gpu, *event))
        })
    })?;
    let (gpu, event) = found.ok_or(TIMEOUT)?;
    remember(set, gpu, event.seq)?;
    Ok(nvmlEventData_t {
        device: Handle { gpu, slice: None }.to_c(),
        eventType: c_ulonglong::from(nvmlEventTypeXidCriticalError),
        eventData: event.xid,
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    })
}

fn remember(set: usize, gpu: usize, seq: u64) -> Answer {
    with_sets(|sets| {
        sets.open.get_mut(&set).ok_or(INVALID_ARGUMENT)?.insert(gpu, seq);
        Ok(())
    })
}
