//! Sessions with the kubelet. A kubelet that starts removes every plugin's socket and forgets registrations, so a
//! session ends when its socket changes, and the next one begins.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{oneshot, watch},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server};

use crate::{
    api::{self, device_plugin_server::DevicePluginServer, registration_client::RegistrationClient},
    devices::Device,
    plugin::{Mounts, Plugin},
};

const KUBELET_SOCKET: &str = "kubelet.sock";
const OWN_SOCKET: &str = "leasehold-gpu-sim.sock";
const POLL: Duration = Duration::from_millis(200);

/// Configuration of the plugin's sessions.
pub(crate) struct Session {
    /// The kubelet's directory of plugin sockets.
    pub(crate) sockets: PathBuf,
    pub(crate) resource: String,
    pub(crate) mounts: Mounts,
    pub(crate) devices: watch::Receiver<Vec<Device>>,
}

/// Identity of a kubelet's socket, which differs after a restart.
type Identity = (u64, u64, i64, i64);

impl Session {
    /// Serves until `stopping` is set.
    pub(crate) async fn run(&self, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut stop = std::pin::pin!(stopping.wait_for(|stop| *stop));
        loop {
            let met = tokio::select! {
                _ = &mut stop => return Ok(()),
                met = self.meet() => met,
            };
            if let Err(error) = met {
                eprintln!("gpu-plugin: {error:#}");
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Waits for a kubelet, serves it, and returns when it ended or forgot this plugin.
    async fn meet(&self) -> anyhow::Result<()> {
        let kubelet = self.sockets.join(KUBELET_SOCKET);
        let identity = wait_for(&kubelet).await;
        let own = self.sockets.join(OWN_SOCKET);
        let _server = self.serve(&own)?;
        self.register(&kubelet).await?;
        eprintln!(
            "gpu-plugin: {} registered with {}",
            self.resource,
            kubelet.display()
        );
        while identify(&kubelet) == Some(identity) && own.exists() {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Serves on the plugin's socket until the returned sender is dropped.
    fn serve(&self, own: &Path) -> anyhow::Result<oneshot::Sender<()>> {
        if own.exists() {
            fs::remove_file(own).with_context(|| format!("remove the old socket {}", own.display()))?;
        }
        let listener = UnixListener::bind(own).with_context(|| format!("listen on {}", own.display()))?;
        let plugin = Plugin {
            devices: self.devices.clone(),
            mounts: self.mounts.clone(),
        };
        let (alive, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let server = Server::builder()
                .add_service(DevicePluginServer::new(plugin))
                .serve_with_incoming(UnixListenerStream::new(listener));
            // Not a graceful shutdown, as ListAndWatch never ends by itself.
            tokio::select! {
                _ = ended => (),
                served = server => if let Err(error) = served {
                    eprintln!("gpu-plugin: the server ended: {error}");
                },
            }
        });
        Ok(alive)
    }

    async fn register(&self, kubelet: &Path) -> anyhow::Result<()> {
        let path = kubelet.to_owned();
        // The address is not used; the connector connects to the socket.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(5))
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .with_context(|| format!("connect to {}", kubelet.display()))?;
        let request = api::RegisterRequest {
            version: "v1beta1".to_owned(),
            endpoint: OWN_SOCKET.to_owned(),
            resource_name: self.resource.clone(),
            options: Some(api::DevicePluginOptions::default()),
        };
        RegistrationClient::new(channel)
            .register(request)
            .await
            .context("register with the kubelet")?;
        Ok(())
    }
}

async fn wait_for(socket: &Path) -> Identity {
    loop {
        if let Some(identity) = identify(socket) {
            return identity;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn identify(socket: &Path) -> Option<Identity> {
    let about = fs::metadata(socket).ok()?;
    Some((about.dev(), about.ino(), about.ctime(), about.ctime_nsec()))
}
