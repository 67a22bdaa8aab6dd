//! Brings the whole of it up and tells what is where.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use kube::Client;
use leasehold_chain::{EvmEscrow, Network, address_of, deploy};
use leasehold_crds::{GPU_RESOURCE, lease::workload::NodeShape, payment::money::TokenAmount};
use leasehold_planner::{escrow::Address, ports::SigningKey};
use leasehold_testcluster::{ACCOUNTS, Chain, Cluster, ClusterSpec, KwokNode, NodeSpec, Progress};

use crate::install;

/// A provider of the stack.
#[derive(Clone, Debug)]
pub struct ProviderSpec {
    /// Name on the market.
    pub name: String,
    /// Region.
    pub region: String,
    /// Price of a GPU-hour.
    pub price: String,
    /// Its nodes.
    pub nodes: GpuNodes,
}

/// Where a provider's GPUs are.
#[derive(Clone, Debug)]
pub enum GpuNodes {
    /// Real nodes with a kubelet and containers: (node name, model, GPUs) each.
    Real(Vec<(String, String, usize)>),
    /// Nodes that KWOK plays: (node name, model, what it allocates) each.
    Kwok(Vec<(String, String, NodeShape)>),
}

impl GpuNodes {
    /// Whether there are none: whoever brings the stack up adds them.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        match self {
            Self::Real(nodes) => nodes.is_empty(),
            Self::Kwok(nodes) => nodes.is_empty(),
        }
    }
}

/// What is to be brought up.
#[derive(Clone, Debug)]
pub struct StackSpec {
    /// Name of the cluster.
    pub name: String,
    /// Providers; the first is installed with the market.
    pub providers: Vec<ProviderSpec>,
    /// Seconds between blocks.
    pub block_time: Duration,
    /// Tokens the tenant begins with, whole.
    pub tenant_tokens: u64,
    /// Replicas of each operator.
    pub replicas: usize,
    /// Images that are compiled for use, as what is measured must be: `operator`, `agent`; the others are quick to build.
    pub optimized: Vec<&'static str>,
    /// Further flags of the chart's agents.
    pub agent_args: Vec<String>,
}

impl StackSpec {
    /// One real node with GPUs, one provider.
    #[must_use]
    pub fn one_node(name: &str) -> Self {
        Self {
            name: name.into(),
            providers: vec![ProviderSpec {
                name: "rhine-west".into(),
                region: "eu-west".into(),
                price: "1.85".into(),
                nodes: GpuNodes::Real(vec![("node-1".into(), "h100-80g-sxm".into(), 2)]),
            }],
            block_time: Duration::from_secs(1),
            tenant_tokens: 1_000,
            replicas: 1,
            optimized: Vec::new(),
            // Tests wait for what it sees.
            agent_args: vec!["--period=1s".into(), "--holders-period=500ms".into()],
        }
    }

    /// Three providers in three places, each a node of 32 CPU, 128Gi and 4 GPUs that KWOK plays.
    #[must_use]
    pub fn three_providers(name: &str) -> Self {
        Self {
            providers: KWOK_PROVIDERS.map(kwok_provider).into(),
            ..Self::one_node(name)
        }
    }

    /// One provider with a real node, and the three.
    #[must_use]
    pub fn four_providers(name: &str) -> Self {
        let mut spec = Self::one_node(name);
        spec.providers.extend(KWOK_PROVIDERS.map(kwok_provider));
        spec
    }

    /// Whether some node of it is played by KWOK.
    #[must_use]
    pub fn has_kwok_nodes(&self) -> bool {
        self.providers
            .iter()
            .any(|p| matches!(p.nodes, GpuNodes::Kwok(_)))
    }
}

/// Name, region and price of each.
const KWOK_PROVIDERS: [(&str, &str, &str); 3] = [
    ("alpine-one", "eu-central", "1.20"),
    ("fjord-gpu", "eu-north", "1.15"),
    ("prairie", "us-central", "1.05"),
];

fn kwok_provider((name, region, price): (&str, &str, &str)) -> ProviderSpec {
    let shape = NodeShape {
        cpu: "32".into(),
        memory: "128Gi".into(),
        ephemeral_storage: "500Gi".into(),
        gpus: 4,
    };
    ProviderSpec {
        name: name.into(),
        region: region.into(),
        price: price.into(),
        nodes: GpuNodes::Kwok(vec![(format!("{name}-1"), "a100-80g-pcie".into(), shape)]),
    }
}

/// A node of a provider that KWOK plays.
#[must_use]
pub fn kwok_node(provider: &str, name: &str, shape: &NodeShape) -> KwokNode {
    KwokNode::named(name)
        .label(install::PROVIDER_LABEL, provider)
        // As GPU nodes usually have it; here it also keeps off what needs containers.
        .taint(GPU_RESOURCE)
        .capacity("cpu", &shape.cpu)
        .capacity("memory", &shape.memory)
        .capacity("ephemeral-storage", &shape.ephemeral_storage)
        .capacity(GPU_RESOURCE, &shape.gpus.to_string())
}

/// The money of the stack.
#[derive(Clone, Debug)]
pub struct PaymentFixture {
    /// JSON-RPC endpoint.
    pub rpc_url: String,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Escrow contract.
    pub escrow: Address,
    /// Token with 6 decimals.
    pub token: Address,
    /// Address that names the market.
    pub market_id: Address,
}

/// The development accounts of anvil, by what they do here. Payees are addresses without a key anywhere.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Deploys the contracts and mints.
    Deployer,
    /// The market's closer.
    Closer,
    /// The tenant.
    Tenant,
    /// Another tenant, whose wallet is empty until somebody fills it.
    OtherTenant,
    /// The controller of the provider with that number.
    Controller(usize),
}

