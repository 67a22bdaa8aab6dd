//! `leasehold-agent` runs on each GPU node and reports what NVML, the PCI bus and the kubelet show about its GPUs:
//! slowly changing facts and health in the node's GpuNode, fast changing facts as Prometheus metrics. It renews a
//! Lease while it runs.
//!
//! `sources` reads, `health` decides, `publish` writes, and `observe` is the loop over them.

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

/// After this many periods without renewal, the agent's Lease counts as expired.
const LEASE_PERIODS: u32 = 4;
/// Time limit of one API call. An observation makes at most four.
const CALL: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let settings = Settings::try_from(settings::Flags::parse())?;
    let _telemetry = leasehold_telemetry::start(&settings.telemetry)?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("the TLS provider is already set"))?;
    // One thread: the agent is idle most of the time, and each further thread uses memory on every node.
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
    let own = AgentMetrics::register(&mut metrics, &settings.node, settings.gpu_series);
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
    let publisher = Publisher::new(
        &client,
        &settings.node,
        &settings.namespace,
        (settings.period, lease),
    );
    tracing::info!(node = settings.node, nvml = %settings.nvml.display(), "watching the GPUs of this node");
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
        None => Config::incluster().context("not running in a pod: set --kubeconfig")?,
    };
    config.connect_timeout = Some(CALL);
    config.read_timeout = Some(CALL);
    Client::try_from(config).context("create the API client")
}

/// JSON is valid YAML, but parsing it as JSON saves a megabyte of memory for the YAML parser.
fn kubeconfig(path: &Path) -> anyhow::Result<Kubeconfig> {
    let text = std::fs::read_to_string(path)?;
    match serde_json::from_str(&text) {
        Ok(kubeconfig) => Ok(kubeconfig),
        Err(_) => Ok(Kubeconfig::from_yaml(&text)?),
    }
}
