//! The current file. It is read again when its time, size or inode changed, which is checked with one `stat` per
//! call.

use std::{
    ffi::{CStr, OsStr},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED as DRIVER_NOT_LOADED,
    nvmlReturn_enum_NVML_ERROR_UNKNOWN as UNKNOWN, nvmlReturn_t,
};

use crate::file::{Gpu, GpuFile};

/// How often a blocked call checks the file.
const POLL: Duration = Duration::from_millis(10);

#[derive(PartialEq)]
struct Stamp {
    modified_s: i64,
    modified_ns: i64,
    size: u64,
    inode: u64,
}

struct Live {
    stamp: Stamp,
    file: Arc<GpuFile>,
}

static LIVE: Mutex<Option<Live>> = Mutex::new(None);

/// The current content of the file.
pub(crate) fn file() -> Result<Arc<GpuFile>, nvmlReturn_t> {
    let path = path();
    let about = fs::metadata(path).map_err(|_| DRIVER_NOT_LOADED)?;
    let stamp = Stamp {
        modified_s: about.mtime(),
        modified_ns: about.mtime_nsec(),
        size: about.size(),
        inode: about.ino(),
    };
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(live) = &*live
        && live.stamp == stamp
    {
        return Ok(Arc::clone(&live.file));
    }
    let text = fs::read(path).map_err(|_| DRIVER_NOT_LOADED)?;
    let file: Arc<GpuFile> = match serde_json::from_slice(&text) {
        Ok(file) => Arc::new(file),
        Err(error) => {
            eprintln!("nvml-sim: {} is not a GPU file: {error}", path.display());
            return Err(UNKNOWN);
        }
    };
    *live = Some(Live {
        stamp,
        file: Arc::clone(&file),
    });
    Ok(file)
}

/// Blocks while `hangs` holds for the current file, like a driver that waits for a dead GPU.
pub(crate) fn wait_while(hangs: impl Fn(&GpuFile) -> bool) -> Result<Arc<GpuFile>, nvmlReturn_t> {
    loop {
        let file = file()?;
        if !hangs(&file) {
            return Ok(file);
        }
        sleep(POLL);
    }
}

/// Polls the file until `found` returns something or the timeout has passed.
pub(crate) fn wait_for<T>(
    timeout: Duration,
    found: impl Fn(&GpuFile) -> Option<T>,
) -> Result<Option<T>, nvmlReturn_t> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(it) = found(&*file()?) {
            return Ok(Some(it));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        sleep(left.min(POLL));
    }
}

/// Not `park_timeout`: it gives the calling thread a thread-local of this library, whose destructor would run after
/// `dlclose` has unmapped it.
#[expect(clippy::disallowed_methods, reason = "polling a file, with a deadline")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// Whether a list of queries contains this one.
pub(crate) fn names(list: &[String], query: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == query)
}

/// The GPUs that this process may see, with their index in the file. A container sees those that were allocated to
/// it.
pub(crate) fn visible(file: &GpuFile) -> Vec<(usize, &Gpu)> {
    let granted = granted();
    file.gpus
        .iter()
        .enumerate()
        .filter(|(_, gpu)| !gpu.faults.unplugged)
        .filter(|(index, gpu)| match granted {
            None => true,
            Some(ids) => ids.iter().any(|id| {
                *id == gpu.uuid
                    || *id == gpu.reported_uuid()
                    || id.parse() == Ok(*index)
                    || gpu.slices().iter().any(|slice| slice.uuid == *id)
            }),
        })
        .collect()
}

/// Whether this process may see a slice: all of them, unless some were allocated by name.
pub(crate) fn sees_slice(uuid: &str) -> bool {
    granted()
        .is_none_or(|ids| !ids.iter().any(|id| id.starts_with("MIG-")) || ids.iter().any(|id| id == uuid))
}

/// The container toolkit's variable: unset or `all` means every GPU, `void` and `none` mean no GPU.
fn granted() -> Option<&'static [String]> {
    static GRANTED: OnceLock<Option<Vec<String>>> = OnceLock::new();
    GRANTED
        .get_or_init(|| match std::env::var("NVIDIA_VISIBLE_DEVICES").ok()?.as_str() {
            "all" => None,
            "" | "void" | "none" => Some(Vec::new()),
            ids => Some(ids.split(',').map(str::to_owned).collect()),
        })
        .as_deref()
}

/// `NVML_SIM_FILE`, or else `gpus.json` in the library's directory, or else `/etc/nvml-sim/gpus.json`.
fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(named) = std::env::var_os("NVML_SIM_FILE") {
            return named.into();
        }
        own_path()
            .map(|library| library.with_file_name("gpus.json"))
            .filter(|beside| beside.exists())
            .unwrap_or_else(|| "/etc/nvml-sim/gpus.json".into())
    })
}

/// The path of this library.
#[expect(unsafe_code, reason = "only dladdr returns a library's own path")]
fn own_path() -> Option<PathBuf> {
    let mut about = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is one of this library's own functions and `about` has room for the answer. dladdr fills
    // it in when it returns non-zero, and the name that it points to lives as long as the library is loaded.
    unsafe {
        let address = own_path as fn() -> Option<PathBuf> as *const libc::c_void;
        if libc::dladdr(address, about.as_mut_ptr()) == 0 {
            return None;
        }
        let name = about.assume_init().dli_fname;
        (!name.is_null()).then(|| OsStr::from_bytes(CStr::from_ptr(name).to_bytes()).into())
    }
}
