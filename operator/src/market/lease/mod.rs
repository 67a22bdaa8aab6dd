//! One pass over a lease: gather, check, decide, apply, report.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, ObjectMeta, Patch, PatchParams},
};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{
    ANNOTATION_ESCROW, ANNOTATION_KNOWN, FINALIZER_MARKET, GpuAllocation, GpuLease, LABEL_LEASE,
    LABEL_LEASE_UID, PROVIDER_NAMESPACE_PREFIX,
    lease::{GpuLeaseStatus, Phase},
    payment::money::Rate,
};
use leasehold_planner::{
    escrow::{AccountRead, Terms, lease_name},
    market::lease::{
        self, AllocationSeen, AllocationWrite, ChainCall, Checked, Network, Plan, Wallet, World,
    },
    observed::Observed,
    ports::{AcceptanceMessage, BlockLevel, PaymentError, Payments as _, SigningKey},
};
use leasehold_runtime::{
    Error, Process, api_writes, cache,
    queue::{CONCURRENT_RECONCILES, ReconcileError, RequeueAfter},
};
use leasehold_telemetry::metrics::{ChainAction, Controller};
use serde_json::json;

pub(crate) mod account_index;
mod crd_deletion;

use super::{MANAGER, Market, allocation};
use crate::payments::{currency, entry, parse_key};

/// What was gathered beside the world: what only the edge may hold.
struct Handles {
    chain: Option<EvmEscrow>,
    key: Option<SigningKey>,
}

/// Adds the controller of GpuLeases.
pub(crate) fn register(process: &mut Process, market: &Arc<Market>) {
    let context = market.clone();
    process.add_controller(
        Controller::Lease,
        CONCURRENT_RECONCILES,
        (&market.queues.leases, &market.leases),
        move |lease| reconcile(lease, context.clone()),
    );
}

/// Reconciles one lease.
async fn reconcile(object: Arc<GpuLease>, market: Arc<Market>) -> Result<RequeueAfter, ReconcileError> {
    let (object, look_again) = market.ignoring_crd_deletion(object).await;
    let (world, handles) = market.gather(object).await;
    let now = market.now();
    let checked: Checked = lease::check(&world);
    let plan = lease::decide(&world, &checked, now);
    market.provider_queue.begin(&world.lease, &plan);
    let (status, outcome) = market.apply(&world, &handles, plan.clone()).await;
    let reported = market.report(&world, &plan, status, &outcome).await;
    if reported.is_err() {
        market.provider_queue.cancel(&world.lease, &plan);
    }
    let wake = api_writes::until(plan.wake, market.now()).min(look_again);
    reported
        .and(outcome)
        .map_err(|error| ReconcileError::requeue(error, wake))?;
    Ok(Some(wake))
}

