//! Reads everything that a decision about a lease needs. Each source but the lease itself is known or unknown.

use std::sync::{Arc, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::ListParams};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{
    GpuAllocation, GpuLease, LABEL_LEASE_UID, PROVIDER_NAMESPACE_PREFIX, PaymentNetwork,
    lease::{GpuLeaseStatus, Phase},
};
use leasehold_planner::{
    endpoints::agreed,
    escrow::{Terms, allocation_name},
    market::allocation::acceptance::is_accepted,
    market::lease::{self, AllocationSeen, Network, Parsed, Wallet, World},
    observed::Observed,
    payment_network,
    ports::{Payments as _, SigningKey},
};
use leasehold_runtime::cache;
use leasehold_telemetry::metrics::ChainAction;

use crate::{
    market::Market,
    payments::{currency, entry, parse_key},
};

/// What is gathered beside the world, for the edge alone: a client and a key.
pub(super) struct Handles {
    pub(super) chain: Option<EvmEscrow>,
    pub(super) key: Option<SigningKey>,
}

impl Market {
    /// Reads everything that a decision needs. Only the lease itself must be readable.
    pub(super) async fn gather(&self, lease: Arc<GpuLease>) -> (World, Handles) {
        let supply = self.supply.snapshot();
        let deletion = self.deletion(&lease).await;
        let ((network, connection), access_token) =
            tokio::join!(self.network(&lease), self.access_token(&lease, &deletion));
        let chain = connection.as_ref().map(|(_, chain)| chain.clone());
        let gateway = self.gateway.clone();
        let parsed = Parsed::of(
            &lease,
            &deletion,
            &network,
            gateway.as_ref(),
            &supply.providers,
            &supply.candidates,
        );
        let terms = parsed.terms.clone().and_then(Result::ok);
        let why_no_client = match &network {
            Observed::Unknown(why) => why.clone(),
            Observed::Known(_) => "there is no usable PaymentNetwork".into(),
        };
        let (allocations, why_not_listed) = if lease::seeks_prior(&lease) {
            match self.allocations_now(&lease, chain.as_ref()).await {
                Ok(allocations) => (allocations, None),
                Err(error) => (
                    Vec::new(),
                    Some(format!("the allocations can't be listed: {error}")),
                ),
            }
        } else {
            (self.allocations_of(&lease, terms.as_ref(), chain.as_ref()), None)
        };
        let mut world = World {
            unfunded_in_namespace: 0,
            unanswered: self.provider_queue.unanswered(&lease),
            lease,
            deletion,
            parsed,
            network,
            gateway,
            access_token,
            providers: supply.providers,
            candidates: supply.candidates,
            allocations,
            wallet: Observed::Known(Wallet::NotRead),
            balances: None,
            head: Observed::Unknown(why_no_client.clone()),
            account: None,
            second_account: None,
            final_reads: Vec::new(),
            prior: Observed::Known(None),
        };
        let mut key = None;
        if lease::needs_wallet(&world) {
            world.unfunded_in_namespace = self.unfunded_beside(&world.lease);
            (world.wallet, key) = self.wallet(&world.lease).await;
        }
        let needs_chain = lease::needs_chain(&world.lease);
        if let (Some((network, chain)), true) = (&connection, needs_chain) {
            world.head = match &terms {
                Some(terms) => {
                    let account = (terms, open_by(&world.lease));
                    let wants_second = |first: &_| lease::wants_second(&world.lease, first);
                    let reads = self.payments.account_twice(network, chain, account, wants_second);
                    let (first, second) = reads.await;
                    world.second_account = second;
                    if lease::wants_final(&first) {
                        world.final_reads = self.payments.final_reads(network, chain, terms).await;
                    }
                    let head = first.clone().map(|at| at.block);
                    world.account = Some(first);
                    head
                }
                None => self.payments.head(network, chain).await,
            };
            if let (Observed::Known(Wallet::Ready(address)), None) = (&world.wallet, &world.parsed.terms) {
                let balances = self
                    .payments
                    .observed(ChainAction::Read, chain.balances(*address));
                world.balances = Some(Observed::from_result(balances.await));
            }
        } else if terms.is_some() && needs_chain {
            world.account = Some(Observed::Unknown(why_no_client));
        }
        world.prior = match why_not_listed {
            Some(why) => Observed::Unknown(why),
            None => self.prior(&world, connection.as_ref()).await,
        };
        // Other leases may have made allocations since.
        world.unanswered = self.provider_queue.unanswered(&world.lease);
        (world, Handles { chain, key })
    }

