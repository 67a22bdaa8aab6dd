//! Two control planes: the market on one and a provider on the other, which has only a token for the market.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, api::ListParams};
use leasehold_crds::{GpuLease, GpuOffer};
use leasehold_testcluster::{Chain, Cluster, ClusterSpec, NodeSpec, Progress};
use serde_json::{Value, json};

use crate::{
    GatewayFixture, GpuNodes, eventually, gateway, install,
    stack::{PaymentFixture, Role, Stack, StackSpec, address, connect, payee},
};

/// What a [`Split`] consists of.
#[derive(Clone, Debug)]
pub struct SplitSpec<'a> {
    /// Names of the clusters begin with it.
    pub name: String,
    /// With a gateway, the ports of the provider's leases are reached through the tunnel.
    pub gateway: Option<&'a GatewayFixture>,
    /// Whether the provider's cluster enforces network policies.
    pub enforces_network_policies: bool,
    /// Images to compile with optimization, for benchmarks.
    pub optimized: Vec<&'static str>,
    /// Further flags of the gateway and of the connector, which both know.
    pub tunnel_args: Vec<String>,
}

impl<'a> SplitSpec<'a> {
    /// Without a gateway.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            gateway: None,
            enforces_network_policies: false,
            optimized: Vec::new(),
            tunnel_args: Vec::new(),
        }
    }

    /// With a gateway. Pods of leases are reached from the connector alone, which only an enforcing network shows.
    #[must_use]
    pub fn with_gateway(name: &str, gateway: &'a GatewayFixture) -> Self {
        Self {
            gateway: Some(gateway),
            enforces_network_policies: true,
            ..Self::new(name)
        }
    }
}

/// A market and a provider, each on a control plane of its own.
pub struct Split {
    /// The market, with the chain.
    pub market: Stack,
    /// The provider's cluster.
    pub provider: Cluster,
    /// A client of the provider's cluster with administrator permissions.
    pub client: Client,
    /// A client of the market with only the provider's token.
    pub token_at_market: Client,
}

impl Split {
    /// Brings both up.
    pub async fn up(split: SplitSpec<'_>, progress: &dyn Progress) -> anyhow::Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (name, gateway) = (&split.name, split.gateway);
        let mut spec = StackSpec::one_node(name);
        spec.optimized = split.optimized;
        spec.providers[0].nodes = GpuNodes::Real(vec![("gpu-1".into(), "h100-80g-sxm".into(), 2)]);
        let archives = install::archives(&spec.optimized, progress).await?;

        let mut market_spec = ClusterSpec::new(format!("{name}-market"), 0).with_chain(Chain::Own {
            block_time: spec.block_time,
        });
        market_spec.nodes.push(NodeSpec::named("market-1"));
        let market = Cluster::up(market_spec, progress).await?;
        let rpc_url = market
            .rpc_url()
            .context("the market's cluster has the chain")?
            .to_owned();
        let mut provider_spec = ClusterSpec::new(format!("{name}-provider"), 0).with_chain(Chain::External {
            rpc_url: rpc_url.clone(),
        });
        provider_spec
            .nodes
            .push(NodeSpec::named("gpu-1").label(install::PROVIDER_LABEL, &spec.providers[0].name));
        if split.enforces_network_policies {
            provider_spec = provider_spec.enforcing_network_policies();
        }
        let provider = Cluster::up(provider_spec, progress).await?;

        let money = Stack::money(&rpc_url, &spec).await?;
        let (market_client, client) = (market.client(), provider.client());
        tokio::try_join!(
            install::images(&market, &archives, progress),
            install::images(&provider, &archives, progress)
        )?;
        let offered = &spec.providers[0];
        let namespace = format!("provider-{}", offered.name);

        progress.step("installing the market");
        let tunnel = gateway.map(|gateway| (gateway, split.tunnel_args.as_slice()));
        install_market(&market, &spec, &money, tunnel).await?;
        progress.step("installing the provider");
        let secrets = Api::<Secret>::namespaced(market_client.clone(), &namespace);
        let token = token(&secrets, "provider-token").await?;
        let mut kubeconfigs = vec![secret("market", &market, &token)?];
        let connector = match gateway {
            Some(gateway) => {
                let token = self::token(&secrets, "connector-token").await?;
                kubeconfigs.push(secret("market-connector", &market, &token)?);
                kubeconfigs.push(gateway.secret_of_authority());
                let address = (market.node("market-1").address, gateway::PORT).into();
                let mut values = GatewayFixture::values_of_connector(address);
                values["extraArgs"] = json!(split.tunnel_args);
                Some(values)
            }
            None => None,
        };
        install_provider(&provider, &spec, &money, (&kubeconfigs, connector)).await?;
        let offers = Api::<GpuOffer>::namespaced(market_client.clone(), &namespace);
        eventually("the offer at the market", || async {
            let offer = offers.get_opt(&offered.name).await?;
            let permits_root = |o: &GpuOffer| o.spec.rows.iter().any(|row| row.root_allowed);
            Ok(if offer.as_ref().is_some_and(permits_root) {
                Ok(())
            } else {
                Err(offer)
            })
        })
        .await?;

        let payments = connect(rpc_url, &money)?;
        let token_at_market = market.client_with_token(&token).await?;
        let market = Stack {
            client: market_client,
            cluster: market,
            money,
            payments,
            spec,
        };
        Ok(Self {
            market,
            provider,
            client,
            token_at_market,
        })
    }

