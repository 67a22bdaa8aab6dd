//! `leasehold-agent`: one on each GPU node. It says what NVML, the PCI bus and the kubelet say of the node's GPUs:
//! slow facts and health in the node's GpuNode, fast facts as Prometheus metrics, its own life in a Lease.
//!
//! `facts` is what a reading says; `nvml`, `sysfs`, `pod_resources` and `processes` are the witnesses; `checks` and
//! `health` judge, `status` words the judgement, `publish` writes it; `observe` is the loop over all of them.

mod clock;
mod gpu_class;
mod health;
mod metrics;
mod observe;
mod publish;
mod settings;
mod sources;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use clap::Parser;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use leasehold_telemetry::{Health, Metrics, admin, shutdown};

use crate::{metrics::AgentMetrics, observe::Agent, publish::Publisher, settings::Settings};

/// A Lease that was not renewed for so many periods is no sign of life.
const LEASE_PERIODS: u32 = 4;
/// For one API call; a pass makes at most four.
const CALL: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let settings = Settings::try_from(settings::Flags::parse())?;
    let _telemetry = leasehold_telemetry::start(&settings.telemetry)?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("the TLS provider was set before"))?;
    // One thread: the agent waits nearly always, and each thread more is memory on every node.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(run(settings))
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let stop = shutdown::on_signals()?;
    let client = client(&settings).await?;
    let mut metrics = Metrics::new();
    let own = AgentMetrics::register(&mut metrics, &settings.node);
    let health = Health::new();
    let ready = health.latch("status");
    let longest = settings.period + settings.deadline + 4 * CALL;
    let heartbeat = health.heartbeat("observe", 2 * longest);
    let server = admin::serve(
        settings.telemetry.admin_address,
        Arc::new(metrics),
        health,
        stop.clone(),
    )
    .await?;
    let lease = (settings.period * LEASE_PERIODS).max(Duration::from_secs(5));
    let publisher = Publisher::new(&client, &settings.node, &settings.namespace, lease);
    tracing::info!(node = settings.node, nvml = %settings.nvml.display(), "watches the GPUs of this node");
    Agent::new(settings, publisher, own, ready)
        .run(heartbeat, stop)
        .await;
    server.stop().await;
    Ok(())
}

async fn client(settings: &Settings) -> anyhow::Result<Client> {
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let kubeconfig =
                kubeconfig(path).with_context(|| format!("read --kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("use --kubeconfig {}", path.display()))?
        }
        None => Config::incluster().context("this is no pod of a cluster: name a --kubeconfig")?,
    };
    config.connect_timeout = Some(CALL);
    config.read_timeout = Some(CALL);
    Client::try_from(config).context("make the API client")
}

/// JSON is YAML too, and to read it as what it is spares a megabyte of YAML parser in the process's memory.
fn kubeconfig(path: &Path) -> anyhow::Result<Kubeconfig> {
    let text = std::fs::read_to_string(path)?;
    match serde_json::from_str(&text) {
        Ok(kubeconfig) => Ok(kubeconfig),
        Err(_) => Ok(Kubeconfig::from_yaml(&text)?),
    }
}
