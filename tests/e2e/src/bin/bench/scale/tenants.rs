//! Tenants with wallets of their own, and their leases.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{TryStreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Secret},
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api, Client, api::PostParams};
use leasehold_chain::{address_of, deploy};
use leasehold_crds::{GpuLease, payment::money::TokenAmount};
use leasehold_e2e::{DECIMALS, Role as KeyRole, Stack, key, opted_in};
use leasehold_planner::ports::SigningKey;
use serde_json::json;

/// Leases per tenant: the number of unfunded leases that a namespace may have, so that none waits for another.
const LEASES_EACH: usize = 20;
/// Concurrent requests.
const AT_ONCE: usize = 16;
/// Whole tokens of each tenant, and wei for gas.
const TOKENS: u128 = 1_000;
const WEI: u128 = 10_000_000_000_000_000_000;

/// The tenants' namespaces.
pub(super) struct Tenants(Vec<String>);

impl Tenants {
    /// Creates the tenants for that many leases.
    pub(super) async fn make(stack: &Stack, leases: usize) -> anyhow::Result<Self> {
        let count = leases.div_ceil(LEASES_EACH).max(1);
        let keys: Vec<SigningKey> = (1..=count).map(wallet).collect();
        let addresses = keys.iter().map(address_of).collect::<Result<Vec<_>, _>>()?;
        let amount = TokenAmount(TOKENS * 10u128.pow(DECIMALS));
        let participants: Vec<_> = addresses.iter().map(|a| (*a, amount)).collect();
        let (rpc, deployer) = (&stack.money.rpc_url, key(KeyRole::Deployer)?);
        // In batches, as a node limits the pending transactions of one sender.
        for (some, participants) in addresses.chunks(50).zip(participants.chunks(50)) {
            deploy::send_gas(rpc, &deployer, some, WEI)
                .await
                .context("send the tenants gas")?;
            deploy::mint(rpc, &deployer, stack.money.token, participants)
                .await
                .context("mint the tenants' tokens")?;
        }
        let names: Vec<String> = (1..=count).map(|n| format!("tenant-{n:04}")).collect();
        stream::iter(names.iter().zip(&keys).map(Ok::<_, anyhow::Error>))
            .try_for_each_concurrent(AT_ONCE, |(name, key)| move_in(&stack.client, name, key))
            .await?;
        Ok(Self(names))
    }

    /// Applies that many leases as fast as possible. Returns the duration.
    pub(super) async fn apply(&self, stack: &Stack, leases: usize) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let names = (0..leases).map(|n| Ok::<_, anyhow::Error>(format!("lease-{n:05}")));
        stream::iter(names.enumerate().map(|(n, name)| name.map(|name| (n, name))))
            .try_for_each_concurrent(AT_ONCE, |(n, name)| async move {
                self.apply_one(&stack.client, n, &name).await.map(drop)
            })
            .await?;
        Ok(begun.elapsed())
    }

    /// Applies one more lease of a tenant. Returns its namespace.
    pub(super) async fn apply_one(&self, client: &Client, tenant: usize, name: &str) -> anyhow::Result<&str> {
        let namespace = self.0[tenant % self.0.len()].as_str();
        let api = Api::<GpuLease>::namespaced(client.clone(), namespace);
        api.create(&PostParams::default(), &lease(namespace, name)?)
            .await
            .with_context(|| format!("apply {namespace}/{name}"))?;
        Ok(namespace)
    }
}

/// The private key of a tenant. It has funds only on the chain of this run.
fn wallet(number: usize) -> SigningKey {
    let mut bytes = [0x5c; 32];
    bytes[24..].copy_from_slice(&(number as u64).to_be_bytes());
    SigningKey(bytes)
}

async fn move_in(client: &Client, name: &str, key: &SigningKey) -> anyhow::Result<()> {
    let [namespace, secret, role, binding] = opted_in(name, key);
    let params = PostParams::default();
    let namespace: Namespace = serde_json::from_value(namespace)?;
    Api::all(client.clone()).create(&params, &namespace).await?;
    let secret: Secret = serde_json::from_value(secret)?;
    Api::namespaced(client.clone(), name)
        .create(&params, &secret)
        .await?;
    let role: Role = serde_json::from_value(role)?;
    Api::namespaced(client.clone(), name)
        .create(&params, &role)
        .await?;
    let binding: RoleBinding = serde_json::from_value(binding)?;
    let made = Api::namespaced(client.clone(), name)
        .create(&params, &binding)
        .await?;
    ensure!(made.metadata.uid.is_some(), "the RoleBinding was made");
    Ok(())
}

/// A lease of one GPU for one hour.
fn lease(namespace: &str, name: &str) -> anyhow::Result<GpuLease> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "perNode": {"cpu": "4", "memory": "16Gi", "ephemeralStorage": "20Gi", "gpus": 1},
            "gpu": {"memory": "80G"},
            "term": {"duration": "1h"},
            // Without a port: a cluster has fewer node ports than there can be leases.
            "workload": {"job": {"image": "leasehold.test/busybox:1", "runAsUser": 1000}},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    }))?)
}
