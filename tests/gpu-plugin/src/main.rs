//! A Kubernetes device plugin for simulated GPUs, so that scheduling, allocation and the pod-resources API are those
//! of the kubelet. It advertises the GPUs in the file of `nvml-sim`, as NVIDIA's plugin advertises real cards.

mod devices;
mod file;
mod plugin;
mod session;

/// The kubelet's device plugin API, generated.
mod api {
    #![allow(clippy::all, unreachable_pub, reason = "generated")]
    tonic::include_proto!("v1beta1");
}

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A device plugin for simulated GPUs.
#[derive(Parser)]
#[command(name = "gpu-plugin")]
struct Args {
    /// The kubelet's directory; its socket is device-plugins/kubelet.sock below it.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// The file of the simulated GPUs. Its whole directory is mounted into containers, read-only.
    #[arg(long)]
    gpus: PathBuf,
    /// The library to mount into containers; the one beside the file if not given.
    #[arg(long)]
    library: Option<PathBuf>,
    /// The extended resource to advertise.
    #[arg(long, default_value = "nvidia.com/gpu")]
    resource: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let gpus = std::path::absolute(&args.gpus).context("resolve the path of --gpus")?;
    let mounts = plugin::Mounts::of(&gpus, args.library.as_deref())?;
    let session = session::Session {
        sockets: args.kubelet_dir.join("device-plugins"),
        resource: args.resource,
        mounts,
        devices: file::follow(gpus)?,
    };
    let (stop, stopping) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        stop.send_replace(true);
    });
    session.run(stopping).await
}
