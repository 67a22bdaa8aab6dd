//! A tenant: a namespace with a wallet and the permission to use it, and leases applied from the examples.

use std::time::Duration;

use anyhow::Context as _;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use leasehold_chain::deploy;
use leasehold_crds::{
    GpuLease,
    lease::{Phase, workload::Session},
    payment::money::TokenAmount,
};
use leasehold_planner::{
    escrow::{Account, AccountRead, Address, Terms},
    ports::{BlockLevel, Payments as _, SigningKey},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    install::{kubectl_apply, repository_file},
    stack::{DECIMALS, Role, Stack, address, key},
    within,
};

/// A tenant's namespace, the Secret with its wallet, and the RoleBinding that lets the market use it.
#[must_use]
pub fn opted_in(namespace: &str, wallet: &SigningKey) -> [serde_json::Value; 4] {
    let wallet = format!("0x{}", data_encoding::HEXLOWER.encode(&wallet.0));
    [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wallet", "namespace": namespace}, "stringData": {"privateKey": wallet}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "leasehold-wallet", "namespace": namespace},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["wallet"], "verbs": ["get"]}]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "leasehold-wallet", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leasehold-wallet"},
            "subjects": [{"kind": "ServiceAccount", "name": "leasehold-market", "namespace": crate::install::NAMESPACE}]}),
    ]
}

/// A tenant's namespace on a stack.
pub struct Tenant<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The namespace.
    pub namespace: String,
    /// The role whose key is in the wallet.
    wallet: Role,
}

impl<'a> Tenant<'a> {
    /// Creates the namespace, the Secret with the wallet, and the RoleBinding that lets the market use it.
    pub fn new(stack: &'a Stack, namespace: &str) -> anyhow::Result<Self> {
        Self::with_purse(stack, namespace, Role::Tenant)
    }

    /// Creates a tenant with another wallet, so that the balances of both are independent.
    pub async fn another(stack: &'a Stack, namespace: &str) -> anyhow::Result<Self> {
        let wallet = (
            address(Role::OtherTenant)?,
            TokenAmount(u128::from(stack.spec.tenant_tokens) * 10u128.pow(DECIMALS)),
        );
        let (rpc, token) = (&stack.money.rpc_url, stack.money.token);
        deploy::mint(rpc, &key(Role::Deployer)?, token, &[wallet]).await?;
        Self::with_purse(stack, namespace, Role::OtherTenant)
    }

    fn with_purse(stack: &'a Stack, namespace: &str, wallet: Role) -> anyhow::Result<Self> {
        for object in opted_in(namespace, &key(wallet)?) {
            kubectl_apply(&stack.cluster, &object.to_string())?;
        }
        Ok(Self {
            stack,
            namespace: namespace.into(),
            wallet,
        })
    }

    /// The tenant's leases.
    #[must_use]
    pub fn leases(&self) -> Api<GpuLease> {
        Api::namespaced(self.stack.client.clone(), &self.namespace)
    }

    /// The lease of the example of a job with a session in its place, which does nothing until it is stopped.
    pub fn session(&self, name: &str, term: &str) -> anyhow::Result<GpuLease> {
        let mut lease = self.example("examples/01-job.yaml", Some(name))?;
        lease.spec.term.duration = term.into();
        let job = lease.spec.workload.job.take().context("the example is a job")?;
        let mut container = job.container;
        container.image = "leasehold.test/busybox:1".into();
        container.command = vec!["/bin/busybox".into(), "sh".into(), "-c".into()];
        container.args = vec!["trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done".into()];
        lease.spec.workload.session = Some(Box::new(Session {
            container,
            ..Default::default()
        }));
        Ok(lease)
    }

    /// The first GpuLease of an example file, in this namespace and, if given, with another name.
    pub fn example(&self, file: &str, name: Option<&str>) -> anyhow::Result<GpuLease> {
        let text = repository_file(file)?;
        for document in text.split("\n---") {
            let value: serde_json::Value = serde_norway::from_str(document)?;
            if value["kind"] == "GpuLease" {
                let mut lease: GpuLease = serde_json::from_value(value)?;
                lease.metadata.namespace = Some(self.namespace.clone());
                lease.spec.payment.network = crate::install::NETWORK.into();
                lease.spec.payment.wallet.secret_name = "wallet".into();
                if let Some(name) = name {
                    lease.metadata.name = Some(name.into());
                }
                return Ok(lease);
            }
        }
        anyhow::bail!("{file} has no GpuLease")
    }

    /// Applies a lease or another object with kubectl.
    pub fn apply(&self, object: &impl Serialize) -> anyhow::Result<()> {
        kubectl_apply(&self.stack.cluster, &serde_json::to_string(object)?).map(|_| ())
    }

    /// Waits until the lease satisfies `wanted`.
    pub async fn until(
        &self,
        name: &str,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&GpuLease) -> bool,
    ) -> anyhow::Result<GpuLease> {
        let api = self.leases();
        within(limit, &format!("{name}: {what}"), || async {
            let lease = api.get(name).await?;
            Ok(if wanted(&lease) {
                Ok(lease)
            } else {
                Err(lease.status)
            })
        })
        .await
    }

    /// Waits until the lease is in a phase.
    pub async fn until_phase(&self, name: &str, phase: Phase, limit: Duration) -> anyhow::Result<GpuLease> {
        self.until(name, limit, &format!("{phase:?}"), |l| {
            l.status.as_ref().is_some_and(|s| s.phase == phase)
        })
        .await
    }

    /// Deletes the lease, without waiting.
    pub async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.leases().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until the lease no longer exists.
    pub async fn until_gone(&self, name: &str, limit: Duration) -> anyhow::Result<()> {
        let api = self.leases();
        within(limit, &format!("{name} to be gone"), || async {
            Ok(match api.get_opt(name).await? {
                None => Ok(()),
                Some(lease) => Err((lease.finalizers().to_vec(), lease.status)),
            })
        })
        .await
    }

    /// The lease's account on the chain.
    pub async fn account(&self, lease: &GpuLease) -> anyhow::Result<(Terms, Account)> {
        let escrow = lease
            .status
            .as_ref()
            .and_then(|s| s.escrow.as_ref())
            .context("the lease has an account")?;
        let terms = Terms::from_wire(&escrow.terms)?;
        let at = self.stack.payments.account(&terms, BlockLevel::Latest).await?;
        match at.read {
            AccountRead::Present(account) => Ok((terms, account)),
            other => anyhow::bail!("the chain returned {other:?}"),
        }
    }

    /// Token balance of an address, in base units.
    pub async fn balance(&self, of: Address) -> anyhow::Result<TokenAmount> {
        Ok(self.stack.payments.balances(of).await?.token)
    }

    /// Token balance of the tenant, in base units.
    pub async fn own_balance(&self) -> anyhow::Result<TokenAmount> {
        self.balance(address(self.wallet)?).await
    }
}
