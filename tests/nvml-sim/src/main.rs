//! `nvml-sim`: creates a simulated node, applies faults to its GPUs, and prints what the simulated driver reports.
//!
//! When called as `nvidia-smi` (the device plugin mounts it into workloads under that name) it prints the table.

mod smi;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use nvidia_ml_sim::{Fault, Fixture, LIBRARY_NAME, MODELS, built_library};

#[derive(Parser)]
#[command(
    name = "nvml-sim",
    about = "A simulated NVIDIA driver: fixtures, faults and the library's output"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write gpus.json, the library, nvidia-smi and the sysfs tree of a node into a directory.
    Init {
        /// Directory to write; created if missing.
        #[arg(long)]
        dir: PathBuf,
        /// Name of the node; the UUIDs are derived from it.
        #[arg(long)]
        node: String,
        /// One of the names that `nvml-sim models` lists.
        #[arg(long, default_value = "h100-80g-sxm")]
        model: String,
        /// Number of GPUs, 0 to 16.
        #[arg(long, default_value_t = 1)]
        gpus: usize,
    },
    /// Apply faults to GPUs, or clear them. They take effect with the next call of any process.
    Fault {
        dir: PathBuf,
        /// Index in gpus.json. Without it, `hang[=QUERY]` and `clear` apply to the whole library, others to every
        /// GPU.
        #[arg(long)]
        gpu: Option<usize>,
        /// lost, unplug, withhold, hang[=QUERY], unsupported=QUERY, name=TEXT, uuid=TEXT, bus=ADDRESS, ecc[=N],
        /// xid=N, busy=PID[:BYTES], idle, clear; several are applied in order.
        #[arg(required = true)]
        faults: Vec<Fault>,
    },
    /// Print what the library reports, as a table.
    Smi {
        /// Directory of a node, whose library is loaded.
        dir: Option<PathBuf>,
        /// Load this library instead.
        #[arg(long)]
        library: Option<PathBuf>,
        /// Print one line per GPU: index, uuid and name, like `nvidia-smi -L`.
        #[arg(short = 'L', long)]
        list: bool,
    },
    /// List the models.
    Models,
}

fn main() -> anyhow::Result<()> {
    if called_as_smi() {
        return smi::print(&default_library(), std::env::args().any(|arg| arg == "-L"));
    }
    match Args::parse().command {
        Command::Init {
            dir,
            node,
            model,
            gpus,
        } => {
            let fixture = Fixture::create(&dir, &node, &model, gpus)?;
            println!("{}", fixture.file().display());
            Ok(())
        }
        Command::Fault { dir, gpu, faults } => {
            let fixture = Fixture::open(&dir);
            faults.iter().try_for_each(|fault| apply(&fixture, gpu, fault))
        }
        Command::Smi { dir, library, list } => {
            let library = library
                .or_else(|| Some(Fixture::open(&dir?).library()))
                .unwrap_or_else(default_library);
            smi::print(&library, list)
        }
        Command::Models => {
            for model in MODELS {
                println!("{:<20} {}", model.slug, model.name);
            }
            Ok(())
        }
    }
}

fn apply(fixture: &Fixture, gpu: Option<usize>, fault: &Fault) -> anyhow::Result<()> {
    match (gpu, fault) {
        (Some(gpu), fault) => fixture.fault(gpu, fault)?,
        (None, Fault::Hang(query)) => fixture.edit(|file| {
            file.hang.push(query.clone());
            Ok(())
        })?,
        (None, fault) => {
            if *fault == Fault::Clear {
                fixture.edit(|file| {
                    file.hang.clear();
                    Ok(())
                })?;
            }
            for gpu in 0..fixture
                .read()
                .context("there is no node; create one with nvml-sim init")?
                .gpus
                .len()
            {
                fixture.fault(gpu, fault)?;
            }
        }
    }
    Ok(())
}

fn called_as_smi() -> bool {
    std::env::args_os().next().is_some_and(|name| {
        PathBuf::from(name)
            .file_name()
            .is_some_and(|name| name == "nvidia-smi")
    })
}

/// `NVML_SIM_LIBRARY`, or else the one beside this program, one that cargo built, or one that the loader finds.
fn default_library() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name(LIBRARY_NAME));
    std::env::var_os("NVML_SIM_LIBRARY")
        .map(PathBuf::from)
        .or_else(|| beside.filter(|path| path.exists()))
        .or_else(|| built_library().ok())
        .unwrap_or_else(|| LIBRARY_NAME.into())
}