    /// Other leases of the namespace that are matched and unfunded; counted where a round may begin. Until this reconcile
    /// ends, and as long as its round waits for the deposit, this lease counts for others.
    fn unfunded_beside(&self, lease: &GpuLease) -> usize {
        if lease.status.as_ref().is_some_and(|s| s.escrow.is_some()) {
            return 0;
        }
        let namespace = lease.namespace().unwrap_or_default();
        let beside = self
            .leases
            .state_filter(|l| l.metadata.namespace == lease.metadata.namespace);
        let beside = beside.iter().filter_map(|l| {
            let uid = l.metadata.uid.as_deref()?;
            Some((uid, l.status.as_ref().is_some_and(is_unfunded)))
        });
        let mut unfunded = self.unfunded.lock().unwrap_or_else(PoisonError::into_inner);
        unfunded.admit(&namespace, &lease.uid().unwrap_or_default(), beside)
    }

    /// After a reconcile that ends with that status, the lease counts for others only if its round waits for the deposit.
    pub(super) fn settle_unfunded(&self, lease: &GpuLease, status: &GpuLeaseStatus) {
        if !is_unfunded(status) {
            let namespace = lease.namespace().unwrap_or_default();
            let mut unfunded = self.unfunded.lock().unwrap_or_else(PoisonError::into_inner);
            unfunded.settle(&namespace, &lease.uid().unwrap_or_default());
        }
    }

    async fn network(
        &self,
        lease: &GpuLease,
    ) -> (
        Observed<Option<Network>>,
        Option<(Arc<PaymentNetwork>, EvmEscrow)>,
    ) {
        let Some(object) = cache::get(&self.networks, &lease.spec.payment.network, None) else {
            return (Observed::Known(None), None);
        };
        let spec = &object.spec;
        let market_id = spec.market_id.as_deref().and_then(|m| m.parse().ok());
        let (Some(currency), Some(market_id), Ok(decimals)) =
            (currency(spec), market_id, u32::try_from(spec.token.decimals))
        else {
            return (Observed::Known(None), None);
        };
        match self.payments.client(&object).await {
            Ok(chain) => {
                let symbol = spec.token.symbol.clone();
                let network = Network {
                    currency,
                    market_id,
                    closer: self.closer_address,
                    secret: self.secret.clone(),
                    symbol,
                    decimals,
                    refusal: payment_network::refusal(&object),
                };
                (Observed::Known(Some(network)), Some((object.clone(), chain)))
            }
            Err(error) => (Observed::Unknown(error.message()), None),
        }
    }

    /// Allocations of the account in status, or all with the lease's uid where status has no account.
    fn allocations_of(
        &self,
        lease: &GpuLease,
        terms: Option<&Terms>,
        chain: Option<&EvmEscrow>,
    ) -> Vec<AllocationSeen> {
        let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
        let found: Vec<Arc<GpuAllocation>> = match escrow {
            Some(escrow) => {
                let Some(terms) = terms else {
                    return Vec::new();
                };
                let key = |(index, leg): (usize, &leasehold_crds::lease::LeaseLeg)| {
                    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{}", leg.provider);
                    cache::get(
                        &self.allocations,
                        &allocation_name(terms.id(), index),
                        Some(&namespace),
                    )
                };
                escrow.legs.iter().enumerate().filter_map(key).collect()
            }
            None => {
                let (uid, now) = (lease.uid(), self.now());
                self.allocations.state_filter(|a| {
                    Some(&a.spec.lease.uid) == uid.as_ref() && lease::concerns(lease, a, now)
                })
            }
        };
        seen(found, chain)
    }

    /// Every allocation of the lease, read from the API server.
    async fn allocations_now(
        &self,
        lease: &GpuLease,
        chain: Option<&EvmEscrow>,
    ) -> Result<Vec<AllocationSeen>, kube::Error> {
        let label = format!("{LABEL_LEASE_UID}={}", lease.uid().unwrap_or_default());
        let api = Api::<GpuAllocation>::all(self.client.clone());
        let list = api.list(&ListParams::default().labels(&label)).await?;
        Ok(seen(list.items.into_iter().map(Arc::new), chain))
    }

