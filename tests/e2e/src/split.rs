//! Two control planes: the market on one and a provider on the other, which has only a token for the market.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use leasehold_crds::GpuOffer;
use leasehold_testcluster::{Chain, Cluster, ClusterSpec, NodeSpec, Progress};
use serde_json::json;

use crate::{
    GpuNodes, eventually, install,
    stack::{PaymentFixture, Role, Stack, StackSpec, address, connect, payee},
};

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
    pub async fn up(name: &str, progress: &dyn Progress) -> anyhow::Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut spec = StackSpec::one_node(name);
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
        install_market(&market, &spec, &money).await?;
        progress.step("installing the provider");
        let secrets = Api::<Secret>::namespaced(market_client.clone(), &namespace);
        let token = eventually("the provider's token", || async {
            let secret = secrets.get("provider-token").await?;
            Ok(secret
                .data
                .and_then(|d| d.get("token").map(|t| String::from_utf8_lossy(&t.0).into_owned()))
                .ok_or("no token yet"))
        })
        .await?;
        install_provider(&provider, &spec, &money, &market.kubeconfig_with_token(&token)?).await?;
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

    /// Takes both down.
    pub async fn down(self) -> anyhow::Result<()> {
        let provider = self.provider.down().await;
        self.market.down().await?;
        provider
    }
}

/// Installs the chart with the market alone.
async fn install_market(market: &Cluster, spec: &StackSpec, money: &PaymentFixture) -> anyhow::Result<()> {
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
    install::helm_install(market, "leasehold", &values)?;
    install::deployments_ready(&market.client()).await
}

/// Installs the chart with the provider alone, which uses the kubeconfig to reach the market.
async fn install_provider(
    provider: &Cluster,
    spec: &StackSpec,
    money: &PaymentFixture,
    kubeconfig: &str,
) -> anyhow::Result<()> {
    let client = provider.client();
    install::gpus(provider, &client, spec).await?;
    install::secrets(provider, spec)?;
    install::kubectl_apply(
        provider,
        &install::secret("market", &json!({"kubeconfig": kubeconfig})).to_string(),
    )?;
    let mut values = install::values(spec, money, 0)?;
    values["market"] = json!({"enabled": false});
    values["provider"]["market"] = json!({"kubeconfigSecretName": "market"});
    install::helm_install(provider, "leasehold", &values)?;
    install::deployments_ready(&client).await
}
