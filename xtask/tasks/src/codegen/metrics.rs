//! docs/operate/metrics.md: what each binary exports, read off its own registry; and the dashboard, which may show
//! nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use leasehold_telemetry::Metrics;
use leasehold_telemetry::metrics::{Operator, Role, reference};

use super::Generated;

const DASHBOARD: &str = "charts/leasehold/files/dashboard.json";

/// A cluster that answers nothing: the agent's metrics are the same without one.
const NOWHERE: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "none",
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "none", "user": {}}]}"#;

pub(super) fn reference(agent: &Path) -> Result<Generated> {
    let (market, provider) = (operator(Role::Market)?, operator(Role::Provider)?);
    let agent = reference::table(&scrape(agent).context("ask the agent for its metrics")?);
    let text = format!(
        "# Metrics\n\n\
         Written by `cargo xtask codegen` from what the binaries register.\n\n\
         Each binary serves them at `/metrics` of its `--admin-address`, beside `/healthz` and `/readyz`. Labels have \
         the values listed here and no others, and every series is there from the start. The chart's value \
         `metrics.serviceMonitor.enabled` lets Prometheus Operator find them, `metrics.dashboard.enabled` brings a Grafana \
         dashboard.\n\n\
         ## Operator, role market\n\n{market}\n\
         ## Operator, role provider\n\n{provider}\n\
         ## Agent\n\n\
         `DCGM_*` have the names and labels of NVIDIA's dcgm-exporter (`gpu`, `UUID`, `pci_bus_id`, `device`, `modelName`, \
         `Hostname`), one series a GPU, so that its dashboards work.\n\n{agent}"
    );
    check_dashboard(&text)?;
    Ok(Generated {
        path: "docs/operate/metrics.md".to_owned(),
        text,
    })
}

fn operator(role: Role) -> Result<String> {
    let mut metrics = Metrics::new();
    drop(Operator::register(&mut metrics, role));
    reference::markdown(&metrics)
}

/// What the agent itself answers at `/metrics` on a machine without GPUs.
fn scrape(agent: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, NOWHERE)?;
    let mut child = Command::new(agent)
        .args([
            "--node-name=none",
            "--nvml=/nowhere",
            "--pod-resources=",
            "--admin-address=127.0.0.1:0",
        ])
        .args(["--log-format=json", "--log-filter=info"])
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let answer = address(&mut child).and_then(|address| get(&address, "/metrics"));
    child.kill()?;
    child.wait()?;
    answer
}

/// Where it says it listens. It ends of itself where it can't, and then so does its log.
fn address(child: &mut Child) -> Result<String> {
    let log = child.stderr.take().context("the agent has no log")?;
    let mut seen = String::new();
    for line in BufReader::new(log).lines() {
        let line = line?;
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(address) = entry["address"].as_str() {
            return Ok(address.to_owned());
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    anyhow::bail!("it never listened:\n{seen}")
}

fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    Ok(body.to_owned())
}

/// A panel over a metric that nobody exports stays empty for ever and looks like peace.
fn check_dashboard(reference: &str) -> Result<()> {
    let dashboard =
        fs::read_to_string(leasehold_testtools::root().join(DASHBOARD)).context("read the dashboard")?;
    let missing: BTreeSet<&str> = dashboard
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("leasehold_") || word.starts_with("DCGM_"))
        .map(|word| word.trim_end_matches("_bucket"))
        .filter(|name| !reference.contains(&format!("`{name}`")))
        .collect();
    ensure!(
        missing.is_empty(),
        "{DASHBOARD} shows metrics that nobody exports: {missing:?}"
    );
    Ok(())
}
