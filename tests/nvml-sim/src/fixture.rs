//! A directory with a simulated node: the file, the sysfs tree, the library and `nvidia-smi`.
//!
//! ```text
//! DIR/gpus.json            the GPUs; replaced by rename, so that a reader never sees a partial file
//! DIR/libnvidia-ml.so.1    the library, which finds gpus.json in its directory
//! DIR/nvidia-smi           the command line tool for workloads
//! DIR/sys/bus/pci/devices  the PCI bus
//! ```
//! Mount the whole directory: a bind mount of the file alone would keep showing the old file after a rename.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Fault, FaultError, GpuFile, Model, clock::unix_ms, models::MODELS, sysfs};

/// File name of the driver's library.
pub const LIBRARY_NAME: &str = "libnvidia-ml.so.1";
const BUILT_LIBRARY_NAME: &str = "libnvidia_ml_sim.so";
const COMMAND_NAME: &str = "nvml-sim";
const FILE_NAME: &str = "gpus.json";

/// A simulated node in a directory.
#[derive(Clone, Debug)]
pub struct Fixture {
    dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    #[error("no model {0:?}; there are {known}", known = MODELS.iter().map(|m| m.slug).collect::<Vec<_>>().join(", "))]
    NoModel(String),
    #[error("{0} GPUs on a node; at most 16 are simulated")]
    TooMany(usize),
    #[error("no GPU {index}; the node has {count}")]
    NoGpu { index: usize, count: usize },
    #[error("cannot read or write {path}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a GPU file", path = path.display())]
    Parse {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("no {BUILT_LIBRARY_NAME} near {path}; build it: cargo build -p leasehold-nvml-sim", path = path.display())]
    NoLibrary { path: PathBuf },
    #[error(transparent)]
    Fault(#[from] FaultError),
}

impl Fixture {
    /// Creates a node with `count` GPUs of one model, with the library in place.
    pub fn create(dir: &Path, node: &str, model: &str, count: usize) -> Result<Self, FixtureError> {
        let known = Model::find(model).ok_or_else(|| FixtureError::NoModel(model.to_owned()))?;
        let file = known
            .node(node, count, unix_ms())
            .ok_or(FixtureError::TooMany(count))?;
        Self::create_with(dir, &file)
    }

    /// Creates a node from a file, with the library in place.
    pub fn create_with(dir: &Path, file: &GpuFile) -> Result<Self, FixtureError> {
        fs::create_dir_all(dir).map_err(|e| io_at(dir, e))?;
        let fixture = Self { dir: dir.to_owned() };
        fixture.install()?;
        fixture.write(file)?;
        Ok(fixture)
    }

    /// Opens an existing node.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file behind the library.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// The directory that stands for `/sys`.
    #[must_use]
    pub fn sysfs(&self) -> PathBuf {
        self.dir.join("sys")
    }

    /// The library of this node. It finds the file in its own directory.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.dir.join(LIBRARY_NAME)
    }

    pub fn read(&self) -> Result<GpuFile, FixtureError> {
        let path = self.file();
        let text = fs::read(&path).map_err(|e| io_at(&path, e))?;
        serde_json::from_slice(&text).map_err(|source| FixtureError::Parse { path, source })
    }

    /// Changes the file under a lock, so that concurrent commands do not overwrite each other's changes.
    pub fn edit<T>(
        &self,
        change: impl FnOnce(&mut GpuFile) -> Result<T, FixtureError>,
    ) -> Result<T, FixtureError> {
        let path = self.dir.join(".lock");
        let lock = fs::File::create(&path).map_err(|e| io_at(&path, e))?;
        lock.lock().map_err(|e| io_at(&path, e))?;
        let mut file = self.read()?;
        let result = change(&mut file)?;
        self.write(&file)?;
        Ok(result)
    }

    /// Applies a fault to one GPU, or clears its faults.
    pub fn fault(&self, gpu: usize, fault: &Fault) -> Result<(), FixtureError> {
        self.edit(|file| {
            let count = file.gpus.len();
            let gpu = file
                .gpus
                .get_mut(gpu)
                .ok_or(FixtureError::NoGpu { index: gpu, count })?;
            Ok(gpu.apply(fault, unix_ms())?)
        })
    }

    fn write(&self, file: &GpuFile) -> Result<(), FixtureError> {
        let path = self.file();
        let mut text = serde_json::to_string_pretty(file).map_err(|source| FixtureError::Parse {
            path: path.clone(),
            source,
        })?;
        text.push('\n');
        // sysfs first: NVML must not report a GPU before the bus does.
        sysfs::write(&self.sysfs(), file).map_err(|e| io_at(&self.sysfs(), e))?;
        let draft = self.dir.join(".gpus.json.new");
        fs::write(&draft, text).map_err(|e| io_at(&draft, e))?;
        fs::rename(&draft, &path).map_err(|e| io_at(&path, e))
    }

    /// Copies the library, and the command line tool if it was built.
    fn install(&self) -> Result<(), FixtureError> {
        let built = built_library()?;
        replace(&built, &self.library())?;
        let near = up(&built);
        match [near.join(COMMAND_NAME), up(&near).join(COMMAND_NAME)]
            .into_iter()
            .find(|path| path.exists())
        {
            Some(command) => replace(&command, &self.dir.join("nvidia-smi")),
            None => Ok(()),
        }
    }
}

/// The library that cargo built: beside the running program, or beside the tests.
pub fn built_library() -> Result<PathBuf, FixtureError> {
    let program = std::env::current_exe().map_err(|e| io_at(Path::new("/proc/self/exe"), e))?;
    let near = up(&program);
    // `deps` first: building a test always updates the copy there, the other one only on request.
    [near.join("deps"), near.clone(), up(&near), up(&near).join("deps")]
        .iter()
        .map(|dir| dir.join(BUILT_LIBRARY_NAME))
        .find(|path| path.exists())
        .ok_or(FixtureError::NoLibrary { path: near })
}

fn up(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// Replaces by rename, as a library that a process has mapped must not be overwritten.
fn replace(from: &Path, to: &Path) -> Result<(), FixtureError> {
    let draft = to.with_extension("new");
    fs::copy(from, &draft).map_err(|e| io_at(from, e))?;
    fs::rename(&draft, to).map_err(|e| io_at(to, e))
}

fn io_at(path: &Path, source: io::Error) -> FixtureError {
    FixtureError::Io {
        path: path.to_owned(),
        source,
    }
}
