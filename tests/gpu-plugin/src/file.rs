//! Watches the GPU file, so that a fault reaches the kubelet as soon as it is written.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use nvidia_ml_sim::GpuFile;
use tokio::sync::watch;

use crate::devices::{Device, advertised};

const POLL: Duration = Duration::from_millis(100);

/// The current devices, and every change. If the file cannot be read, the devices stay unchanged.
pub(crate) fn follow(path: PathBuf) -> anyhow::Result<watch::Receiver<Vec<Device>>> {
    let (now, devices) = watch::channel(read(&path)?);
    tokio::spawn(async move {
        let mut complained = false;
        loop {
            tokio::time::sleep(POLL).await;
            match read(&path) {
                Ok(read) => {
                    complained = false;
                    now.send_if_modified(|devices| {
                        let changed = *devices != read;
                        if changed {
                            eprintln!(
                                "gpu-plugin: {} devices, {} healthy",
                                read.len(),
                                read.iter().filter(|d| d.healthy).count()
                            );
                            *devices = read;
                        }
                        changed
                    });
                }
                Err(error) if !complained => {
                    complained = true;
                    eprintln!("gpu-plugin: {error:#}");
                }
                Err(_) => (),
            }
            if now.is_closed() {
                return;
            }
        }
    });
    Ok(devices)
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<Device>> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let file: GpuFile =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a GPU file", path.display()))?;
    Ok(advertised(&file))
}
