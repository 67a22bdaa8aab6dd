//! Brings up the cluster, the chain and Leasehold.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use kube::Client;
use leasehold_chain::{EvmEscrow, Limits, Network, Queues, address_of, deploy};
use leasehold_crds::{GPU_RESOURCE, lease::workload::NodeShape, payment::money::TokenAmount};
use leasehold_planner::{
    escrow::{Address, RoundKey},
    market::lease::ROUNDS_MAX,
    ports::{Opened, SigningKey},
};
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

/// The GPUs of a provider.
#[derive(Clone, Debug)]
pub enum GpuNodes {
    /// Real nodes with a kubelet and containers, each with name, model and number of GPUs.
    Real(Vec<(String, String, usize)>),
    /// Nodes simulated by KWOK, each with name, model and allocatable resources.
    Kwok(Vec<(String, String, NodeShape)>),
}

impl GpuNodes {
    /// Whether there are no nodes, as the caller adds them later.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        match self {
            Self::Real(nodes) => nodes.is_empty(),
            Self::Kwok(nodes) => nodes.is_empty(),
        }
    }
}

/// Configuration of a stack.
#[derive(Clone, Debug)]
pub struct StackSpec {
    /// Name of the cluster.
    pub name: String,
    /// Providers; the first is installed with the market.
    pub providers: Vec<ProviderSpec>,
    /// Seconds between blocks.
    pub block_time: Duration,
    /// Initial tokens of the tenant, in whole tokens.
    pub tenant_tokens: u64,
    /// Replicas of each operator.
    pub replicas: usize,
    /// Images to compile with optimization, for benchmarks: `operator`, `agent`. Other images build faster.
    pub optimized: Vec<&'static str>,
    /// Further flags of the chart's agents.
    pub agent_args: Vec<String>,
}

impl StackSpec {
    /// One provider with one real GPU node.
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
            // Tests wait for what the agent reports.
            agent_args: vec!["--period=1s".into(), "--holders-period=500ms".into()],
        }
    }

    /// Three providers in three regions, each with a node of 32 CPU, 128Gi and 4 GPUs simulated by KWOK.
    #[must_use]
    pub fn three_providers(name: &str) -> Self {
        Self {
            providers: KWOK_PROVIDERS.map(kwok_provider).into(),
            ..Self::one_node(name)
        }
    }

    /// One provider with a real node, and the three with KWOK nodes.
    #[must_use]
    pub fn four_providers(name: &str) -> Self {
        let mut spec = Self::one_node(name);
        spec.providers.extend(KWOK_PROVIDERS.map(kwok_provider));
        spec
    }

    /// Whether any of its nodes is simulated by KWOK.
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

/// A node of a provider, simulated by KWOK.
#[must_use]
pub fn kwok_node(provider: &str, name: &str, shape: &NodeShape) -> KwokNode {
    KwokNode::named(name)
        .label(install::PROVIDER_LABEL, provider)
        // GPU nodes commonly have this taint. Here it also keeps pods away that need containers.
        .taint(GPU_RESOURCE)
        .capacity("cpu", &shape.cpu)
        .capacity("memory", &shape.memory)
        .capacity("ephemeral-storage", &shape.ephemeral_storage)
        .capacity(GPU_RESOURCE, &shape.gpus.to_string())
}

/// Payment addresses of the stack.
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

/// The roles of anvil's development accounts. Payees are addresses without a known key.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// Deploys the contracts and mints.
    Deployer,
    /// The market's closer.
    Closer,
    /// The tenant.
    Tenant,
    /// Another tenant, whose wallet is empty at first.
    OtherTenant,
    /// The controller of the provider with that number.
    Controller(usize),
}

/// A running Leasehold.
pub struct Stack {
    /// The cluster.
    pub cluster: Cluster,
    /// A client of the cluster with administrator permissions.
    pub client: Client,
    /// Payment addresses.
    pub money: PaymentFixture,
    /// A client of the escrow, to read the chain.
    pub payments: EvmEscrow,
    /// Configuration of the stack.
    pub spec: StackSpec,
}

/// Decimals of the token.
pub const DECIMALS: u32 = 6;

/// Returns a development key.
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

/// The payee address of the provider with that number.
#[must_use]
pub fn payee(index: usize) -> Address {
    let mut bytes = [0xc0; 20];
    bytes[19] = u8::try_from(index).unwrap_or(u8::MAX);
    Address(bytes)
}

impl Stack {
    /// Brings the stack up. If that fails, everything is removed.
    pub async fn up(spec: StackSpec, progress: &dyn Progress) -> anyhow::Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut cluster_spec = ClusterSpec::new(&spec.name, 0).with_chain(Chain::Own {
            block_time: spec.block_time,
        });
        for provider in &spec.providers {
            match &provider.nodes {
                GpuNodes::Real(nodes) => {
                    // The operators run on the first provider's node, as tests may stop others.
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
            // The operators run as pods, which KWOK cannot run.
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
                    Err(left) => error.context(format!(
                        "and the cluster could not be removed completely: {left:#}"
                    )),
                };
                Err(error.context(format!(
                    "the stack did not come up; logs are in {}",
                    kept.display()
                )))
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
            let payments = connect(rpc_url, &money)?;
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

    /// How many of these accounts the market opened for the lease with that UID.
    #[must_use]
    pub fn accounts_of_lease(&self, opened: &[Opened], uid: &str) -> usize {
        let rounds: BTreeSet<_> = (1..=ROUNDS_MAX)
            .map(|round| RoundKey::new(self.money.market_id, uid, round))
            .collect();
        let is_of_lease = |o: &&Opened| rounds.contains(&RoundKey::of(o.terms.salt));
        opened.iter().filter(is_of_lease).count()
    }

    /// Takes the stack down.
    pub async fn down(self) -> anyhow::Result<()> {
        self.cluster.down().await
    }

    /// Writes all logs to a directory.
    pub fn dump(&self, directory: &Path) {
        if let Err(error) = self.cluster.dump(directory) {
            eprintln!("cannot write the logs: {error:#}");
        }
    }
}

/// A client of the escrow of the tests, which signs with no key but those that it is given.
pub(crate) fn connect(rpc_url: String, money: &PaymentFixture) -> anyhow::Result<EvmEscrow> {
    let network = Network {
        rpc_url,
        chain_id: money.chain_id,
        escrow: money.escrow,
        token: money.token,
        call_deadline: Duration::from_secs(10),
        mine_deadline: Duration::from_secs(30),
        limits: Limits::default(),
    };
    Ok(EvmEscrow::connect(&network, &Queues::default())?)
}
