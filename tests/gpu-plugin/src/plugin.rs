//! The device plugin service: the list of devices, and what a container needs for the devices it gets.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    pin::Pin,
};

use anyhow::Context;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use crate::{
    api::{self, device_plugin_server::DevicePlugin},
    devices::Device,
};

/// Paths in a container, the same as those of the container toolkit.
const FILES_IN_CONTAINER: &str = "/etc/nvml-sim";
const LIBRARY_IN_CONTAINER: &str = "/usr/lib/libnvidia-ml.so.1";
const SMI_IN_CONTAINER: &str = "/usr/bin/nvidia-smi";

/// A file beside that of the GPUs that containers get in place of the device files of a driver, if it exists. It is mounted: runc
/// gives containers in user namespaces no device under another path than on the node.
const DEVICE: &str = "device";

/// What is mounted into each container with a GPU.
#[derive(Clone, Debug)]
pub(crate) struct Mounts {
    dir: PathBuf,
    library: PathBuf,
}

impl Mounts {
    /// The directory of the file (not the file alone, as it is replaced by rename), the library and `nvidia-smi`.
    pub(crate) fn of(gpus: &Path, library: Option<&Path>) -> anyhow::Result<Self> {
        let dir = gpus
            .parent()
            .context("--gpus is not the path of a file")?
            .to_owned();
        let library = match library {
            Some(path) => std::path::absolute(path).context("resolve the path of --library")?,
            None => dir.join(nvidia_ml_sim::LIBRARY_NAME),
        };
        Ok(Self { dir, library })
    }

    /// The mounts whose source exists.
    fn present(&self) -> Vec<api::Mount> {
        let mounts = [
            (self.dir.clone(), FILES_IN_CONTAINER),
            (self.library.clone(), LIBRARY_IN_CONTAINER),
            (self.dir.join("nvidia-smi"), SMI_IN_CONTAINER),
        ];
        let there = mounts.into_iter().filter(|(host, _)| host.exists());
        there
            .map(|(host, container)| api::Mount {
                container_path: container.to_owned(),
                host_path: host.display().to_string(),
                read_only: true,
            })
            .collect()
    }

    /// Mounts in place of the device files of a driver, for a number of GPUs.
    fn device_files(&self, gpus: usize) -> Vec<api::Mount> {
        let device = self.dir.join(DEVICE);
        if !device.exists() {
            return Vec::new();
        }
        let names = (0..gpus).map(|n| format!("nvidia{n}"));
        names
            .chain(["nvidiactl".to_owned()])
            .map(|name| api::Mount {
                container_path: format!("/dev/{name}"),
                host_path: device.display().to_string(),
                read_only: false,
            })
            .collect()
    }
}

/// The device plugin.
pub(crate) struct Plugin {
    pub(crate) devices: watch::Receiver<Vec<Device>>,
    pub(crate) mounts: Mounts,
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(api::DevicePluginOptions::default()))
    }

    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.devices.clone()).map(|devices| {
            Ok(api::ListAndWatchResponse {
                devices: devices.into_iter().map(Into::into).collect(),
            })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let known = self.devices.borrow().clone();
        let grant = |container: api::ContainerAllocateRequest| {
            let unhealthy = container
                .devices_ids
                .iter()
                .find(|id| !known.iter().any(|d| d.healthy && d.id == **id));
            if let Some(id) = unhealthy {
                return Err(Status::failed_precondition(format!(
                    "{id} does not exist or is not healthy"
                )));
            }
            let mut mounts = self.mounts.present();
            mounts.extend(self.mounts.device_files(container.devices_ids.len()));
            Ok(api::ContainerAllocateResponse {
                envs: HashMap::from([(
                    "NVIDIA_VISIBLE_DEVICES".to_owned(),
                    container.devices_ids.join(","),
                )]),
                mounts,
                ..Default::default()
            })
        };
        let container_responses = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(grant)
            .collect::<Result<_, _>>()?;
        Ok(Response::new(api::AllocateResponse { container_responses }))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented(
            "the plugin announced that it has no preferred allocation",
        ))
    }

    async fn pre_start_container(
        &self,
        _: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        Err(Status::unimplemented(
            "the plugin announced that it needs no call before the start",
        ))
    }
}
