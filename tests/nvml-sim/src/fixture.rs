//! One directory that holds a simulated node: the file, the sysfs tree, the library and a `nvidia-smi`.
//!
//! ```text
//! DIR/gpus.json            what there is, replaced by rename, so a reader never sees half of it
//! DIR/libnvidia-ml.so.1    the library; it finds gpus.json beside itself
//! DIR/nvidia-smi           the command line as a workload knows it
//! DIR/sys/bus/pci/devices  the PCI witness
//! ```
//! The directory is mounted whole: a bind mount of the file alone would keep showing the file of the first rename.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Fault, FaultError, GpuFile, Model, clock::unix_ms, models::MODELS, sysfs};

/// What the driver's library is called.
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
    #[error("{path} can't be read or written", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is no GPU file", path = path.display())]
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
    /// Makes a node with `count` GPUs of one model, with the library in place.
    pub fn create(dir: &Path, node: &str, model: &str, count: usize) -> Result<Self, FixtureError> {
        let known = Model::find(model).ok_or_else(|| FixtureError::NoModel(model.to_owned()))?;
        let file = known
            .node(node, count, unix_ms())
            .ok_or(FixtureError::TooMany(count))?;
        Self::create_with(dir, &file)
    }

    /// Makes a node of any description, with the library in place.
    pub fn create_with(dir: &Path, file: &GpuFile) -> Result<Self, FixtureError> {
        fs::create_dir_all(dir).map_err(|e| io_at(dir, e))?;
        let fixture = Self { dir: dir.to_owned() };
        fixture.install()?;
        fixture.write(file)?;
        Ok(fixture)
    }

    /// A node that was made before.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that drives the library.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// What stands for `/sys`.
    #[must_use]
    pub fn sysfs(&self) -> PathBuf {
        self.dir.join("sys")
    }

    /// The library of this node. It finds the file beside itself.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.dir.join(LIBRARY_NAME)
    }

    pub fn read(&self) -> Result<GpuFile, FixtureError> {
        let path = self.file();
        let text = fs::read(&path).map_err(|e| io_at(&path, e))?;
        serde_json::from_slice(&text).map_err(|source| FixtureError::Parse { path, source })
    }

    /// Changes the file under a lock, so that two commands don't lose each other's faults.
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

    /// Breaks one GPU, or clears it.
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
        // sysfs first: a GPU must not be told by NVML before the bus has it.
        sysfs::write(&self.sysfs(), file).map_err(|e| io_at(&self.sysfs(), e))?;
        let draft = self.dir.join(".gpus.json.new");
        fs::write(&draft, text).map_err(|e| io_at(&draft, e))?;
        fs::rename(&draft, &path).map_err(|e| io_at(&path, e))
    }

    /// Copies the library, and the command line where it was built too.
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

/// The library as cargo left it: beside the running program, or beside the tests.
pub fn built_library() -> Result<PathBuf, FixtureError> {
    let program = std::env::current_exe().map_err(|e| io_at(Path::new("/proc/self/exe"), e))?;
    let near = up(&program);
    // `deps` first: a test's build always refreshes the copy there, the one above it only when asked for.
    [near.join("deps"), near.clone(), up(&near), up(&near).join("deps")]
        .iter()
        .map(|dir| dir.join(BUILT_LIBRARY_NAME))
        .find(|path| path.exists())
        .ok_or(FixtureError::NoLibrary { path: near })
}

fn up(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// By rename: a library that some process has mapped must not be written over.
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
