//! An installed chart on a cluster of its own, and who its accounts are.

use std::process::Command;
use std::time::{Duration, Instant};

use kube::Client;
use leasehold_testcluster::{Cluster, ClusterSpec, KwokNode, Stderr};
use serde_json::{Value, json};

use crate::objects::{gpu_node, namespace, reservation};
use crate::requests::{path, send, write};

pub(crate) const HOME: &str = "leasehold-system";
pub(crate) const PROVIDER: &str = "rhine-west";
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An installed chart, and clients that are who their tokens say.
pub(crate) struct Installation {
    pub(crate) cluster: Cluster,
    pub(crate) admin: Client,
    pub(crate) market: Client,
    pub(crate) provider: Client,
    /// A provider of another cluster, by the account made for it here.
    pub(crate) guest: Client,
    pub(crate) gateway: Client,
    pub(crate) connector: Client,
    /// The connector of the provider of another cluster, by the account made for it here.
    pub(crate) guest_connector: Client,
    pub(crate) agent: Client,
    /// The agent's account, with a token that names no node.
    pub(crate) adrift: Client,
}

impl Installation {
    pub(crate) async fn new(name: &str) -> Self {
        let nodes = ["node-a", "node-b"].map(|name| KwokNode::named(name).capacity("cpu", "1"));
        let spec = ClusterSpec::new(name, 0).with_kwok_nodes(nodes);
        let cluster = Cluster::up(spec, &Stderr::default()).await.unwrap();
        let address = format!("0x{}", "1".repeat(40));
        let values = json!({
            // Nobody runs: the tokens are ours to use.
            "market": {"replicas": 0, "providers": [{"name": "elbe", "payee": address, "controller": address}]},
            "provider": {"replicas": 0, "name": PROVIDER, "payee": address, "controller": address},
            "agent": {"nodeSelector": {"no": "such"}},
            "gateway": {"replicas": 0, "domain": "leases.example.org"},
            "connector": {"replicas": 0},
            "rpcSecretNames": ["base-rpc"],
        });
        let folder = cluster.directory().join("values.json");
        std::fs::write(&folder, values.to_string()).unwrap();
        let mut helm = cluster.helm();
        helm.args(["install", "leasehold"])
            .arg(leasehold_tasks::root().join("charts/leasehold"))
            .args(["--namespace", HOME, "--create-namespace", "--values"])
            .arg(&folder);
        succeed(&mut helm);
        let token = |account: &'static str| {
            let cluster = &cluster;
            async move {
                cluster
                    .client_with_token(&cluster.token_for(HOME, account).await.unwrap())
                    .await
                    .unwrap()
            }
        };
        let guest = cluster.token_for("provider-elbe", "provider").await.unwrap();
        let guest_connector = cluster.token_for("provider-elbe", "connector").await.unwrap();
        let agent = cluster
            .token_on_node(HOME, "leasehold-agent", "node-a")
            .await
            .unwrap();
        let it = Self {
            admin: cluster.client(),
            market: token("leasehold-market").await,
            provider: token("leasehold-provider").await,
            guest: cluster.client_with_token(&guest).await.unwrap(),
            gateway: token("leasehold-gateway").await,
            connector: token("leasehold-connector").await,
            guest_connector: cluster.client_with_token(&guest_connector).await.unwrap(),
            agent: cluster.client_with_token(&agent).await.unwrap(),
            adrift: token("leasehold-agent").await,
            cluster,
        };
        it.policies_hold().await;
        it
    }

    /// Admission policies work some moments after they were made.
    async fn policies_hold(&self) {
        let deadline = Instant::now() + PATIENCE;
        for (who, object) in [
            (&self.adrift, gpu_node("node-a")),
            (&self.provider, namespace("evil", PROVIDER)),
            (&self.provider, reservation("probe", "elbe")),
        ] {
            loop {
                let answer = write(who, &object).await;
                if answer.as_ref().is_err_and(|message| message.starts_with("403 ")) {
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "no policy refuses {object}: {answer:?}"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    pub(crate) async fn apply(&self, object: &Value) {
        let path = format!("{}?fieldManager=test&force=true", path(object));
        send(
            &self.admin,
            "PATCH",
            &path,
            Some(object),
            "application/apply-patch+yaml",
        )
        .await
        .unwrap();
    }
}

pub(crate) fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