/// A running Leasehold.
pub struct Stack {
    /// The cluster.
    pub cluster: Cluster,
    /// An admin's client of it.
    pub client: Client,
    /// The money.
    pub money: PaymentFixture,
    /// A rail to look at the chain by.
    pub payments: EvmEscrow,
    /// What was brought up.
    pub spec: StackSpec,
}

/// Tokens have this many decimals.
pub const DECIMALS: u32 = 6;

/// A development key.
pub fn key(role: Role) -> anyhow::Result<SigningKey> {
    let index = match role {
        Role::Deployer => 0,
        Role::Closer => 1,
        Role::Tenant => 2,
        Role::OtherTenant => 9,
        Role::Controller(n) => 3 + n,
    };
    let text = &ACCOUNTS
        .get(index)
        .ok_or_else(|| anyhow!("there are no more development accounts"))?
        .private_key;
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes())?;
    Ok(SigningKey(
        bytes
            .try_into()
            .map_err(|_| anyhow!("a development key has 32 bytes"))?,
    ))
}

/// Address of a development key.
pub fn address(role: Role) -> anyhow::Result<Address> {
    Ok(address_of(&key(role)?)?)
}

/// The cold address of the provider with that number.
#[must_use]
pub fn payee(index: usize) -> Address {
    let mut bytes = [0xc0; 20];
    bytes[19] = u8::try_from(index).unwrap_or(u8::MAX);
    Address(bytes)
}

impl Stack {
    /// Brings it up; on failure nothing of it stays.
    pub async fn up(spec: StackSpec, progress: &dyn Progress) -> anyhow::Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut cluster_spec = ClusterSpec::new(&spec.name, 0).with_chain(Chain::Own {
            block_time: spec.block_time,
        });
        for provider in &spec.providers {
            match &provider.nodes {
                GpuNodes::Real(nodes) => {
                    // The operators run on the first one's: another's may die in a test.
                    let own = cluster_spec.nodes.is_empty();
                    cluster_spec.nodes.extend(nodes.iter().map(|(name, ..)| {
                        let node = NodeSpec::named(name).label(install::PROVIDER_LABEL, &provider.name);
                        if own { node } else { node.taint(GPU_RESOURCE) }
                    }));
                }
                GpuNodes::Kwok(nodes) => {
                    let nodes = nodes.iter();
                    cluster_spec
                        .kwok_nodes
                        .extend(nodes.map(|(name, _, shape)| kwok_node(&provider.name, name, shape)));
                }
            }
        }
        if cluster_spec.nodes.is_empty() {
            // The operators run as pods, and KWOK runs nothing.
            cluster_spec.nodes.push(NodeSpec::named("system"));
        }
        let archives = install::archives(&spec.optimized, progress).await?;
        let cluster = Cluster::up(cluster_spec, progress).await?;
        match Self::equip(cluster, spec, &archives, progress).await {
            Ok(stack) => Ok(stack),
            Err((cluster, error)) => {
                let kept = leasehold_testcluster::cache_root()
                    .unwrap_or_default()
                    .join("failed")
                    .join(cluster.name());
                let _ = cluster.dump(&kept);
                let error = match cluster.down().await {
                    Ok(()) => error,
                    Err(left) => error.context(format!("and the cluster is not fully gone: {left:#}")),
                };
                Err(error.context(format!("it did not come up; logs are in {}", kept.display())))
            }
        }
    }

    async fn equip(
        cluster: Cluster,
        spec: StackSpec,
        archives: &install::Archives,
        progress: &dyn Progress,
    ) -> Result<Self, (Cluster, anyhow::Error)> {
        let made = async {
            let rpc_url = cluster.rpc_url().context("the cluster has a chain")?.to_owned();
            let (money, ()) = tokio::try_join!(
                Self::money(&rpc_url, &spec),
                install::images(&cluster, archives, progress)
            )?;
            let client = cluster.client();
            install::all(&cluster, &client, &spec, &money, progress).await?;
            let payments = EvmEscrow::connect(&Network {
                rpc_url,
                chain_id: money.chain_id,
                escrow: money.escrow,
                token: money.token,
                call_deadline: Duration::from_secs(10),
                mine_deadline: Duration::from_secs(30),
            })?;
            anyhow::Ok((client, money, payments))
        };
        match made.await {
            Ok((client, money, payments)) => Ok(Self {
                cluster,
                client,
                money,
                payments,
                spec,
            }),
            Err(error) => Err((cluster, error)),
        }
    }

    pub(crate) async fn money(rpc_url: &str, spec: &StackSpec) -> anyhow::Result<PaymentFixture> {
        let deployer = key(Role::Deployer)?;
        let deployed = deploy::deploy(rpc_url, &deployer)
            .await
            .context("deploy the contracts")?;
        let amount = TokenAmount(u128::from(spec.tenant_tokens) * 10u128.pow(DECIMALS));
        deploy::mint(
            rpc_url,
            &deployer,
            deployed.token,
            &[(address(Role::Tenant)?, amount)],
        )
        .await
        .context("mint the tenant's tokens")?;
        Ok(PaymentFixture {
            rpc_url: rpc_url.to_owned(),
            chain_id: deployed.chain_id,
            escrow: deployed.escrow,
            token: deployed.token,
            market_id: address(Role::Closer)?,
        })
    }

    /// Ends it; nothing stays.
    pub async fn down(self) -> anyhow::Result<()> {
        self.cluster.down().await
    }

    /// Logs of everything, for a failure.
    pub fn dump(&self, directory: &Path) {
        if let Err(error) = self.cluster.dump(directory) {
            eprintln!("the logs could not be kept: {error:#}");
        }
    }
}