    /// The pod of a lease of one node.
    pub async fn pod_of(&self, lease: &GpuLease) -> anyhow::Result<Pod> {
        let escrow = lease.status.as_ref().and_then(|status| status.escrow.as_ref());
        let leg = escrow.and_then(|escrow| escrow.legs.first()).context("a leg")?;
        let pods = Api::<Pod>::namespaced(self.client.clone(), &leg.namespace);
        let pod = pods.list(&ListParams::default()).await?.items.into_iter().next();
        pod.context("a pod")
    }

    /// Takes both down.
    pub async fn down(self) -> anyhow::Result<()> {
        let provider = self.provider.down().await;
        self.market.down().await?;
        provider
    }
}

/// The token in a Secret, which the control plane writes.
async fn token(secrets: &Api<Secret>, name: &str) -> anyhow::Result<String> {
    eventually(name, || async {
        let secret = secrets.get(name).await?;
        Ok(secret
            .data
            .and_then(|d| d.get("token").map(|t| String::from_utf8_lossy(&t.0).into_owned()))
            .ok_or("no token yet"))
    })
    .await
}

/// A Secret with a kubeconfig for the market.
fn secret(name: &str, market: &Cluster, token: &str) -> anyhow::Result<Value> {
    let kubeconfig = market.kubeconfig_with_token(token)?;
    Ok(install::secret(name, &json!({"kubeconfig": kubeconfig})))
}

/// Installs the chart with the market alone, and with the gateway and its further flags.
async fn install_market(
    market: &Cluster,
    spec: &StackSpec,
    money: &PaymentFixture,
    gateway: Option<(&GatewayFixture, &[String])>,
) -> anyhow::Result<()> {
    let offered = &spec.providers[0];
    install::secrets(market, spec)?;
    let mut values = install::values(spec, money, 0)?;
    values["provider"]["enabled"] = json!(false);
    values["agent"]["enabled"] = json!(false);
    values["pools"] = json!([]);
    values["market"]["providers"] = json!([{
        "name": offered.name, "payee": payee(0).to_string(), "controller": address(Role::Controller(0))?.to_string(),
        "region": offered.region, "tokenSecret": true,
    }]);
    if let Some((gateway, args)) = gateway {
        for object in gateway.secrets_of_market() {
            install::kubectl_apply(market, &object.to_string())?;
        }
        values["gateway"] = GatewayFixture::values_of_gateway();
        values["gateway"]["extraArgs"] = json!(args);
    }
    install::helm_install(market, "leasehold", &values)?;
    install::deployments_ready(&market.client()).await
}

/// Installs the chart with the provider alone, which uses a kubeconfig to reach the market. `secrets` has it, and what the
/// connector uses.
async fn install_provider(
    provider: &Cluster,
    spec: &StackSpec,
    money: &PaymentFixture,
    (secrets, connector): (&[Value], Option<Value>),
) -> anyhow::Result<()> {
    let client = provider.client();
    install::gpus(provider, &client, spec).await?;
    install::secrets(provider, spec)?;
    for secret in secrets {
        install::kubectl_apply(provider, &secret.to_string())?;
    }
    let mut values = install::values(spec, money, 0)?;
    values["market"] = json!({"enabled": false});
    values["provider"]["market"] = json!({"kubeconfigSecretName": "market"});
    if let Some(connector) = connector {
        values["connector"] = connector;
        values["pools"][0]["exposure"] = json!("Tunnel");
    }
    install::helm_install(provider, "leasehold", &values)?;
    install::deployments_ready(&client).await
}