impl Market {
    /// Reads everything a decision needs. Nothing but the lease must be readable.
    async fn gather(&self, lease: Arc<GpuLease>) -> (World, Handles) {
        let status = lease.status.clone().unwrap_or_default();
        let supply = self.supply.snapshot();
        let (network, chain) = self.network(&lease).await;
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
            (self.allocations_of(&lease, chain.as_ref()), None)
        };
        let mut world = World {
            unfunded_in_namespace: self.unfunded_beside(&lease),
            unanswered: self.provider_queue.unanswered(&lease),
            lease,
            network,
            providers: supply.providers,
            candidates: supply.candidates,
            allocations,
            wallet: Observed::Known(Wallet::NotAsked),
            balances: None,
            head: Observed::Unknown(why_no_client.clone()),
            account: None,
            second_account: None,
            prior: Observed::Known(None),
        };
        let mut key = None;
        if lease::needs_wallet(&world) {
            (world.wallet, key) = self.wallet(&world.lease).await;
        }
        let terms = status
            .escrow
            .as_ref()
            .and_then(|e| Terms::from_wire(&e.terms).ok());
        let closed = status.phase == Phase::Closed;
        if let (Some(chain), false) = (&chain, closed) {
            world.head = Observed::from_result(self.payments.observed(ChainAction::Read, chain.head()).await);
            if let (Observed::Known(Wallet::Ready(address)), None) = (&world.wallet, &status.escrow) {
                let balances = self
                    .payments
                    .observed(ChainAction::Read, chain.balances(*address));
                world.balances = Some(Observed::from_result(balances.await));
            }
            if let Some(terms) = &terms {
                let read = self.read(chain, terms).await;
                if lease::wants_second(&read) {
                    world.second_account = Some(self.read(chain, terms).await);
                }
                world.account = Some(read);
            }
        } else if terms.is_some() && !closed {
            world.account = Some(Observed::Unknown(why_no_client));
        }
        world.prior = match why_not_listed {
            Some(why) => Observed::Unknown(why),
            None => self.prior(&world, chain.as_ref()).await,
        };
        // Others may have asked since.
        world.unanswered = self.provider_queue.unanswered(&world.lease);
        (world, Handles { chain, key })
    }

    /// Other leases of the namespace that are matched and unfunded; counted when a round may begin.
    fn unfunded_beside(&self, lease: &GpuLease) -> usize {
        if lease.status.as_ref().is_some_and(|s| s.escrow.is_some()) {
            return 0;
        }
        let others = |l: &GpuLease| {
            l.metadata.namespace == lease.metadata.namespace
                && l.status.as_ref().is_some_and(|s| s.phase == Phase::Matched)
        };
        self.leases.state_filter(others).len()
    }

    async fn read(&self, chain: &EvmEscrow, terms: &Terms) -> Observed<AccountRead> {
        Observed::from_result(
            self.payments
                .observed(ChainAction::Read, chain.account(terms, BlockLevel::Latest))
                .await,
        )
    }

    async fn network(&self, lease: &GpuLease) -> (Observed<Option<Network>>, Option<EvmEscrow>) {
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
                    symbol,
                    decimals,
                };
                (Observed::Known(Some(network)), Some(chain))
            }
            Err(why) => (Observed::Unknown(why), None),
        }
    }

    /// Allocations of the account in status, or, where status names none, every one with the lease's uid.
    fn allocations_of(&self, lease: &GpuLease, chain: Option<&EvmEscrow>) -> Vec<AllocationSeen> {
        let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
        let found: Vec<Arc<GpuAllocation>> = match escrow {
            Some(escrow) => {
                let Ok(terms) = Terms::from_wire(&escrow.terms) else {
                    return Vec::new();
                };
                let key = |(leg, share): (usize, &leasehold_crds::lease::Share)| {
                    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{}", share.provider);
                    cache::get(
                        &self.allocations,
                        &lease::allocation_name(&terms, leg),
                        Some(&namespace),
                    )
                };
                escrow.shares.iter().enumerate().filter_map(key).collect()
            }
            None => {
                let uid = lease.uid();
                self.allocations
                    .state_filter(|a| Some(&a.spec.lease.uid) == uid.as_ref())
            }
        };
        seen(found, chain)
    }

    /// Every allocation of the lease, as the API server knows it now.
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

    /// The payer's key, from the one Secret the tenant's namespace lets us read.
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

    /// The account of an earlier life of this lease, sought once when status names none.
    async fn prior(
        &self,
        world: &World,
        chain: Option<&EvmEscrow>,
    ) -> Observed<Option<lease::RecoveredAccount>> {
        let lease = &world.lease;
        if !lease::seeks_prior(lease) {
            return Observed::Known(None);
        }
        match (&world.network, chain) {
            (Observed::Known(Some(network)), Some(chain)) => {
                let uid = lease.uid().unwrap_or_default();
                let name = &lease.spec.payment.network;
                let prior = self.index.prior(name, chain, network.market_id, &uid);
                Observed::from_result(prior.await)
            }
            (Observed::Known(_), _) => Observed::Known(None),
            (Observed::Unknown(why), _) => Observed::Unknown(why.clone()),
        }
    }

    /// Carries the plan out. What is noted before it is done (M2) is written first, and nothing else on that pass.
    async fn apply(&self, world: &World, handles: &Handles, plan: Plan) -> (Written, Result<(), Error>) {
        let api =
            Api::<GpuLease>::namespaced(self.client.clone(), &world.lease.namespace().unwrap_or_default());
        let mut written = Written {
            object: world.lease.clone(),
            status: plan.status.clone(),
            notes_only: false,
        };
        let before = world.lease.status.clone().unwrap_or_default();
        let status_if_incomplete = plan.status_if_incomplete(&before);
        let mut finalizers = world.lease.finalizers().to_vec();
        if plan.finalizer == Some(true) && !finalizers.iter().any(|f| f == FINALIZER_MARKET) {
            finalizers.push(FINALIZER_MARKET.into());
            match api_writes::add_finalizer(&api, world.lease.as_ref(), &finalizers, ANNOTATION_KNOWN).await {
                Ok(object) => written.object = Arc::new(object),
                Err(error) => {
                    written.status = status_if_incomplete;
                    return (written, Err(error));
                }
            }
        }
        if plan.must_persist_first(&before) {
            written.notes_only = true;
            return (written, Ok(()));
        }
        for write in plan.allocations {
            if let Err(error) = self.write_allocation(world, write).await {
                written.status = status_if_incomplete;
                return (written, Err(error));
            }
        }
        if let Some(call) = plan.call {
            let called = self.call(handles, &call).await;
            if let Err(error) = called {
                let generation = world.lease.metadata.generation.unwrap_or_default();
                tracing::warn!(lease = world.lease.name_any(), namespace = world.lease.namespace(), %error, "the chain did not do it");
                lease::chain_failure(&mut written.status, &call, &error, generation, self.now());
                return (written, Ok(()));
            }
        }
        (written, Ok(()))
    }

    async fn write_allocation(&self, world: &World, write: AllocationWrite) -> Result<(), Error> {
        let api = |namespace: &str| Api::<GpuAllocation>::namespaced(self.client.clone(), namespace);
        match write {
            AllocationWrite::Create {
                namespace,
                name,
                spec,
            } => {
                let terms = Terms::from_wire(&spec.escrow).map_err(|e| Error::Object(e.to_string()))?;
                let mut object = GpuAllocation::new(&name, *spec);
                object.metadata = ObjectMeta {
                    finalizers: Some(vec![FINALIZER_MARKET.into()]),
                    annotations: Some([(ANNOTATION_ESCROW.to_owned(), terms.id().to_string())].into()),
                    ..api_writes::meta(
                        &name,
                        Some(&namespace),
                        &[
                            (LABEL_LEASE, &lease_name(terms.id())),
                            (LABEL_LEASE_UID, &world.lease.uid().unwrap_or_default()),
                        ],
                    )
                };
                api_writes::apply(&api(&namespace), &object, MANAGER)
                    .await
                    .map(|_| ())
            }
            AllocationWrite::Release {
                namespace,
                name,
                drop_results,
            } => {
                let spec = json!({"release": true, "dropResults": drop_results});
                self.patch_spec(&api(&namespace), &name, spec).await
            }
            AllocationWrite::Prolong {
                namespace,
                name,
                not_after,
            } => {
                self.patch_spec(&api(&namespace), &name, json!({"notAfter": not_after}))
                    .await
            }
            AllocationWrite::Delete { namespace, name } => {
                let api = api(&namespace);
                match api
                    .get_opt(&name)
                    .await
                    .map_err(Error::kube("read an allocation"))?
                {
                    Some(object) => allocation::remove(&api, &object).await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn patch_spec(
        &self,
        api: &Api<GpuAllocation>,
        name: &str,
        spec: serde_json::Value,
    ) -> Result<(), Error> {
        let patch = Patch::Merge(json!({"spec": spec}));
        let params = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        };
        api_writes::ignore_not_found(api.patch(name, &params, &patch).await)
            .map_err(Error::kube("write an allocation"))
    }

    async fn call(&self, handles: &Handles, call: &ChainCall) -> Result<(), PaymentError> {
        let chain = handles
            .chain
            .as_ref()
            .ok_or_else(|| PaymentError::Unreachable("there is no usable PaymentNetwork".into()))?;
        let payer = || {
            handles
                .key
                .as_ref()
                .ok_or_else(|| PaymentError::Unreachable("the payer's key can't be read now".into()))
        };
        let receipt = match call {
            ChainCall::Open {
                terms,
                deposit,
                valid_until,
            } => self
                .payments
                .observed(
                    ChainAction::Open,
                    chain.open(payer()?, terms, *deposit, *valid_until),
                )
                .await
                .map(Some),
            ChainCall::Fund { terms, total } => {
                self.payments
                    .observed(ChainAction::Fund, chain.fund_to(payer()?, terms, *total))
                    .await
            }
            ChainCall::Close { terms, payouts } => self
                .payments
                .observed(ChainAction::Close, chain.close(&self.closer, terms, *payouts))
                .await
                .map(Some),
        }?;
        if let Some(receipt) = receipt {
            tracing::info!(transaction = %receipt.transaction, gas = receipt.gas_used, ?call, "mined");
        }
        Ok(())
    }

    /// Writes what is true now, tells what a person would want to know, and lets go at the end.
    async fn report(
        &self,
        world: &World,
        plan: &Plan,
        written: Written,
        outcome: &Result<(), Error>,
    ) -> Result<(), Error> {
        let api =
            Api::<GpuLease>::namespaced(self.client.clone(), &world.lease.namespace().unwrap_or_default());
        let mut object = written.object;
        let before = world.lease.status.clone();
        if before.as_ref() != Some(&written.status) {
            object =
                Arc::new(api_writes::apply_status(&api, object.as_ref(), MANAGER, &written.status).await?);
            for (warning, reason, note) in lease::events(before.as_ref(), &written.status) {
                self.events.publish(object.as_ref(), warning, reason, note).await;
            }
            if before.as_ref().map(|s| s.phase) != Some(written.status.phase)
                && let Some(phases) = &self.metrics.leases
            {
                phases.entered(written.status.phase);
            }
        }
        if plan.finalizer == Some(false) && outcome.is_ok() && !written.notes_only {
            let rest: Vec<String> = object
                .finalizers()
                .iter()
                .filter(|f| *f != FINALIZER_MARKET)
                .cloned()
                .collect();
            let removed = api_writes::set_finalizers(&api, object.as_ref(), &rest).await;
            api_writes::ignore_not_found(removed)?;
        }
        Ok(())
    }
}

/// What is to be reported.
struct Written {
    object: Arc<GpuLease>,
    status: GpuLeaseStatus,
    notes_only: bool,
}

fn malformed(name: &str) -> String {
    format!("Secret {name} needs an entry privateKey with 0x and 64 hexadecimal digits")
}

fn seen(
    objects: impl IntoIterator<Item = Arc<GpuAllocation>>,
    chain: Option<&EvmEscrow>,
) -> Vec<AllocationSeen> {
    let seen = |object: Arc<GpuAllocation>| AllocationSeen {
        signed: chain.is_some_and(|r| is_signed(r, &object)),
        object,
    };
    objects.into_iter().map(seen).collect()
}

/// Whether the acceptance in an allocation's status is its leg's controller's, over what was asked.
fn is_signed(chain: &EvmEscrow, allocation: &GpuAllocation) -> bool {
    let check = || {
        let acceptance = allocation.status.as_ref()?.acceptance.as_ref()?;
        let terms = Terms::from_wire(&allocation.spec.escrow).ok()?;
        let leg = terms.legs.get(usize::try_from(allocation.spec.leg).ok()?)?;
        let digits = acceptance.signature.strip_prefix("0x")?;
        let signature: [u8; 65] = data_encoding::HEXLOWER_PERMISSIVE
            .decode(digits.as_bytes())
            .ok()?
            .try_into()
            .ok()?;
        let Rate(rate) = leg.rate;
        let message = AcceptanceMessage {
            escrow_id: terms.id(),
            leg: u16::try_from(allocation.spec.leg).ok()?,
            rate,
            not_after: u64::try_from(acceptance.not_after).ok()?,
            deadline: u64::try_from(acceptance.deadline).ok()?,
        };
        let signer = chain.acceptance_signer(&message, &signature)?;
        Some(signer == leg.controller && acceptance.deadline >= allocation.spec.open_by)
    };
    check().unwrap_or(false)
}
