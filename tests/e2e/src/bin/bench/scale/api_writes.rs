//! Writes to the API server, from its own metrics.

use std::collections::BTreeMap;

use anyhow::Context as _;
use kube::Client;

/// Heartbeats of nodes, and objects that the benchmark writes in place of agents.
const NOT_COUNTED: [&str; 4] = ["leases", "nodes", "gpunodes", "selfsubjectaccessreviews"];
/// Groups whose requests are posted but not stored.
const NO_WRITES: [&str; 2] = ["authorization.k8s.io", "authentication.k8s.io"];
const VERBS: [&str; 6] = ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"];

/// Writes by resource and verb since the API server's start.
#[derive(Clone, Debug, Default)]
pub(super) struct ApiWrites(BTreeMap<String, f64>);

impl ApiWrites {
    /// Reads the counters.
    pub(super) async fn read(client: &Client) -> anyhow::Result<Self> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let text = client
            .request_text(request)
            .await
            .context("read the API server's metrics")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut writes = BTreeMap::new();
        for line in text.lines() {
            let Some((labels, value)) = line
                .strip_prefix("apiserver_request_total{")
                .and_then(|rest| rest.rsplit_once("} "))
            else {
                continue;
            };
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split('"').next()
            };
            let (Some(verb), Some(resource), Some(code)) = (label("verb"), label("resource"), label("code"))
            else {
                continue;
            };
            let subresource = label("subresource").unwrap_or_default();
            let creates_nothing =
                NO_WRITES.contains(&label("group").unwrap_or_default()) || subresource == "token";
            let taken = code.starts_with('2');
            if VERBS.contains(&verb) && !NOT_COUNTED.contains(&resource) && !creates_nothing && taken {
                let name = match subresource {
                    "" => format!("{verb} {resource}"),
                    sub => format!("{verb} {resource}/{sub}"),
                };
                *writes.entry(name).or_default() += value.parse::<f64>().unwrap_or_default();
            }
        }
        Self(writes)
    }

    /// Writes since an earlier reading.
    pub(super) fn since(&self, before: &Self) -> Self {
        let came = self.0.iter().map(|(name, count)| {
            let was = before.0.get(name).copied().unwrap_or_default();
            (name.clone(), count - was)
        });
        Self(came.filter(|(_, count)| *count > 0.0).collect())
    }

    /// Total of all writes.
    pub(super) fn all(&self) -> f64 {
        self.0.values().sum()
    }

    /// The most frequent writes, in descending order.
    pub(super) fn most(&self, n: usize) -> Vec<(&str, f64)> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .map(|(name, count)| (name.as_str(), *count))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(n);
        all
    }
}