    /// The payer's key, from the one Secret that the tenant's namespace lets the operator read.
    async fn wallet(&self, lease: &GpuLease) -> (Observed<Wallet>, Option<SigningKey>) {
        let namespace = lease.namespace().unwrap_or_default();
        let name = &lease.spec.payment.wallet.secret_name;
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &namespace);
        match secrets.get(name).await {
            Ok(secret) => match entry(&secret, "privateKey").and_then(|t| parse_key(&t)) {
                Some(key) => match leasehold_chain::address_of(&key) {
                    Ok(address) => (Observed::Known(Wallet::Ready(address)), Some(key)),
                    Err(_) => (Observed::Known(Wallet::Malformed(malformed(name))), None),
                },
                None => (Observed::Known(Wallet::Malformed(malformed(name))), None),
            },
            Err(kube::Error::Api(status)) if status.code == 404 => (
                Observed::Known(Wallet::NotReadable(format!(
                    "there is no Secret {name} in namespace {namespace}"
                ))),
                None,
            ),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let account = &self.account;
                (
                    Observed::Known(Wallet::NotReadable(format!(
                        "namespace {namespace} has not opted in: run `kubectl -n {namespace} create role leasehold-wallet --verb=get \
                         --resource=secrets --resource-name={name} && kubectl -n {namespace} create rolebinding leasehold-wallet \
                         --role=leasehold-wallet --serviceaccount={account}`"
                    ))),
                    None,
                )
            }
            Err(error) => (
                Observed::Unknown(format!("Secret {name} can't be read: {error}")),
                None,
            ),
        }
    }

    /// The account of this lease in a later round than its status shows; searched where it matters. With two endpoints, both
    /// must have the same events.
    async fn prior(
        &self,
        world: &World,
        connection: Option<&(Arc<PaymentNetwork>, EvmEscrow)>,
    ) -> Observed<Option<lease::RecoveredAccount>> {
        let lease = &world.lease;
        if !lease::needs_prior(world) {
            return Observed::Known(None);
        }
        match (&world.network, connection, &world.head) {
            // The index must have been read to a block that is recent.
            (Observed::Known(Some(network)), Some((object, chain)), Observed::Known(head)) => {
                let uid = lease.uid().unwrap_or_default();
                let latest = async |chain: &EvmEscrow| {
                    let index = self.payments.index_name(object, chain);
                    let rounds = lease::prior_rounds(lease);
                    let latest =
                        self.index
                            .latest(&index, chain, network.market_id, &uid, rounds, head.number);
                    Observed::from_result(latest.await)
                };
                let prior = latest(chain).await;
                match self.payments.other(object, chain) {
                    Some(other) => agreed(prior, latest(&other).await),
                    None => prior,
                }
            }
            (_, Some(_), Observed::Unknown(why)) | (Observed::Unknown(why), _, _) => {
                Observed::Unknown(why.clone())
            }
            (Observed::Known(_), _, _) => Observed::Known(None),
        }
    }
}

/// Until when the account in status can be opened, Unix seconds.
fn open_by(lease: &GpuLease) -> u64 {
    let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    escrow.map_or(0, |e| u64::try_from(e.open_by).unwrap_or_default())
}

/// Whether the round of a lease waits for its deposit.
fn is_unfunded(status: &GpuLeaseStatus) -> bool {
    status.phase == Phase::Matched
}

fn malformed(name: &str) -> String {
    format!("Secret {name} needs an entry privateKey with 0x and 64 hexadecimal digits")
}

fn seen(
    objects: impl IntoIterator<Item = Arc<GpuAllocation>>,
    chain: Option<&EvmEscrow>,
) -> Vec<AllocationSeen> {
    let seen = |object: Arc<GpuAllocation>| AllocationSeen {
        signed: chain.is_some_and(|chain| {
            is_accepted(&object, |message, signature| {
                chain.acceptance_signer(message, signature)
            })
        }),
        object,
    };
    objects.into_iter().map(seen).collect()
}
