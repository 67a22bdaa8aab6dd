//! A simulated NVIDIA driver library: every NVML symbol that the agent calls, answered from a JSON file.
//!
//! Built as `libnvidia_ml_sim.so`, it is loaded like `libnvidia-ml.so.1`. So tests use the same agent that is
//! shipped: it has no test mode, only a path to a library. The file is read again whenever it changes, which is how a
//! test applies faults to a GPU under a running workload.
//!
//! The rlib of the same crate contains the file's types, the models, the faults and the matching sysfs tree.
//! [`Fixture`] puts them together in one directory.

mod clock;
mod exports;
mod fault;
mod file;
mod fixture;
mod live;
mod models;
mod sysfs;

pub use fault::{Fault, FaultError};
pub use file::{
    BadValue, Clocks, Ecc, Energy, Event, Faults, Gpu, GpuFile, Mig, MigSlice, Process, Throttle, Utilization,
};
pub use fixture::{Fixture, FixtureError, LIBRARY_NAME, built_library};
pub use models::{MODELS, Model};
